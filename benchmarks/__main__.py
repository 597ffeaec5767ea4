"""``python -m benchmarks``: trecvit_kernels measured side by side with its peers and its floors."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from benchmarks.suites import SUITES

# Whatever needs PyTorch is imported inside the commands, so that --help and wrong words answer at once.
if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16", "float64")
_INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended

_HELP = """Measure speed, memory and FLOPs of trecvit_kernels beside its peers and its floors.

\b
python -m benchmarks                         everything, on the CPU
python -m benchmarks ops --quick             one suite, few rounds, nothing compiled: a look, not a result
python -m benchmarks --device cuda --save    everything, on a GPU, for benchmarks/results
python -m benchmarks ops model --out x.json  two suites, into a file; stopped, the same command goes on
python -m benchmarks report                  tables and figures of README.md and docs/ from the result files
python -m benchmarks compare OLD NEW         what became slower or faster beyond noise

\b
Suites:
""" + "\n".join(f"  {name:<13} {what}" for name, what in SUITES.items())


class _RunByDefault(TyperGroup):
    """``run`` may be left out, and --help shows its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.commands["run"].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


app = typer.Typer(
    cls=_RunByDefault,
    help=_HELP,
    subcommand_metavar="[run] [SUITE]... | COMMAND [ARGS]...",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

QuickOption = Annotated[bool, typer.Option("--quick", help="Fewer rounds, no torch.compile.")]
OldFile = Annotated[Path, typer.Argument(metavar="OLD", exists=True, dir_okay=False, help="Result file.")]
NewFile = Annotated[Path, typer.Argument(metavar="NEW", exists=True, dir_okay=False, help="A later one.")]


@app.command()
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="SUITE", help="What to measure; nothing: all of it.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(metavar="|".join(DEVICES), help="Where to run.")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE,...", help=f"Out of {', '.join(DTYPES)}; default: each suite's usual ones."
        ),
    ] = "",
    quick: QuickOption = False,
    floors_only: Annotated[
        bool, typer.Option("--floors-only", help="Compare with floors only, not with peers.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            show_default=False,
            help="JSON file, written after every row. Rows that it has of the same kernels, machine and settings are"
            " kept, not measured again: a run that was stopped goes on.",
        ),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Likewise into benchmarks/results/<machine>-<date>.json.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure all rows, whatever the file has.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", hidden=True)] = False,  # for tests: sizes without meaning
) -> None:
    """Measure suites. The word run may be left out."""
    chosen = _suites(names or [])
    dtypes = [word.strip() for word in dtype.split(",")] if dtype else []
    if unknown := [word for word in dtypes if word not in DTYPES]:
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(DTYPES)}", param_hint="--dtype")
    if device not in DEVICES:
        raise typer.BadParameter(f"{device}: known are {', '.join(DEVICES)}", param_hint="--device")
    if out is not None and save:
        raise typer.BadParameter("--save names the file itself: give one of the two", param_hint="--out")
    if tiny and save:
        raise typer.BadParameter("sizes of --tiny say nothing about speed", param_hint="--save")

    import torch
    from rich.console import Console

    from benchmarks import report
    from benchmarks import run as runs
    from benchmarks.setting import Setting

    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("cuda: PyTorch sees no GPU here", param_hint="--device")
    at = Setting(device, _dtypes(dtypes), quick=quick, tiny=tiny, floors_only=floors_only)
    notes = Console(stderr=True)
    command = _command(names or [], device, dtypes, quick, floors_only, save, tiny)
    path = out
    try:
        if save:
            path = runs.file_to_save(at, fresh)
        ledger = runs.open_ledger(path, at, command, fresh, lambda text: runs.say(notes, text))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    stopped = False
    # kill is as Ctrl-C: what is there is shown.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runs.go(chosen, at, ledger, notes)
    except KeyboardInterrupt:
        stopped = True
    finally:
        signal.signal(signal.SIGTERM, before)
    console = Console() if sys.stdout.isatty() else Console(width=180)
    rows, records = ledger.of(chosen)
    report.show(console, rows, ledger.about, records)
    if path is not None and path.exists():
        console.print(f"Wrote {path}", soft_wrap=True)
    if stopped:
        again = f"the same command goes on from {path}" if path else "with --out a stopped run can go on"
        runs.say(notes, f"Stopped: {again}")
        raise typer.Exit(_INTERRUPTED)
    failed = [f"{found.suite}: {found.what}: {found.note}" for found in ledger.failures(chosen)]
    if failed:
        runs.say(notes, "\n".join([*failed, f"{len(failed)} rows failed"]))
        raise typer.Exit(1)


@app.command()
def compare(
    old: OldFile,
    new: NewFile,
    noise: Annotated[
        float, typer.Option(min=0.0, help="Least change of a ratio that counts, as a share.")
    ] = 0.05,
    fail: Annotated[bool, typer.Option("--fail", help="Exit with 1 if something is worse.")] = False,
) -> None:
    """Print what became slower or faster, beyond noise.

    Compared are ratios to peers, whose two sides were timed in turn, and counts of FLOPs and bytes; seconds as such
    only on the same machine.
    """
    from rich.console import Console

    from benchmarks import compare as comparing

    try:
        found = comparing.compare(old, new, noise)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    comparing.show(Console() if sys.stdout.isatty() else Console(width=180), found)
    if fail and found.worse:
        raise typer.Exit(1)


@app.command("report")
def write_report(
    file: Annotated[
        Path | None, typer.Argument(help="Result file; default: the newest in benchmarks/results.")
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Accept results of other kernels; the pages say so.")
    ] = False,
) -> None:
    """Write tables and figures of README.md and docs/ from result files."""
    from benchmarks import report

    try:
        changed = report.update(file, stale)
    except (ImportError, OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    for page, different in changed.items():
        typer.echo(f"{page.name} {'updated' if different else 'is up to date'}")


@app.command()
def thp(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="SUITE", help="Default: ops, model and streaming.", show_default=False),
    ] = None,
    quick: QuickOption = False,
) -> None:
    """Run rows with a floor twice: without and with huge pages.

    The pages are for PyTorch's own tensors (THP_MEM_ALLOC_ENABLE); those of our ops have them anyway.
    """
    from rich.console import Console

    from benchmarks import huge_pages

    chosen = _suites(names) if names else huge_pages.SUITES
    huge_pages.compare(Console() if sys.stdout.isatty() else Console(width=180), chosen, quick)


def _suites(names: Sequence[str]) -> list[str]:
    """The suites asked for, in the order of ``SUITES``."""
    if unknown := [name for name in names if name not in SUITES]:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: known are {', '.join(SUITES)}; other commands are report, compare and thp",
            param_hint="SUITE",
        )
    return [name for name in SUITES if name in names or not names]


def _dtypes(names: Sequence[str]) -> tuple[torch.dtype, ...]:
    import torch

    return tuple(getattr(torch, name) for name in dict.fromkeys(names))


def _command(
    names: Sequence[str],
    device: str,
    dtypes: Sequence[str],
    quick: bool,
    floors_only: bool,
    save: bool,
    tiny: bool,
) -> str:
    """What was asked for, without the paths of this machine."""
    words = ["python", "-m", "benchmarks", *names]
    words += ["--device", device] if device != DEVICES[0] else []
    words += ["--dtype", ",".join(dtypes)] if dtypes else []
    switches = {"--quick": quick, "--floors-only": floors_only, "--save": save, "--tiny": tiny}
    return shlex.join(words + [switch for switch, on in switches.items() if on])


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
