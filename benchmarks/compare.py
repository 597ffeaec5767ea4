"""Two result files side by side: what became slower or faster beyond noise, what counts other FLOPs or bytes.

Times of two days on a busy machine do not compare; ratios do, because both sides of a ratio were timed in turn. So a
row's speed is its ratio to its peer (of a floor: the inverse), and its noise is put together from the quartiles of both
files, with a least value. Where another peer was the fastest, the ratio to one that both files tried takes its place,
with more noise: it was called twice only. Records compare as they are:
numbers of FLOPs and bytes exactly, seconds only if the machine is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.rows import Record, Result

LEAST_NOISE = 0.05  # of a ratio: what a machine does between two runs, which the quartiles of neither show
_FEW, _NOISE_OF_FEW = 4, 0.25  # fewer rounds than this have no quartiles to speak of
_NOISE_OF_TRIED = 0.35  # of a ratio to a peer that was only tried
_NOISE_OF_SECONDS = {"p99": 0.5}
_USUAL_NOISE_OF_SECONDS = 0.15
_EXACT = ("flops", "memory")  # suites whose values are counts, whatever their type in JSON
_MACHINE = ("cpu", "cores", "threads", "instruction_set", "gpu")
_CONDITIONS = ("system", "python", "versions", "transparent_huge_pages", "THP_MEM_ALLOC_ENABLE")


@dataclass(frozen=True)
class Change:
    """One value in both files.

    Attributes:
        factor: how many times as fast, or as small, the new one is; 0 if it could not be measured any more.
        noise: share of the factor that may be chance; 0 for counts.
    """

    what: str
    old: str
    new: str
    factor: float
    noise: float

    @property
    def worse(self) -> bool:
        return self.factor < 1 / (1 + self.noise)

    @property
    def better(self) -> bool:
        return self.factor > 1 + self.noise


@dataclass
class Comparison:
    """All that two files say about each other. ``same``: how many values are within noise."""

    slower: list[Change] = field(default_factory=list)
    faster: list[Change] = field(default_factory=list)
    grown: list[Change] = field(default_factory=list)
    shrunk: list[Change] = field(default_factory=list)
    same: int = 0
    open: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def worse(self) -> list[Change]:
        return [*self.slower, *self.grown]


def compare(old: Path, new: Path, least_noise: float = LEAST_NOISE) -> Comparison:
    """Compare two result files. OSError or ValueError if one cannot be read."""
    (rows, records, before), (new_rows, new_records, now) = results.load(old), results.load(new)
    found = Comparison(warnings=_warnings(before, now))
    _compare_rows(rows, new_rows, least_noise, found)
    _compare_records(records, new_records, _same(before, now, _MACHINE), found)
    for changes in (found.slower, found.grown):
        changes.sort(key=lambda change: change.factor)
    for changes in (found.faster, found.shrunk):
        changes.sort(key=lambda change: -change.factor)
    return found


def _compare_rows(old: list[Result], new: list[Result], least_noise: float, found: Comparison) -> None:
    """By group, what and the peer that was timed; what is left by the peers that were tried."""
    before, now = ({(row.group, row.what, row.peer): row for row in rows} for rows in (old, new))
    left = []
    for key, row in now.items():
        other = before.pop(key, None)
        if other is None:
            left.append(row)
        elif row.ratio is not None and other.ratio is not None:
            _file(_ratio_change(other, row, least_noise), found)
    for row in left:
        name = _name(row)
        rivals = [
            key for key, other in before.items() if key[:2] == (row.group, row.what) and _rivals(other, row)
        ]
        if not rivals:
            (found.new if row.ratio is not None else found.open).append(
                name if row.ratio else f"{name}: {row.note}"
            )
            continue
        other = before.pop(rivals[0])
        if row.ratio is None and other.ratio is not None:
            found.slower.append(Change(_name(other), f"{other.ratio:.3g}×", row.note, 0.0, 0.0))
        elif row.ratio is not None and other.ratio is not None:
            if change := _change_by_tried(other, row, least_noise):
                _file(change, found)
            else:
                found.open.append(f"{row.what}: against {other.peer} before, against {row.peer} now")
    found.gone += [_name(row) for row in before.values()]


def _rivals(a: Result, b: Result) -> bool:
    """Whether two rows of the same thing are one, although another peer was fastest, or none could be timed."""
    if a.floor != b.floor:
        return False
    if a.peers and b.peers:
        return bool(set(a.peers) & set(b.peers))
    known = a.peers or b.peers  # one file is from before peers were kept
    return a.peer in known or b.peer in known


def _ratio_change(old: Result, new: Result, least_noise: float) -> Change:
    assert old.ratio is not None and new.ratio is not None
    factor = old.ratio / new.ratio if new.floor else new.ratio / old.ratio
    counted = old.unit != "s"
    noise = 0.0 if counted else max(least_noise, math.hypot(_spread(old), _spread(new)))
    return Change(_name(new), f"{old.ratio:.3g}×", f"{new.ratio:.3g}×", factor, noise)


def _change_by_tried(old: Result, new: Result, least_noise: float) -> Change | None:
    """The change against the fastest peer of one file that the other has tried; None if there is none."""
    for peer in (old.peer, new.peer):
        before, now = _against(old, peer), _against(new, peer)
        if before is not None and now is not None:
            return _ratio_change(before, now, max(least_noise, _NOISE_OF_TRIED))
    return None


def _against(row: Result, peer: str) -> Result | None:
    """The row as if ``peer`` had been timed: its ratio scaled by what both peers took when they were tried."""
    if row.peer == peer:
        return row
    if row.ratio is None or peer not in row.tried or not row.tried.get(row.peer):
        return None
    factor = row.tried[peer] / row.tried[row.peer]
    if row.floor:
        factor = 1 / factor
    low, high = (None if end is None else end * factor for end in (row.low, row.high))
    return dataclasses.replace(row, peer=peer, ratio=row.ratio * factor, low=low, high=high)


def _spread(row: Result) -> float:
    """Distance of the quartiles, as a share of the ratio."""
    if row.ratio is None or row.low is None or row.high is None or row.rounds < _FEW:
        return _NOISE_OF_FEW
    return (row.high - row.low) / row.ratio


def _compare_records(old: list[Record], new: list[Record], same_machine: bool, found: Comparison) -> None:
    before = {record.key: record for record in old}
    for record in new:
        other = before.pop(record.key, None)
        if other is None:
            found.new.append(_name(record))
            continue
        if other.values and not record.values:
            found.slower.append(Change(_name(record), "measured", record.note, 0.0, 0.0))
        for name, value in record.values.items():
            if name in other.values and (
                change := _value_change(record, name, other.values[name], value, same_machine)
            ):
                _file(change, found)
    found.gone += [_name(record) for record in before.values()]


def _value_change(record: Record, name: str, old: Any, new: Any, same_machine: bool) -> Change | None:
    """None: nothing that compares, such as lists, or seconds of two machines."""
    if not all(isinstance(value, int | float) for value in (old, new)):
        return None
    counted = record.suite in _EXACT or all(isinstance(value, int) for value in (old, new))
    if not (counted or same_machine):
        return None
    factor = 1.0 if old == new else math.inf if new == 0 else old / new
    if name.endswith("per_second"):  # more is better
        factor = 1 / factor if factor else math.inf
    noise = 0.0 if counted else _NOISE_OF_SECONDS.get(name, _USUAL_NOISE_OF_SECONDS)
    return Change(f"{_name(record)}: {name}", f"{old:,.6g}", f"{new:,.6g}", factor, noise)


def _file(change: Change, found: Comparison) -> None:
    """Put a change where it belongs; what can be counted has no noise."""
    worse, better = (found.slower, found.faster) if change.noise else (found.grown, found.shrunk)
    if change.worse:
        worse.append(change)
    elif change.better:
        better.append(change)
    else:
        found.same += 1


def _name(row: Result | Record) -> str:
    if isinstance(row, Result):
        return f"{row.what}, against {row.peer}" if row.peer else row.what
    point = ", ".join(f"{name} {value}" for name, value in row.at.items())
    return f"{row.suite}: {row.what}, {point}" if point else f"{row.suite}: {row.what}"


def _same(old: dict[str, Any], new: dict[str, Any], names: Iterable[str]) -> bool:
    return not list(_different(old, new, names))


def _different(old: dict[str, Any], new: dict[str, Any], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        before, now = old["hardware"].get(name), new["hardware"].get(name)
        if isinstance(before, dict) and isinstance(now, dict):  # versions; which are recorded may differ
            pairs = [(package, before[package], now[package]) for package in before if package in now]
        else:
            pairs = [(name, before, now)]
        yield from (f"{what} {one} and {other}" for what, one, other in pairs if one != other)


def _warnings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    for names, sentence in (
        (_MACHINE, "The machines differ, so the ratios need not agree; seconds are not compared"),
        (_CONDITIONS, "Not the same software"),
    ):
        if different := list(_different(old, new, names)):
            found.append(f"{sentence}: {'; '.join(different)}.")
    settings = [run.get("settings") for run in (old, new)]
    if None not in settings and settings[0] != settings[1]:
        found.append(f"Not the same settings: {settings[0]} and {settings[1]}.")
    return found


def show(console: Console, found: Comparison) -> None:
    """Print what differs, the worst first, and a line that counts the rest."""
    for warning in found.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    tables = (
        ("Slower, or failing now", found.slower, "red"),
        ("More FLOPs or bytes", found.grown, "red"),
        ("Faster", found.faster, "green"),
        ("Fewer FLOPs or bytes", found.shrunk, "green"),
    )
    for title, changes, style in tables:
        if changes:
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
            for heading in ("what", "old", "new", "change", "noise"):
                table.add_column(heading, justify="left" if heading == "what" else "right", overflow="fold")
            for change in changes:
                noise = f"± {100 * change.noise:.0f} %" if change.noise else ""
                table.add_row(
                    change.what, change.old, change.new, _percent(change.factor), noise, style=style
                )
            console.print(table)
    for title, names in (("Not compared", found.open), ("New", found.new), ("Gone", found.gone)):
        for name in names:
            console.print(f"{title}: {name}", markup=False)
    console.print(
        f"{len(found.slower)} slower, {len(found.faster)} faster, {len(found.grown)} grown, {len(found.shrunk)} shrunk,"
        f" {found.same} the same within noise, {len(found.open)} not compared, {len(found.new)} new,"
        f" {len(found.gone)} gone"
    )


def _percent(factor: float) -> str:
    """Of the speed, or of the size's inverse."""
    if factor in (0.0, math.inf):
        return "–"
    return f"{100 * (factor - 1):+.2g} %" if abs(factor - 1) < 0.1 else f"{100 * (factor - 1):+.0f} %"
