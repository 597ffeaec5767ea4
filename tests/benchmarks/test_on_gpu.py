"""``benchmarks/on_gpu.sh``: what is carried to the GPU machine, and that nothing passes there without having run."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = _ROOT / "benchmarks" / "on_gpu.sh"
_THERE = {"torch", "triton"}  # and what these need
_GPU_MACHINE = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux", "extra": "",
                "platform_system": "Linux", "platform_machine": "x86_64", "platform_python_implementation": "CPython",
                "implementation_name": "cpython", "os_name": "posix"}  # fmt: skip


def listed(name: str) -> list[str]:
    """The words of a variable of the script."""
    found = re.search(rf'^{name}="(.*?)"', _SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1].split()


def imported(*folders: str) -> Iterator[str]:
    """Packages of others that modules import when they are imported themselves."""
    for path in (path for folder in folders for path in sorted((_ROOT / folder).rglob("*.py"))):
        for node in ast.parse(path.read_text()).body:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            yield from (name.partition(".")[0] for name in names)


def test_every_import_is_carried() -> None:
    carried = {pair.partition(":")[0] for pair in listed("NEEDED")}
    ours = {"trecvit_kernels", "benchmarks", *sys.stdlib_module_names}
    assert set(imported("trecvit_kernels", "benchmarks/gpu", "benchmarks/ops")) - ours - _THERE <= carried
    assert {name.partition(".")[0] for name in listed("IMPORTED")} - ours <= carried


def test_what_is_carried_brings_its_needs() -> None:
    carried = {canonicalize_name(pair.partition(":")[2].partition("<")[0]) for pair in listed("NEEDED")}
    seen = 0
    for name in carried:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # peers that need a GPU
            continue
        seen += 1
        wanted = [
            need for need in map(Requirement, needs) if not need.marker or need.marker.evaluate(_GPU_MACHINE)
        ]
        assert {canonicalize_name(need.name) for need in wanted} - _THERE <= carried, name
    assert seen > 20


def run(step: list[str], out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    dropped = ("TRITON_INTERPRET", "REHEARSAL")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return subprocess.run(
        ["bash", str(_SCRIPT), *step],
        env={**kept, "OUT": str(out), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("summary", "passes"),
    [("3 passed, 1 skipped in 2.00s", True), ("40 skipped in 2.00s", False), ("", False)],
)
def test_a_sanitizer_must_have_seen_tests(tmp_path: Path, summary: str, passes: bool) -> None:
    python = program(tmp_path / "python", f"echo '{summary}'")
    tool = program(
        tmp_path / "bin" / "compute-sanitizer", 'while [ "$1" != "$PYTHON" ]; do shift; done; "$@"'
    )
    path = f"{tool.parent}:{os.environ['PATH']}"
    done = run(["_sanitize", "memcheck", "60", "cuda"], tmp_path, PYTHON=str(python), PATH=path)
    assert (done.returncode == 0) == passes, done.stdout
    assert ("memcheck on cuda-gated_lru: failed, no test passed" in done.stdout) == (not passes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backends may be available")
def test_a_missing_backend_is_a_failure(tmp_path: Path) -> None:
    done = run(["_require_backends"], tmp_path, PYTHON=sys.executable)
    assert done.returncode != 0
    assert re.search(r"^triton: .+\ncuda: .+", done.stderr, re.MULTILINE), done.stderr


def test_a_toolkit_off_the_path_is_found(tmp_path: Path) -> None:
    program(tmp_path / "cuda" / "bin" / "nvcc", "echo first; echo release 13.0; echo build")
    program(tmp_path / "cuda" / "compute-sanitizer" / "compute-sanitizer", "echo sanitizer 2025")
    done = run(["_describe"], tmp_path, PYTHON="true", PATH="/usr/bin:/bin", CUDA_HOME=str(tmp_path / "cuda"))
    assert "release 13.0" in done.stdout
    assert "sanitizer 2025" in done.stdout
