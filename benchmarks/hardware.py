"""What the numbers were measured on, and how fast that is."""

from __future__ import annotations

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
from benchmarks.timing import seconds

_COPIED = 2**28  # bytes: larger than any cache
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def describe() -> dict[str, Any]:
    """Hardware, versions and commit."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": _instruction_set(),
        "transparent_huge_pages": _THP.read_text().strip() if _THP.exists() else "unknown",
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", ""),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("trecvit-kernels", "torch", "accelerated-scan")},
        "commit": _commit(),
        "backends": {name: status.available for name, status in tk.backends.available().items()},
    }


def rates() -> dict[str, float]:
    """Copy bandwidth in bytes/s, counting read and write, and matrix products in FLOP/s."""
    source, target = (torch.rand(_COPIED // 4) for _ in range(2))
    found = {
        "copy": 2 * _COPIED / _median(lambda: target.copy_(source)),
        "copy_fresh": 2 * _COPIED / _median(source.clone),
    }
    for dtype in (torch.float32, torch.bfloat16):
        product, flops = floors.matmul(dtype)
        found[f"matmul_{str(dtype).removeprefix('torch.')}"] = flops / _median(product)
    return found


def cpu_name() -> str:
    """The CPU's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _median(work: Any) -> float:
    seconds(work)
    return statistics.median(seconds(work) for _ in range(7))


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
    """Commit of the checkout that holds this file, with "+" if tracked files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git("rev-parse", "--short=12", "HEAD", at=here)
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no", at=here) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str, at: Path) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=at, check=True, capture_output=True, text=True
    ).stdout.strip()
