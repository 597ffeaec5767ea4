"""``python -m benchmarks.cuda_kernels``: registers and shared memory of every CUDA kernel, compiled without a GPU.

Compiles csrc/*/*.cu for each architecture and reads the binaries with ``cuobjdump``. ``--write docs/cuda_kernels.md``
puts the tables between that page's markers.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import code
from benchmarks.kernels import BEGIN, END, cuobjdump, rewrite, size

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PAGE = ROOT / "docs" / "cuda_kernels.md"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a", "sm_120")
_PROCESSES = 2

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Reading:
    """One kernel of a binary. local: bytes of stack and local memory a thread; shared: static bytes a block."""

    op: str
    kernel: str
    arch: str
    registers: int
    local: int
    shared: int


def kernel_sources() -> list[Path]:
    """The CUDA sources, each a compilation of its own."""
    return sorted(CSRC.glob("*/*.cu"))


def sources() -> str:
    """A short digest of everything that is compiled: the CUDA sources and what they include, not the CPU's
    headers; without comments."""
    found, todo = set[Path](), kernel_sources()
    while todo:
        file = todo.pop()
        if file not in found and file.exists():  # one that does not belongs to tests/simt
            found.add(file)
            included = re.findall(r'^#include "([^"]+)"', file.read_text(), re.MULTILINE)
            todo += [(file.parent / name).resolve() for name in included]
    digest = hashlib.sha256()
    for file in sorted(found):
        digest.update(f"{file.relative_to(CSRC)}\n{code.of(file)}".encode())
    return digest.hexdigest()[:16]


def nvcc() -> str | None:
    """The CUDA compiler, where CMake would find it."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def compile_source(source: Path, arch: str) -> list[Reading]:
    """Compile one file for one architecture, as CMake does, and read its kernels."""
    compiler = nvcc()
    assert compiler is not None, "no nvcc"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [compiler, "-std=c++17", "-O3", f"-arch={arch}", "-cubin", "-o", cubin, source]
        subprocess.run(command, check=True, capture_output=True)
        return [
            Reading(source.parent.name, name, arch, *numbers) for name, numbers in resources(cubin).items()
        ]


def resources(binary: Path) -> dict[str, tuple[int, int, int]]:
    """Kernel -> registers, bytes of stack and local memory a thread, static bytes of shared memory a block.

    ``binary``: a cubin, or a library with one architecture's cubins inside.
    """
    text = _run(cuobjdump(), "-res-usage", binary)
    pattern = r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    found = re.findall(pattern, text)
    names = _run("c++filt", given="\n".join(mangled for mangled, *_ in found)).splitlines()
    readings = {}
    for name, (_, registers, stack, shared, local) in zip(names, found, strict=True):
        readings[_short(name)] = (int(registers), int(stack) + int(local), int(shared))
    return readings


def instructions(binary: Path) -> dict[str, str]:
    """Kernel -> its machine code as text."""
    text = _run(cuobjdump(), "-sass", binary)
    parts = re.split(r"^\s*Function : (\S+)\s*$", text, flags=re.MULTILINE)
    names = _run("c++filt", given="\n".join(parts[1::2])).splitlines()
    return dict(zip(map(_short, names), parts[2::2], strict=True))


def _run(*command: str | Path, given: str | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, input=given).stdout


def _short(name: str) -> str:
    """``void trecvit::(anonymous namespace)::kernel<trecvit::BFloat16, true>(...)`` as ``kernel<BFloat16, true>``."""
    name = name.replace("(anonymous namespace)::", "").replace("trecvit::", "").removeprefix("void ")
    return re.sub(r"\(([a-z ]*)\)(\w)", r"\2", name).partition("(")[0]


def readings(architectures: Sequence[str]) -> list[Reading]:
    """All kernels of all files."""
    tasks = [(source, arch) for arch in architectures for source in kernel_sources()]
    found = []
    with ThreadPoolExecutor(_PROCESSES) as pool:
        for (source, arch), part in zip(tasks, pool.map(compile_source, *zip(*tasks))):
            print(f"{arch:8} {source.relative_to(CSRC)}: {len(part)} kernels", file=sys.stderr, flush=True)
            found += part
    return found


def tables(found: Iterable[Reading], architectures: Sequence[str], tools: str) -> str:
    """What stands between the markers."""
    found = list(found)
    command = "`python -m benchmarks.cuda_kernels --write docs/cuda_kernels.md`"
    lines = [BEGIN, f"Written by {command}, with {tools}, from sources {sources()}."]
    for op in dict.fromkeys(reading.op for reading in found):
        own = [reading for reading in found if reading.op == op]
        lines += ["", f"### {op}", "", f"| kernel | {' | '.join(architectures)} |"]
        lines.append("| --- |" + " --: |" * len(architectures))
        for kernel in sorted({reading.kernel for reading in own}):
            by_arch = {reading.arch: reading for reading in own if reading.kernel == kernel}
            cells = " | ".join(_cell(by_arch[arch]) for arch in architectures)
            lines.append(f"| `{kernel}` | {cells} |")
    return "\n".join([*lines, "", END])


def _cell(reading: Reading) -> str:
    shared = f" · {size(reading.shared)}" if reading.shared else ""
    spilled = reading.local > allowed_local(reading.kernel)
    local = (
        f" · **{reading.local} B spilled**" if spilled else f" · {reading.local} B" if reading.local else ""
    )
    return f"{reading.registers}{shared}{local}"


def allowed_local(kernel: str) -> int:
    """Bytes of local memory that are no spills: the phases of complex float64 go through CUDA's sine and cosine, which
    reduce large arguments by a table on the stack."""
    return 40 if "<double, true" in kernel else 0


@app.command()
def main(
    arch: Annotated[
        list[str] | None, typer.Option(help="Architecture, repeatable.", show_default="all")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Page to put the tables into.", show_default=False)
    ] = None,
) -> None:
    """Compile every CUDA kernel and show registers, shared memory and spills."""
    compiler = nvcc()
    if compiler is None:
        raise typer.BadParameter("nvcc is needed, in PATH or named by CUDACXX")
    architectures = arch or list(ARCHITECTURES)
    version = re.search(r"release ([\d.]+)", _run(compiler, "--version"))
    found = readings(architectures)
    page = tables(found, architectures, f"nvcc {version[1] if version else 'of unknown version'}")
    if write is not None:
        rewrite(write, page)
    else:
        print(page)
    spilling = sum(reading.local > allowed_local(reading.kernel) for reading in found)
    print(f"{len(found)} kernels, {spilling} spill", file=sys.stderr)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.cuda_kernels")
