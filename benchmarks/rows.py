"""A row of the report: what is compared with what, how that is measured, and what came out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.timing import Budget, Clock, Work, interleave, quartiles, seconds

Key = tuple[Hashable, ...]
FAILURES = ("not timed", "failed")  # how the note of a row begins whose result is wrong, or that raised
_SLOW_START = 5.0  # seconds; beyond it a first call may have been compilation, which is mentioned


@dataclass(frozen=True)
class Peer:
    """Something that does the same work.

    like_ours: turns its result into ours, outside the timing; None where there is none to compare (floors).
    """

    name: str
    run: Work
    like_ours: Callable[[object], object] | None = lambda result: result


@dataclass(frozen=True)
class Comparison:
    """One row to be measured: ``ours`` against the fastest of ``peers``.

    Attributes:
        group: ops, layer, model, streaming or memory.
        peers: those that raise or compute something else are left out, and named in the row's note.
        check: empty if ours is correct, else what is wrong; nothing is timed then.
        limit: "at least" so many times faster than the peer, or, with ``floor``, "at most" so many times the
            floor's time. None: no target, the number is for information.
        nbytes: least traffic of ours, for GB/s.
        bar: floors only: seconds of the floor -> seconds that count as 1.0.
        tolerance: a peer's largest difference from ours, as a share of the largest value.
        clock: what times a call; None: the run's.
    """

    group: str
    what: str
    ours: Work
    peers: Sequence[Peer]
    check: Callable[[], str]
    limit: float | None = None
    floor: bool = False
    nbytes: int | None = None
    bar: Callable[[float], float] | None = None
    budget: Budget = field(default_factory=Budget)
    tolerance: float = 1e-3
    clock: Clock | None = None

    @property
    def key(self) -> Key:
        """By which the row's result is found again in a result file: unique, and the same in every run."""
        return self.group, self.what, tuple(peer.name for peer in self.peers)


@dataclass(frozen=True)
class Counted:
    """One row of numbers that need no clock, such as bytes: ``ours`` against ``theirs``, smaller is better.

    Attributes:
        group, what: as in ``Comparison``.
        peer: what ``theirs`` is the number of.
        limit: at most so many times theirs; None: no target.
        unit: of both numbers.
    """

    group: str
    what: str
    ours: Callable[[], float]
    peer: str
    theirs: Callable[[], float]
    limit: float | None = None
    unit: str = "B"
    floor: ClassVar[bool] = True

    @property
    def peers(self) -> Sequence[Peer]:
        return (Peer(self.peer, self.theirs, None),)

    @property
    def key(self) -> Key:
        """As that of a ``Comparison``."""
        return self.group, self.what, (self.peer,)


@dataclass(frozen=True)
class Result:
    """A measured row, as it goes into the JSON file. Values are in seconds, or bytes (``unit``).

    ratio: how many times faster than the peer; of a floor, how many times its value. low and high are the
    quartiles of the ratio over the rounds. tried: seconds of every peer's second call, by name. peers: names of all,
    whether they could run or not. suite: the one that yielded the row; "" in files from before there were suites.
    ours_low and ours_high: quartiles of ours over the rounds; theirs_low and theirs_high: of theirs.
    """

    group: str
    what: str
    peer: str
    ours: float | None = None
    theirs: float | None = None
    unit: str = "s"
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    floor: bool = False
    limit: float | None = None
    nbytes: int | None = None
    rounds: int = 0
    note: str = ""
    tried: dict[str, float] = field(default_factory=dict)
    peers: Sequence[str] = ()
    suite: str = ""
    ours_low: float | None = None
    ours_high: float | None = None
    theirs_low: float | None = None
    theirs_high: float | None = None

    @property
    def key(self) -> Key:
        """That of the ``Comparison``."""
        return self.group, self.what, tuple(self.peers)

    @property
    def failed(self) -> bool:
        """Whether ours raised or gave a wrong result."""
        return self.note.startswith(FAILURES)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a measurement."""
        if self.limit is None or self.ratio is None:
            return None
        return self.ratio <= self.limit if self.floor else self.ratio >= self.limit


@dataclass(frozen=True)
class Measurement:
    """Values to be found that are no ratio: FLOPs, bytes, latencies. ``run`` finds them.

    Attributes:
        suite, what: which suite, and of what.
        at: the point at which they are taken, such as {"frames": 32, "mode": "training"}.
        run: returns the values by name, numbers or lists of numbers, in SI units; a "note" may be among them.
    """

    suite: str
    what: str
    at: Mapping[str, int | str]
    run: Callable[[], Mapping[str, Any]]

    @property
    def key(self) -> Key:
        """By which the record is found again in a result file: unique, and the same in every run."""
        return self.suite, self.what, tuple(sorted(self.at.items()))


@dataclass(frozen=True)
class Record:
    """A measured ``Measurement``, as it goes into the JSON file."""

    suite: str
    what: str
    at: dict[str, int | str]
    values: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> Key:
        """That of the ``Measurement``."""
        return self.suite, self.what, tuple(sorted(self.at.items()))

    @property
    def failed(self) -> bool:
        """Whether finding the values raised."""
        return self.note.startswith(FAILURES)


def find(row: Measurement) -> Record:
    """Find the values of a measurement."""
    values = dict(row.run())
    return Record(row.suite, row.what, dict(row.at), values, note=values.pop("note", ""))


def count(row: Counted) -> Result:
    """Find both numbers."""
    ours, theirs = float(row.ours()), float(row.theirs())
    ratio = ours / theirs
    return Result(
        row.group,
        row.what,
        row.peer,
        ours=ours,
        theirs=theirs,
        unit=row.unit,
        ratio=ratio,
        low=ratio,
        high=ratio,
        floor=row.floor,
        limit=row.limit,
        rounds=1,
        peers=[row.peer],
    )


def measure(row: Comparison | Counted, clock: Clock = seconds) -> Result:
    """Check, find the fastest peer, and time ours against it, by the row's own clock if it has one.

    What is counted is counted.
    """
    if isinstance(row, Counted):
        return count(row)
    clock, names = row.clock or clock, [peer.name for peer in row.peers]
    empty = Result(
        row.group, row.what, peer="", floor=row.floor, limit=row.limit, nbytes=row.nbytes, peers=names
    )
    if wrong := row.check():
        return _replace(empty, note=f"not timed, wrong result: {wrong}")
    began = time.perf_counter()
    result = row.ours()
    warm_up = time.perf_counter() - began
    fastest, best, notes, tried = None, float("inf"), [], {}
    for peer in row.peers:
        took, note = _try(peer, result, row.tolerance, clock, alone=len(row.peers) == 1)
        if note:
            notes.append(f"{peer.name}: {note}")
        if took is not None:
            tried[peer.name] = took
        if took is not None and took < best:
            fastest, best = peer, took
    del result
    if fastest is None:
        return _replace(empty, note="; ".join(notes) or "no peer could run")
    pair = interleave(row.ours, fastest.run, row.budget, warm_up + best, clock)
    bar = row.bar or (lambda value: value)
    theirs = [bar(value) for value in pair.theirs]
    ratios = [a / b if row.floor else b / a for a, b in zip(pair.ours, theirs)]
    low, ratio, high = quartiles(ratios)
    ours_low, ours, ours_high = quartiles(pair.ours)
    theirs_low, their, theirs_high = quartiles(theirs)
    return _replace(
        empty,
        peer=fastest.name,
        ours=ours,
        ours_low=ours_low,
        ours_high=ours_high,
        theirs=their,
        theirs_low=theirs_low,
        theirs_high=theirs_high,
        ratio=ratio,
        low=low,
        high=high,
        rounds=len(ratios),
        note="; ".join(notes),
        tried=tried if len(tried) > 1 else {},
    )


def _try(peer: Peer, ours: object, tolerance: float, clock: Clock, alone: bool) -> tuple[float | None, str]:
    """Seconds of a call (None: not usable), the second one if peers compete; and what to say about the peer."""
    try:
        began = time.perf_counter()
        result = peer.run()
        first = time.perf_counter() - began
        if peer.like_ours is not None and (gap := disagreement(ours, peer.like_ours(result))) > tolerance:
            return None, f"left out, its result is off by {gap:.1e} of the largest value"
        del result
        again = first if alone and (first < _SLOW_START or peer.like_ours is None) else clock(peer.run)
        compiles = first > _SLOW_START and first > 3 * again
        return again, f"first call {first:.0f} s (compilation)" if compiles else ""
    except Exception as error:  # a peer that cannot run must not stop the report
        return (
            None,
            f"left out, {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}",
        )


def disagreement(ours: object, theirs: object) -> float:
    """Largest difference over tensors in order, as a share of the largest value of ours."""
    gap = 0.0
    mine = [t for t in tree_leaves(ours) if isinstance(t, Tensor)]
    other = [t for t in tree_leaves(theirs) if isinstance(t, Tensor)]
    if len(mine) != len(other):
        raise ValueError(f"{len(other)} results instead of {len(mine)}")
    for a, b in zip(mine, other):
        if a.shape != b.shape:
            raise ValueError(f"result of shape {tuple(b.shape)} instead of {tuple(a.shape)}")
        difference = (a.detach() - b.detach()).abs().max().item()
        scale = a.detach().abs().max().item()
        share = difference / scale if scale else difference
        if share != share:
            return float("inf")
        gap = max(gap, share)
    return gap


def within_reference(ours: Sequence[Tensor], reference: Sequence[Tensor], truth: Sequence[Tensor]) -> str:
    """Empty if ours errs at most twice as much as the reference in the same dtype; truth is float64.

    The floor beside it is 16 units of the result's dtype, relative to the largest value.
    """
    for index, (a, b, exact) in enumerate(zip(ours, reference, truth, strict=True)):
        scale = exact.abs().max().item()
        error = (a.detach().double() - exact).abs().max().item()
        allowed = 2 * (b.detach().double() - exact).abs().max().item() + 16 * torch.finfo(a.dtype).eps * scale
        if not error <= allowed:
            return f"result {index} is off by {error:.1e}, allowed {allowed:.1e}"
    return ""


def _replace(result: Result, **changes: object) -> Result:
    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]
