"""What the backends in compiled code share, `native` (C++) and `cuda`: how tensors are described to the launchers.

A room's ``_compiled.py`` allocates results and lists the launchers' arguments in the order of
csrc/bindings/arguments.h; the ``Machine`` says where they run.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trecvit_kernels.ops._memory import empty as empty
from trecvit_kernels.ops._views import dense as dense
from trecvit_kernels.ops._views import readable as readable
from trecvit_kernels.ops._views import row_stride

# Codes of csrc/common/dtype.h.
DTYPE_CODES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float64: 3,
    torch.complex64: 4,
    torch.complex128: 5,
}

View = tuple[int, int, int, int]  # address and the strides of batch, frame and row, in elements


class Schedule(NamedTuple):
    """Frames per saved state, segments of time, threads of the CPU."""

    frames_per_state: int
    segments: int
    threads: int


class Machine(Protocol):
    """Where launchers run: the CPU (ops/_native.py) or an NVIDIA GPU (ops/_cuda.py)."""

    def schedule(self, x: Tensor, lanes: int) -> Schedule:
        """For a recurrence over (B, T, lanes), a gate or decay of the dtype of ``x`` per lane."""

    def threads(self, elements: int) -> int:
        """Threads of the CPU for a kernel over so many elements."""

    def run(self, launcher: str, device: torch.device, *arguments: Any) -> None:
        """Call a launcher; on a GPU it has been started when this returns."""


def view(x: Tensor) -> View:
    """Address and strides of a tensor that ``readable`` accepted."""
    row = row_stride(x)
    assert row is not None
    return x.data_ptr(), x.stride(0), x.stride(1), row


def pointer(x: Tensor | None) -> int:
    """Address of a dense tensor; 0 for None."""
    return 0 if x is None else x.data_ptr()
