"""Tables of results, without saying yet how a table is drawn; and numbers as words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.rows import Result

HEADINGS = ("what", "ours", "against", "takes", "ratio", "target", "met", "MB", "GB/s", "% of copy")


@dataclass(frozen=True)
class Table:
    """A table: its first ``text`` columns hold words, the others numbers.

    marks: per row whether a target is met, None where there is none; empty: no row has one.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    text: Sequence[int] = (0,)
    notes: list[str] = field(default_factory=list)
    marks: list[bool | None] = field(default_factory=list)


def cells(result: Result, copy_rate: float | None) -> tuple[str, ...]:
    """One row of the comparison, under ``HEADINGS``; copy_rate: bytes/s of a copy, read and write."""
    ratio = target = mbytes = rate = share = ""
    if result.ratio is not None and result.low is not None and result.high is not None:
        ratio = f"{_times(result.ratio)} {'of it' if result.floor else 'faster'}"
        if result.rounds > 1:
            ratio += f" ({three(result.low)}–{three(result.high)})"
    if result.limit is not None:
        target = f"{'≤' if result.floor else '≥'} {result.limit:.3g}×"
    if result.nbytes is not None:
        mbytes = f"{result.nbytes / 1e6:.1f}"
        if result.ours and result.unit == "s":
            rate = f"{result.nbytes / result.ours / 1e9:.1f}"
            if copy_rate:
                share = f"{100 * result.nbytes / result.ours / copy_rate:.0f}"
    ours = quantity(result.ours, result.unit, _spread(result, result.ours_low, result.ours_high))
    theirs = quantity(result.theirs, result.unit, _spread(result, result.theirs_low, result.theirs_high))
    return (
        result.what,
        ours,
        result.peer or result.note,
        theirs,
        ratio,
        target,
        verdict(result.met),
        mbytes,
        rate,
        share,
    )


def comparisons(title: str, results: Sequence[Result], run: dict[str, Any], brief: bool = False) -> Table:
    """Rows against peers and floors; brief: without bytes and notes."""
    width = HEADINGS.index("MB") if brief or all(r.nbytes is None for r in results) else len(HEADINGS)
    copy_rate = run.get("rates", {}).get("copy")
    return Table(
        title,
        HEADINGS[:width],
        [cells(result, copy_rate)[:width] for result in results],
        text=(0, 2),
        notes=[] if brief else [f"{r.what}: {r.note}" for r in results if r.note and r.peer],
        marks=[result.met for result in results],
    )


def closest(results: Iterable[Result]) -> list[Result]:
    """Of everything measured, in order, the one row that is nearest to missing its target or misses it most."""
    return _closest(results, lambda result: result.what)


def closest_by_name(results: Iterable[Result]) -> list[Result]:
    """The same of every operation: all shapes and dtypes of ``gated_lru forward`` are one."""
    return _closest(results, lambda result: name_of(result.what))


def name_of(what: str) -> str:
    """What a row is about without dtype and shape: up to the first comma."""
    return what.split(",", 1)[0]


def judged(results: Iterable[Result]) -> tuple[int, int]:
    """How many targets are met, and how many there are."""
    verdicts = [result.met for result in results if result.met is not None]
    return sum(verdicts), len(verdicts)


def quantity(value: float | None, unit: str, spread: tuple[float, float] | None = None) -> str:
    """Seconds ("s") or bytes ("B") with a unit that suits them, quartiles in parentheses."""
    if value is None:
        return "–"
    if unit == "B":
        return nbytes(value)
    factor, name = (1e6, "µs") if value < 1e-3 else (1e3, "ms") if value < 1 else (1.0, "s")
    shown = three if value < 1 else "{:.3f}".format
    around = f" ({shown(factor * spread[0])}–{shown(factor * spread[1])})" if spread else ""
    return f"{shown(factor * value)} {name}{around}"


def nbytes(value: float) -> str:
    """Decimal units: 1 GB is 10⁹ bytes."""
    if abs(value) >= 5e7:
        return f"{value / 1e9:.2f} GB"
    return f"{value / 1e6:.2f} MB" if value else "0"


def tera(value: float) -> str:
    return f"{value / 1e12:.3f}" if value < 1e13 else f"{value / 1e12:.2f}"


def three(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(result: Result, low: float | None, high: float | None) -> tuple[float, float] | None:
    """The quartiles, where there are rounds to have some."""
    return (low, high) if result.rounds > 1 and low is not None and high is not None else None


def _times(ratio: float) -> str:
    """A ratio, shares below 1 with three decimals where two would leave one digit."""
    return f"{ratio:.3f}×" if 0 < ratio < 0.1 else f"{three(ratio)}×"


def verdict(met: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[met]


def _closest(results: Iterable[Result], name: Callable[[Result], str]) -> list[Result]:
    chosen: dict[str, tuple[float, Result]] = {}
    for result in results:
        if result.ratio is None or result.limit is None:
            continue
        margin = result.limit / result.ratio if result.floor else result.ratio / result.limit
        key = name(result)
        if key not in chosen or margin < chosen[key][0]:
            chosen[key] = margin, result
    return [result for _, result in chosen.values()]
