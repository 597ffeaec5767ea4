"""What the numbers were measured on, and how fast that is."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

import trecvit_kernels as tk
from benchmarks import floors
from benchmarks.setting import Setting
from benchmarks.timing import Work

_COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes: larger than any cache
_MATMUL = {"cpu": floors.MATMUL, "cuda": 8192}
_PACKAGES = (
    "trecvit-kernels",
    "torch",
    "triton",
    "transformers",
    "accelerated-scan",
    "flash-linear-attention",
    "fla-core",  # flash-linear-attention's kernels, all that on_gpu.sh installs
)
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Hardware, versions and commit; for "cuda" with the GPU."""
    return {
        **(gpu() if device == "cuda" else {}),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": _instruction_set(),
        "transparent_huge_pages": _THP.read_text().strip() if _THP.exists() else "unknown",
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", ""),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "backends": {name: status.available for name, status in tk.backends.available().items()},
    }


def gpu() -> dict[str, Any]:
    """Name, size and state of the first GPU, and versions of what its kernels are made with."""
    found: dict[str, Any] = {
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }
    if not torch.cuda.is_available():
        return {**found, "gpu": "none"}
    properties = torch.cuda.get_device_properties()
    found |= {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2": properties.L2_cache_size,
    }
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        found["nvidia-smi"] = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    return found


def rates(at: Setting) -> dict[str, float]:
    """Copy bandwidth in bytes/s, counting read and write, and matrix products in FLOP/s."""
    device, nbytes, size = at.device, _COPIED[at.device], _MATMUL[at.device]
    if at.tiny:
        nbytes, size = 2**20, 64
    source, target = (torch.rand(nbytes // 4, device=device) for _ in range(2))
    found = {
        "copy": 2 * nbytes / _median(at, lambda: target.copy_(source)),
        "copy_fresh": 2 * nbytes / _median(at, source.clone),
    }
    for dtype in (torch.float32, torch.bfloat16):
        product, flops = floors.matmul(dtype, device, size)
        found[f"matmul_{str(dtype).removeprefix('torch.')}"] = flops / _median(at, product)
    return found


def cpu_name() -> str:
    """The CPU's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _median(at: Setting, work: Work) -> float:
    at.clock(work)
    return statistics.median(at.clock(work) for _ in range(7))


def _instruction_set() -> str:
    if not tk.backends.available()["native"].available:
        return "none: the compiled extension is missing"
    native: Any = importlib.import_module("trecvit_kernels._native")
    return native.isa()


def _version(name: str) -> str:
    if name == "trecvit-kernels":
        return tk.__version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the checkout that holds this file, with "+" if tracked files other than results differ from it."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git("rev-parse", "--short=12", "HEAD", at=here)
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results", at=here)
        return commit + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str, at: Path) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=at, check=True, capture_output=True, text=True
    ).stdout.strip()
