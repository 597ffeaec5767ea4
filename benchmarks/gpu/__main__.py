"""``python -m benchmarks.gpu``: the measurements of the GPU kernels, each side by side with what it is compared with.

Every row checks its result first; a wrong one is not timed. Rows that do not fit into ``--seconds`` are named as not
measured. Results are in the JSON file after every row, a short table comes last. ``--rehearse`` runs the same code
on the CPU, kernels in Triton's interpreter (TRITON_INTERPRET=1 must be in the environment), on tiny sizes: its times
mean nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks import hardware, report
from benchmarks.gpu import cuda as gpu_cuda
from benchmarks.gpu import models as gpu_models
from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu.limits import OutOfTime, at_most, deadlines
from benchmarks.gpu.rows import Setting
from benchmarks.results import kernels_digest, save, today
from benchmarks.rows import Comparison, Result, measure
from benchmarks.timing import Budget, Clock, seconds
from trecvit_kernels import backends


class Group(NamedTuple):
    """rows: made without any work, so that whatever goes wrong costs one row. share: of the time, in parts of all
    shares. longest: seconds that one row may take; most is compilation, on its first size."""

    rows: Callable[[Setting], Iterator[Comparison]]
    share: float
    longest: float


# In the order in which they are measured. What is about the whole model stands before `cuda`, which has most rows.
GROUPS = {
    "gated_lru": Group(gpu_rows.gated_lru, 95, 75),
    "recurrent_mixer": Group(gpu_rows.recurrent_mixer, 85, 75),
    "spatial_attention": Group(gpu_rows.spatial_attention, 50, 40),
    "linear_scan": Group(gpu_rows.linear_scan, 60, 50),
    "streaming": Group(gpu_models.streaming, 45, 40),
    "training": Group(gpu_models.training, 115, 90),
    "cuda": Group(gpu_cuda.cuda, 80, 40),
}
_BY_THE_WALL = ("streaming", "training")
_WIDEST = 64
_HEADINGS = ("what", "ours", "against", "takes", "ratio", "target", "met")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("build/on_gpu/results.json"),
    limit: Annotated[float, typer.Option("--seconds", help="For everything.")] = 520.0,
    only: Annotated[str, typer.Option(help="Groups, by comma.")] = ",".join(GROUPS),
    rehearse: Annotated[bool, typer.Option(help="On the CPU, in Triton's interpreter, tiny.")] = False,
) -> None:
    """Measure the GPU kernels."""
    ends = time.monotonic() + limit
    names = [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in GROUPS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(GROUPS)}", param_hint="--only")
    if rehearse:
        _rehearse()
        at, clock, wall = Setting("cpu", tiny=True, budget=Budget(0.0, 1, 1)), seconds, seconds
    elif torch.cuda.is_available():
        at, clock, wall = Setting(), gpu_timing.Stopwatch(), gpu_timing.wall
    else:
        raise typer.BadParameter("PyTorch sees no GPU here (--rehearse runs on the CPU)")
    run: dict[str, Any] = {
        "command": "python -m benchmarks.gpu" + (" --rehearse: times mean nothing" if rehearse else ""),
        "date": today(),
        "kernels": kernels_digest(),
        "settings": {"device": at.device},
        "hardware": hardware.describe("cuda"),
        "rates": gpu_timing.rates(clock, at.device, at.tiny),
    }
    torch.manual_seed(0)
    results: list[Result] = []
    until = deadlines({name: GROUPS[name].share for name in names}, time.monotonic(), ends)
    if rehearse:  # an interpreter's times have nothing to do with those shares
        until = dict.fromkeys(names, ends)
    for name in names:
        backend = "cuda" if name == "cuda" else "triton"
        if reason := backends.available()[backend].reason:
            results.append(Result(name, name, peer="", note=f"not measured: {reason}"))
            continue
        with backends.use(backend):
            for result in _group(name, at, wall if name in _BY_THE_WALL else clock, until[name]):
                results.append(result)
                save(out, results, run)
                print(
                    "  ".join(filter(None, report.cells(result, run["rates"]["copy"]))),
                    result.note,
                    flush=True,
                )
    _show(results, run)
    print(f"Wrote {out}")
    if any(result.note.startswith(("not timed", "failed")) for result in results):
        raise typer.Exit(1)


def _group(name: str, at: Setting, clock: Clock, ends: float) -> Iterator[Result]:
    """The group's rows, measured; what goes wrong with one is its note."""
    group = GROUPS[name]
    torch._dynamo.reset()
    pending = group.rows(at)
    while True:
        row = None
        try:
            row = next(pending, None)
            if row is None:
                return
            longest = float("inf") if at.tiny else group.longest
            with at_most(min(longest, ends - time.monotonic())):
                result = measure(row, clock)
        except OutOfTime:
            result = Result(name, row.what if row else name, peer="", note="not measured: no time left")
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            verdict = (
                "not measured" if OutOfTime.__name__ in reason else "failed"
            )  # others wrap it in their own
            result = Result(
                name, row.what if row else name, peer="", note=f"{verdict}: {type(error).__name__}: {reason}"
            )
        yield result
        if row is None:  # the generator broke off
            return
        del row
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _rehearse() -> None:
    """The CPU as if it were a GPU: kernels interpreted, autotuned peers on their first configuration."""
    if reason := backends.available()["triton"].reason:
        raise typer.BadParameter(f"the triton backend must run on the CPU (TRITON_INTERPRET=1): {reason}")
    from triton.runtime.autotuner import Autotuner

    Autotuner.do_bench = functools.cached_property(lambda self: _run_once)
    Autotuner.do_bench.__set_name__(Autotuner, "do_bench")


def _run_once(kernel: Callable[[], object], **_: object) -> list[float]:
    kernel()
    return [1.0, 1.0, 1.0]


def _show(results: list[Result], run: dict[str, Any]) -> None:
    """The short table."""
    rows = (report.cells(result, run["rates"]["copy"]) for result in results)
    table = [_HEADINGS, *([cell[:_WIDEST] for cell in row[: len(_HEADINGS)]] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(_HEADINGS))]
    print()
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    rates = run["rates"]
    print(
        f"{run['hardware']['gpu']}, torch {torch.__version__}, Triton {run['hardware']['triton']}; copy"
        f" {rates['copy'] / 1e12:.2f} TB/s (read + write), bf16 matmul {rates['matmul_bfloat16'] / 1e12:.0f} TFLOP/s"
    )
    judged = [result for result in results if result.limit is not None]
    met = [result for result in judged if result.met]
    print(f"{len(met)} of {len(judged)} targets met in this run.")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.gpu")
