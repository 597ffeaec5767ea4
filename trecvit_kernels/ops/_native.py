"""The CPU as a place to run launchers: threads and schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import _native
from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._compiled import Schedule

_ELEMENTS_PER_THREAD = 16_384  # below this, waking another thread costs more than it saves


def threads(elements: int) -> int:
    """Threads for a kernel over so many elements, at most ``torch.get_num_threads()``."""
    return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))


class _CPU:
    """See ``_compiled.Machine``."""

    def schedule(self, x: Tensor, lanes: int) -> Schedule:
        batch, frames = x.shape[:2]
        workers = threads(batch * frames * lanes)
        return Schedule(
            _schedule.FRAMES_PER_STATE, _schedule.segments(batch, lanes, frames, workers), workers
        )

    def threads(self, elements: int) -> int:
        return threads(elements)

    def run(self, launcher: str, device: torch.device, *arguments: Any) -> None:
        getattr(_native, launcher)(*arguments)


CPU = _CPU()
