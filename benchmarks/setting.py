"""Where and how the rows of a run are made."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch

from benchmarks.gpu import timing as gpu_timing
from benchmarks.timing import Budget, Clock, Work, seconds
from trecvit_kernels.ops import _products


@dataclass(frozen=True)
class Setting:
    """One run's choices.

    Attributes:
        device: "cpu" or "cuda".
        dtypes: what to measure in; empty: the usual ones of each suite.
        quick: fewer rounds, no compilation: a look, not a result.
        tiny: sizes at which everything runs in seconds: a test of the suites themselves.
        floors_only: compare with floors only, not with peers.
    """

    device: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = ()
    quick: bool = False
    tiny: bool = False
    floors_only: bool = False

    @functools.cached_property
    def clock(self) -> Clock:
        """Seconds of one call; on a GPU those of the GPU alone, its L2 cache emptied before."""
        return gpu_timing.Stopwatch() if self.device == "cuda" else seconds

    def wall(self, work: Work) -> float:
        """Seconds until a call is done, the host's part included."""
        return gpu_timing.wall(work)

    def budget(self, usual: Budget, quick: Budget) -> Budget:
        return Budget(0.0, 1, 1) if self.tiny else quick if self.quick else usual

    @property
    def widened(self) -> tuple[torch.dtype, ...]:
        """16-bit dtypes in which the device has no instructions for matrix products: they are made in float32."""
        if self.device != "cpu":
            return ()
        return tuple(dtype for dtype in (torch.bfloat16, torch.float16) if dtype in _products.WIDENED)

    def in_dtype(self, dtype: torch.dtype) -> Setting:
        """With floors only where a CPU has no instructions for products in ``dtype``.

        Models of others, and ours on reference ops, take up to 40 times as long there as in float32.
        """
        widened = dtype in self.widened and not self.tiny
        return dataclasses.replace(self, floors_only=True) if widened else self

    def dtypes_or(self, *usual: torch.dtype) -> tuple[torch.dtype, ...]:
        return self.dtypes or usual
