"""``python -m benchmarks.experiments``: train small models on real pixels, and write docs/experiments.md."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import hardware
from benchmarks.experiments import experiment as files
from benchmarks.experiments import jobs, pages
from benchmarks.experiments.registry import EXPERIMENTS
from benchmarks.report import draw
from benchmarks.results import today

_HELP = """Train small models on real pixels and write what they learned into docs/experiments.md.

\b
python -m benchmarks.experiments               all experiments, each under 15 minutes on two cores
python -m benchmarks.experiments memorisation  one of them
python -m benchmarks.experiments report        the page and its figures again, from the result files

\b
Experiments:
""" + "\n".join(f"  {name:<15} {one.title}" for name, one in EXPERIMENTS.items())


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT", help="Which; nothing: all.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            show_default=False,
            help="Write result files there and leave benchmarks/results and docs alone.",
        ),
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", hidden=True)] = False,  # for tests: two steps, no meaning
) -> None:
    console = Console()
    if names == ["report"]:
        _report(console)
        return
    if unknown := [name for name in names or () if name not in EXPERIMENTS]:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: known are {', '.join(EXPERIMENTS)} and report", param_hint="EXPERIMENT"
        )
    if tiny and out is None:
        raise typer.BadParameter("experiments of two steps show nothing", param_hint="--tiny")
    for name in names or EXPERIMENTS:
        made = [job.tiny() if tiny else job for job in EXPERIMENTS[name].jobs()]
        console.print(f"{EXPERIMENTS[name].title}: {len(made)} trainings", highlight=False)
        began = time.perf_counter()
        outcomes = jobs.run(made, lambda line: console.print(line, highlight=False, soft_wrap=True))
        seconds = time.perf_counter() - began
        record = files.Record(outcomes, seconds, today(), hardware.describe())
        where = files.write(name, record, None if out is None else out / f"{name}.json")
        console.print(f"{seconds / 60:.1f} minutes; {where}", highlight=False, soft_wrap=True)
        if not tiny:
            draw(console, EXPERIMENTS[name].table(outcomes))
            draw(console, files.claims_table([(name, c) for c in EXPERIMENTS[name].claims(outcomes)]))
    if out is None and all(files.path(name).exists() for name in EXPERIMENTS):
        _report(console)


def _report(console: Console) -> None:
    try:
        changed = pages.write()
    except FileNotFoundError as error:
        raise typer.BadParameter(f"{error.filename} is missing: run the experiment first") from error
    for path, new in changed.items():
        console.print(f"{'written' if new else 'unchanged'}: {path}", highlight=False, soft_wrap=True)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command(help=_HELP)(main)

if __name__ == "__main__":
    app()
