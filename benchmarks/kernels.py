"""``python -m benchmarks.kernels``: every Triton kernel that a launch can select, compiled without a GPU.

For each room's ``variants(arch)``: registers, shared memory and local memory (spilled registers) per thread, read from
the binary by ``cuobjdump`` for NVIDIA, from the code object's metadata for AMD. ``--write docs/kernels.md`` puts the
tables between that page's markers; with ``--op`` it replaces those of some ops.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import trecvit_kernels.ops

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
_PROCESSES = 2
_TENSOR_MEMORY = 512  # columns of a Blackwell multiprocessor

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Reading:
    """One compiled variant. local: bytes of local memory a thread (0: nothing spilled); shared: bytes a program."""

    op: str
    variant: str
    arch: str
    warps: int
    stages: int
    registers: int
    local: int
    shared: int
    seconds: float


def rooms() -> list[str]:
    """Ops with a Triton backend."""
    folder = Path(trecvit_kernels.ops.__file__).parent
    return sorted(path.parent.name for path in folder.glob("*/triton.py"))


@functools.cache
def variants(op: str, arch: str) -> tuple[Any, ...]:
    """The room's different variants for an architecture, their names unique."""
    room = importlib.import_module(f"trecvit_kernels.ops.{op}.triton")
    found: dict[str, Any] = {}
    for variant in room.variants(arch):
        if any(dataclasses.replace(other, name=variant.name) == variant for other in found.values()):
            continue  # several settings come to the same kernel
        names = itertools.chain([variant.name], (f"{variant.name} ({n})" for n in itertools.count(2)))
        name = next(name for name in names if name not in found)
        found[name] = dataclasses.replace(variant, name=name)
    return tuple(found.values())


def compile_one(op: str, arch: str, index: int) -> Reading:
    """Compile a variant and read what it uses; ValueError where Triton gave up and made a kernel that only traps."""
    from trecvit_kernels.ops import _triton

    variant = variants(op, arch)[index]
    began = time.perf_counter()
    compiled = _triton.compile_variant(variant, arch)
    seconds = time.perf_counter() - began
    refuse_trap(compiled, f"{op} {variant.name} for {arch}")
    read = read_cubin if arch.startswith("sm_") else read_code_object
    registers, local = read(compiled.asm["cubin" if arch.startswith("sm_") else "amdgcn"])
    shared = int(compiled.metadata.shared)
    return Reading(
        op, variant.name, arch, variant.num_warps, variant.num_stages, registers, local, shared, seconds
    )


def refuse_trap(compiled: Any, name: str) -> None:
    """ValueError for a kernel that only traps: what does not fit into tensor memory becomes one, without a word."""
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    if columns > _TENSOR_MEMORY:
        raise ValueError(f"{name}: at most {_TENSOR_MEMORY} columns of tensor memory, got {columns}")
    if re.search(r"^\s*(?:trap;|s_trap\b)", compiled.asm.get("ptx") or compiled.asm["amdgcn"], re.MULTILINE):
        raise ValueError(f"{name}: the compiled kernel holds a trap")


def read_cubin(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory per thread; the stack frame holds what ptxas spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump(), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    functions = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if len(functions) != 1:
        raise ValueError(f"cuobjdump -res-usage: one function expected, got {text!r}")
    registers, stack, local = map(int, functions[0])
    return registers, stack + local


def read_code_object(assembly: str) -> tuple[int, int]:
    """Vector registers (accumulation registers included) and bytes of private memory per work item."""
    fields = ("vgpr_count", "private_segment_fixed_size")
    found = [re.findall(rf"^\s*\.{field}:\s*(\d+)\s*$", assembly, re.MULTILINE) for field in fields]
    if any(len(values) != 1 for values in found):
        raise ValueError(f"one kernel's metadata expected, got {dict(zip(fields, found))}")
    return int(found[0][0]), int(found[1][0])


@functools.cache
def cuobjdump() -> str:
    """The program that Triton ships."""
    from triton.backends import nvidia

    for folder in nvidia.__path__:
        program = Path(folder) / "bin" / "cuobjdump"
        if program.is_file():
            return str(program)
    raise FileNotFoundError(f"cuobjdump: not in {', '.join(f'{folder}/bin' for folder in nvidia.__path__)}")


def readings(ops: Sequence[str], architectures: Sequence[str]) -> Iterator[Reading]:
    """All variants, compiled by two processes with a cache that is thrown away."""
    tasks = [
        (op, arch, index) for arch in architectures for op in ops for index in range(len(variants(op, arch)))
    ]
    with tempfile.TemporaryDirectory() as cache:
        pool = ProcessPoolExecutor(
            _PROCESSES, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(cache,)
        )
        with pool:
            yield from pool.map(compile_one, *zip(*tasks))


def _start_worker(cache: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = cache


# The page


def sources(op: str) -> str:
    """A short digest of all that decides what is compiled for an op: kernels, launch tables, lists of variants."""
    folder = Path(trecvit_kernels.__file__).parent / "ops"
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("_triton*.py"), *(folder / op).glob("*triton*.py")]):
        digest.update(f"{file.relative_to(folder)}\n{file.read_text()}".encode())
    return digest.hexdigest()[:16]


def size(count: int) -> str:
    """A number of bytes: 0, 512 B, 68.2 KiB."""
    if count < 1024:
        return f"{count} B" if count else "0"
    return f"{count / 1024:.3g} KiB"


def cell(reading: Reading | None) -> str:
    """registers · shared memory · spilled"""
    if reading is None:
        return ""
    shared = size(reading.shared)
    spilled = f" · **{reading.local} B spilled**" if reading.local else ""
    return f"{reading.registers} · {shared}{spilled}"


def tables(found: Iterable[Reading], architectures: Sequence[str], tools: str) -> dict[str, str]:
    """Of every op the section that stands between the markers."""
    found = list(found)
    made: dict[str, str] = {}
    for op in dict.fromkeys(reading.op for reading in found):
        own = [reading for reading in found if reading.op == op]
        lines = [f"### {op}", "", f"With {tools}, from sources {sources(op)}.", ""]
        lines += [f"| variant | warps | stages | {' | '.join(architectures)} |"]
        lines.append("| --- | --: | --: |" + " --: |" * len(architectures))
        for name, warps, stages in dict.fromkeys((r.variant, r.warps, r.stages) for r in own):
            by_arch = {r.arch: r for r in own if (r.variant, r.warps, r.stages) == (name, warps, stages)}
            cells = " | ".join(cell(by_arch.get(arch)) for arch in architectures)
            lines.append(f"| {name} | {warps} | {stages} | {cells} |")
        made[op] = "\n".join(lines)
    return made


def sections(text: str) -> dict[str, str]:
    """Of a page: op -> its section between the markers."""
    parts = text.partition(BEGIN)[2].partition(END)[0].split("### ")[1:]
    return {part.split("\n", 1)[0]: f"### {part.strip()}" for part in parts}


def listed(text: str) -> dict[str, dict[str, set[str]]]:
    """Of a page: op -> variant -> architectures that have it (a variant may stand in several rows)."""
    found: dict[str, dict[str, set[str]]] = {}
    architectures: list[str] = []
    for line in text.partition(BEGIN)[2].partition(END)[0].splitlines():
        if line.startswith("### "):
            own = found.setdefault(line.removeprefix("### "), {})
        elif line.startswith("| variant |"):
            architectures = [name.strip() for name in line.strip("| ").split("|")][3:]
        elif line.startswith("| ") and not line.startswith("| ---"):
            name, _, _, *cells = (part.strip() for part in line[1:-1].split("|"))
            own.setdefault(name, set()).update(a for a, content in zip(architectures, cells) if content)
    return found


def rewrite(page: Path, tables: str, first: str = BEGIN, last: str = END) -> None:
    """Put the tables into the page; ValueError if its markers are missing."""
    text = page.read_text()
    begin, end = text.find(first), text.find(last)
    if begin < 0 or end < begin:
        raise ValueError(f"{page} must have the markers {first} and {last}, in this order")
    page.write_text(text[:begin] + tables + text[end + len(last) :])


@app.command()
def main(
    arch: Annotated[
        list[str] | None, typer.Option(help="Architecture, repeatable.", show_default="all")
    ] = None,
    op: Annotated[list[str] | None, typer.Option(help="Op, repeatable.", show_default="all")] = None,
    write: Annotated[
        Path | None, typer.Option(help="Page to put the tables into.", show_default=False)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the readings.", show_default=False)] = None,
) -> None:
    """Compile every kernel variant ahead of time and show registers, shared memory and spills."""
    import triton

    from trecvit_kernels.ops import _triton

    if _triton.interpreting():
        raise typer.BadParameter("kernels cannot be compiled with TRITON_INTERPRET in the environment")
    architectures, ops = arch or list(_triton.ARCHITECTURES), op or rooms()
    for given, known in ((architectures, _triton.ARCHITECTURES), (ops, rooms())):
        if unknown := [name for name in given if name not in known]:
            raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(known)}")
    found = []
    for reading in readings(ops, architectures):
        found.append(reading)
        print(
            f"{reading.arch:8} {reading.op:18} {reading.variant:44} {reading.warps:2} warps"
            f"  {cell(reading)}  ({reading.seconds:.1f} s)",
            file=sys.stderr,
            flush=True,
        )
    made = tables(found, architectures, f"Triton {triton.__version__}")
    if json is not None:
        from json import dumps

        json.write_text(dumps([dataclasses.asdict(reading) for reading in found], indent=1) + "\n")
    if write is not None:  # other ops keep their sections
        every = sections(write.read_text()) | made
        rewrite(write, "\n\n".join([BEGIN, *(every[name] for name in sorted(every)), END]))
    else:
        print("\n\n".join(made.values()))
    spilling = [reading for reading in found if reading.local]
    total = sum(reading.seconds for reading in found)
    print(f"{len(found)} variants, {len(spilling)} spill, {total:.0f} s of compilation", file=sys.stderr)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.kernels")
