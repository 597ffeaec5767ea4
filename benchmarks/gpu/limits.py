"""How the time of a run is shared: every group has its part, every row a limit."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping

# Seconds: an alarm that only cost a slow peer its place leaves so much for everything that follows.
_AGAIN = 4.0


class OutOfTime(Exception):
    """A row took longer than it may."""


def deadlines(shares: Mapping[str, float], begins: float, ends: float) -> dict[str, float]:
    """When each group must be done: all groups in order share the time; what one leaves over goes to those behind."""
    total, spent, found = sum(shares.values()), 0.0, {}
    for name, share in shares.items():
        spent += share
        found[name] = begins + (ends - begins) * spent / total
    return found


@contextlib.contextmanager
def at_most(limit: float) -> Iterator[None]:
    """OutOfTime in the block after so many seconds, and every few seconds from then on.

    Whoever tries peers catches what they raise, this too, and goes on: hence again.
    """
    if limit <= 1:
        raise OutOfTime

    def expired(*_: object) -> None:
        raise OutOfTime(f"longer than {limit:.0f} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, limit, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
