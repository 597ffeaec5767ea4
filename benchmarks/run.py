"""A run: the rows of the chosen suites, measured one after the other, with a result file that is complete after each.

Stopped at any moment, a run goes on where it was when the same command is given again: rows that are in the file are
kept if kernels, machine and settings are still the same. A row that fails is measured again, and so is one whose
needs were missing.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from benchmarks import hardware, report, results, suites
from benchmarks.rows import FAILURES, Comparison, Counted, Key, Measurement, Record, Result, find, measure
from benchmarks.setting import Setting
from benchmarks.timing import Clock

# On a GPU, rows of these suites take the time until the result is there, the host's part included; those of the
# others the GPU's own. A row with a clock of its own has that.
_BY_THE_WALL = ("model", "streaming", "integrations")
_TO_DO = (*FAILURES, "not measured")
_VOLATILE = ("commit", "nvidia-smi")  # of the hardware's description: may change during a run
_SHOWN = 5  # values of a record in a line

Found = Result | Record
Row = Comparison | Counted | Measurement


@dataclass
class Ledger:
    """What is found so far. ``add`` writes the file.

    Attributes:
        path: None: nothing is written.
        about: everything else that belongs into the file.
        entries: by key, in the order of the suites once written.
    """

    path: Path | None
    about: dict[str, Any]
    entries: dict[Key, Found] = field(default_factory=dict)

    def add(self, row: Found) -> None:
        self.entries[row.key] = row
        self.about["date"] = results.today()
        self.write()

    def has(self, row: Row) -> bool:
        found = self.entries.get(row.key)
        return found is not None and not found.note.startswith(_TO_DO)

    def drop(self, suite: str, but: set[Key]) -> None:
        """Forget what ``suite`` did not yield again: rows that exist no more."""
        gone = [key for key, found in self.entries.items() if found.suite == suite and key not in but]
        for key in gone:
            del self.entries[key]
        if gone:
            self.write()

    def of(self, names: Collection[str]) -> tuple[list[Result], list[Record]]:
        """Results and records of some suites, in the order of the suites."""
        place = {name: index for index, name in enumerate(suites.SUITES)}
        found = sorted(self.entries.values(), key=lambda entry: place.get(entry.suite, len(place)))
        chosen = [entry for entry in found if entry.suite in names]
        rows = [entry for entry in chosen if isinstance(entry, Result)]
        return rows, [entry for entry in chosen if isinstance(entry, Record)]

    def failures(self, names: Collection[str]) -> list[Found]:
        return [found for found in self.entries.values() if found.suite in names and found.failed]

    def write(self) -> None:
        if self.path is not None:
            rows, records = self.of({entry.suite for entry in self.entries.values()})
            results.save(self.path, rows, self.about, records)


def describe(at: Setting, command: str) -> dict[str, Any]:
    """What a result file says of a run, but for the measured rates."""
    return {
        "command": command,
        "date": results.today(),
        "hardware": hardware.describe(at.device),
        "kernels": results.kernels_digest(),
        "multiplied_in_float32": [_dtype_name(dtype) for dtype in at.widened],
        "settings": {
            "device": at.device,
            "dtypes": [_dtype_name(dtype) for dtype in at.dtypes],
            "quick": at.quick,
            "tiny": at.tiny,
            "floors_only": at.floors_only,
        },
    }


def file_to_save(at: Setting, fresh: bool) -> Path:
    """benchmarks/results/<machine>-<date>.json; yesterday's if this run can go on with it, which midnight cut off."""
    about = describe(at, "")
    path, before = results.default_path(about), results.default_path({**about, "date": results.today(-1)})
    if fresh or path.exists() or not before.exists():
        return path
    return path if differences(results.load(before)[-1], about) else before


def _rates(at: Setting, about: dict[str, Any]) -> dict[str, float]:
    no_rates = [f"matmul_{name}" for name in about["multiplied_in_float32"]]  # they are float32's
    return {name: rate for name, rate in hardware.rates(at).items() if name not in no_rates}


def open_ledger(
    path: Path | None, at: Setting, command: str, fresh: bool, say: Callable[[str], None]
) -> Ledger:
    """The ledger of the file at ``path``, continued if it may be.

    A file that cannot be continued is kept beside the new one, under its name with ".old" appended.

    Raises:
        ValueError: another kind of file is there.
        OSError: no file can be written there.
    """
    if path is not None:  # before anything is measured
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"no file can be written in {path.parent}")
    about = describe(at, command)
    if path is not None and path.exists() and not fresh:
        rows, records, old = results.load(path)
        if not (different := differences(old, about)):
            commands = old["command"].split(" && ")
            about["command"] = " && ".join(commands if command in commands else [*commands, command])
            entries: list[Found] = [*rows, *records]
            # Ceilings: the higher of now and before, when the machine may have been busy.
            rates = {n: max(rate, old["rates"].get(n, 0.0)) for n, rate in _rates(at, about).items()}
            return Ledger(path, {**about, "rates": rates}, {found.key: found for found in entries})
        kept = path.with_name(path.name + ".old")
        path.replace(kept)
        say(
            f"{path} has other {', '.join(different)}: all rows are measured anew; the old file is {kept.name}"
        )
    about["rates"] = _rates(at, about)
    return Ledger(path, about)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What makes rows of one run useless for another: kernels, settings, names of hardware and versions."""
    found = [name for name in ("kernels", "settings") if old.get(name) != new[name]]
    before, now = old["hardware"], json.loads(json.dumps(new["hardware"]))
    names = dict.fromkeys((*before, *now))
    return found + [name for name in names if name not in _VOLATILE and before.get(name) != now.get(name)]


def go(names: Sequence[str], at: Setting, ledger: Ledger, console: Console) -> None:
    """Measure what the ledger lacks of these suites. ``console`` gets a line a row, and a bar if it is a terminal."""
    columns = (
        BarColumn(bar_width=14),
        TextColumn("{task.completed:.0f} of {task.total} suites, {task.fields[rows]} rows,"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
    )
    # No thread of its own: it would run beside what is timed.
    quiet = not console.is_terminal
    with Progress(
        *columns, console=console, disable=quiet, auto_refresh=False, transient=True, expand=True
    ) as bar:
        task = bar.add_task("", total=len(names), rows=0)

        def begin(what: str) -> None:
            bar.update(task, description=what, refresh=True)

        for name in names:
            kept = 0
            for found in _suite(name, at, ledger, begin):
                if found is None:
                    kept += 1
                else:
                    ledger.add(found)
                    say(console, line(found, ledger.about))
                bar.update(task, rows=bar.tasks[0].fields["rows"] + 1)
            if kept:
                say(console, f"{name}: {kept} rows kept from {ledger.path}")
            bar.advance(task)


def say(console: Console, text: str) -> None:
    """A line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _suite(name: str, at: Setting, ledger: Ledger, begin: Callable[[str], None]) -> Iterator[Found | None]:
    """What is found of each row; None for one that the ledger has. What goes wrong is a note."""
    whole = Result(name, f"suite {name}", peer="", suite=name)
    clock = at.wall if name in _BY_THE_WALL else at.clock
    seen: set[Key] = set()
    begin(name)
    # Every timed pair begins with a collection; what is alive now need not be looked through again and again.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    torch._dynamo.reset()  # its limit of recompilations counts per function
    torch.manual_seed(0)
    try:
        pending = suites.rows(name)(at)
        for row in pending:
            if row.key in seen:  # it would never be measured
                clash = replace(
                    whole, what=row.what, note="failed: another row of the suite has the same key"
                )
                seen.add(clash.key)
                yield clash
                continue
            seen.add(row.key)
            if ledger.has(row):
                yield None
                continue
            begin(f"{name}: {row.what}")
            yield _measured(row, name, clock)
            del row
            if at.device == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
    except Exception as error:  # of the suite itself: its other rows are unknown
        yield replace(whole, note=_note(error))
    else:
        ledger.drop(name, seen)


def _measured(row: Row, suite: str, clock: Clock) -> Found:
    """The row's result, or why there is none."""
    try:
        return find(row) if isinstance(row, Measurement) else replace(measure(row, clock), suite=suite)
    except Exception as error:
        if isinstance(row, Measurement):
            return Record(row.suite, row.what, dict(row.at), note=_note(error))
        empty = Result(
            row.group, row.what, "", floor=row.floor, limit=row.limit, suite=suite, note=_note(error)
        )
        return replace(empty, peers=[peer.name for peer in row.peers])


def _note(error: Exception) -> str:
    """Why there is no result."""
    if isinstance(error, ImportError) and error.name:
        package = error.name.partition(".")[0]
        if package not in ("benchmarks", "trecvit_kernels"):
            return f"not measured: {package} is not installed"
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"failed: {type(error).__name__}: {text}"


def line(found: Found, about: dict[str, Any]) -> str:
    """One row on one line."""
    if isinstance(found, Result):
        cells = list(report.cells(found, about["rates"]["copy"]))
        return "  ".join(filter(None, [*cells, found.note if found.peer else ""]))
    point = ", ".join(f"{name} {value}" for name, value in found.at.items())
    plain = [(name, value) for name, value in found.values.items() if isinstance(value, int | float)]
    values = ", ".join(f"{name} {value:.4g}" for name, value in plain[:_SHOWN])
    return "  ".join(filter(None, [found.suite, found.what, point, values, found.note]))
