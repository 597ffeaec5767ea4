"""``python -m benchmarks``: every row of the comparison, measured side by side in one run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks import hardware, huge_pages, memory, model, ops, report
from benchmarks.rows import Comparison, Result, measure
from benchmarks.timing import Budget

Rows = Callable[..., Iterator[Comparison]]
GROUPS: dict[str, tuple[Rows, Budget, Budget]] = {  # rows, usual budget, quick budget
    "ops": (ops.rows, Budget(1.5, 5, 60), Budget(0.3, 3, 20)),
    "layer": (model.layer_rows, Budget(8.0, 5, 30), Budget(1.0, 2, 5)),
    "model": (model.rows, Budget(36.0, 5, 15), Budget(1.0, 1, 3)),
    "streaming": (model.streaming_rows, Budget(12.0, 7, 40), Budget(1.0, 2, 5)),
}
NAMES = (*GROUPS, "memory")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option(help="Fewer rounds, no torch.compile: a look, not a result.")
    ] = False,
    only: Annotated[str, typer.Option(help=f"Groups, by comma, out of {', '.join(NAMES)}.")] = ",".join(
        NAMES
    ),
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", show_default=False)] = None,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/<cpu>-<date>.json.")] = False,
    floors_only: Annotated[bool, typer.Option(help="Compare with floors only, not with peers.")] = False,
    thp: Annotated[bool, typer.Option(help="Compare runs with and without huge pages instead.")] = False,
) -> None:
    """Measure trecvit_kernels side by side with its peers and its floors, on the CPU."""
    if context.invoked_subcommand is not None:
        return
    groups = [name.strip() for name in only.split(",")]
    if unknown := [name for name in groups if name not in NAMES]:
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(NAMES)}", param_hint="--only")
    console = Console() if sys.stdout.isatty() else Console(width=180)
    if thp:
        timed = [name for name in groups if name in GROUPS]
        huge_pages.compare(console, [*(["--quick"] if quick else []), "--only", ",".join(timed)])
        return
    torch.manual_seed(0)
    # PyTorch's default number of threads: what a user gets.
    run: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", *_own_arguments()]),
        "date": report.today(),
        "hardware": hardware.describe(),
        "rates": hardware.rates(),
    }
    results = []
    for result in _results(groups, quick, floors_only):
        results.append(result)
        print(
            "  ".join(filter(None, report.cells(result, run["rates"]["copy"]))), file=sys.stderr, flush=True
        )
    report.show(console, results, run)
    for path in filter(None, (out, report.default_path(run) if save else None)):
        report.save(path, results, run)
        console.print(f"Wrote {path}")
    if any(result.note.startswith("not timed") for result in results):
        raise typer.Exit(1)


@app.command("report")
def write_report(
    file: Annotated[
        Path | None, typer.Argument(help="Result file; the newest in benchmarks/results.")
    ] = None,
) -> None:
    """Rewrite the measured tables of README.md and docs/benchmarks.md from a committed result file."""
    try:
        path = file or report.newest()
        changed = {page.name: report.rewrite(page, path) for page in (report.README, report.PAGE)}
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    for page, different in changed.items():
        typer.echo(f"{page} {'updated' if different else 'is up to date'} from {path.name}")


def _results(groups: list[str], quick: bool, floors_only: bool) -> Iterator[Result]:
    for name, (rows, usual, short) in GROUPS.items():
        if name in groups:
            torch._dynamo.reset()  # its limit of recompilations counts per function
            for row in rows(short if quick else usual, quick=quick, floors_only=floors_only):
                yield measure(row)
    if "memory" in groups:
        yield from memory.results(quick=quick)


def _own_arguments() -> list[str]:
    """The options as given, without the paths of this machine."""
    arguments = sys.argv[1:]
    while "--out" in arguments:
        at = arguments.index("--out")
        del arguments[at : at + 2]
    return [argument for argument in arguments if not argument.startswith("--out=")]


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
