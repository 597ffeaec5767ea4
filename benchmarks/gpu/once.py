"""Things that are made when they are first asked for: making a row costs nothing then, and can lose only itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from benchmarks.timing import Work

T = TypeVar("T")


class Once(Generic[T]):
    """What ``make`` returns, made at the first call. Also what it raised: what ran out of time once would again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._made: list[T] = []
        self._raised: Exception | None = None

    def __call__(self) -> T:
        if self._make is not None:
            try:
                self._made.append(self._make())
            except Exception as error:
                self._raised = error.with_traceback(None)  # whose frames hold tensors
            self._make = None  # and what it holds
        if self._raised is not None:
            raise self._raised
        return self._made[0]


def lazily(make: Callable[[], Work]) -> Work:
    """The work that ``make`` returns, prepared in its first call, which is never timed for a result."""
    work = Once(make)
    return lambda: work()()
