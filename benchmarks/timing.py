"""Two things timed side by side, so that whatever slows the machine down slows both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], object]
Clock = Callable[[Work], float]  # seconds of one call


@dataclass(frozen=True)
class Budget:
    """How long to measure one pair: until ``seconds`` are spent, within these numbers of rounds."""

    seconds: float = 1.5
    least: int = 5
    most: int = 60

    def rounds(self, seconds_per_round: float) -> int:
        return max(self.least, min(self.most, int(self.seconds / max(seconds_per_round, 1e-9))))


@dataclass(frozen=True)
class Pair:
    """Seconds of both sides, one entry per round; in a round the two ran directly after each other."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def ratios(self) -> list[float]:
        """ours / theirs, round by round."""
        return [a / b for a, b in zip(self.ours, self.theirs)]


def quartiles(values: list[float] | tuple[float, ...]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile (of one value: that value, three times)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def seconds(work: Work) -> float:
    """One call. What it returns is freed inside the time: returning memory is part of the price."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleave(ours: Work, theirs: Work, budget: Budget, pilot: float, clock: Clock = seconds) -> Pair:
    """A B A B ..., with the garbage collector off, ``pilot`` being the seconds of a warm-up run of both."""
    if 4 * pilot < budget.seconds:  # first calls are slow: once more where that costs little
        pilot = clock(ours) + clock(theirs)
    rounds = budget.rounds(pilot)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        pairs = [(clock(ours), clock(theirs)) for _ in range(rounds)]
    finally:
        if enabled:
            gc.enable()
    return Pair(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))
