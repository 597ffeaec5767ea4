"""Memory of the native backends' outputs.

Large outputs come from memory that this package maps (with huge pages) and keeps when they are freed: page faults of
fresh memory would take longer than most ops. Up to ``TRECVIT_KEEP_MB`` megabytes (1024 by default, 0 for none) of
freed outputs are kept; ``release_cpu_memory`` gives them back to the system.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from trecvit_kernels import _native

_LEAST_BYTES = 2**20  # smaller ones are as well served by PyTorch's allocator
# Type codes and bits of DLPack.
_DLPACK_TYPES = {
    torch.float32: (2, 32),
    torch.bfloat16: (4, 16),
    torch.float16: (2, 16),
    torch.float64: (2, 64),
    torch.complex64: (5, 64),
    torch.complex128: (5, 128),
}


def _limit_from_environment() -> int:
    text = os.environ.get("TRECVIT_KEEP_MB", "1024")
    if not text.isdecimal():
        raise ValueError(f"TRECVIT_KEEP_MB must be a whole number of megabytes, got {text!r}")
    return int(text) * 2**20


# The sanitizers watch the C library's memory, not ours.
_ENABLED = _limit_from_environment() > 0 and not _native.sanitizers
_native.limit_kept_memory(_limit_from_environment())


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """A contiguous tensor to be written whole. On other devices than the CPU it is PyTorch's."""
    bytes_ = torch.Size(shape).numel() * dtype.itemsize
    if not _ENABLED or bytes_ < _LEAST_BYTES or (device is not None and device.type != "cpu"):
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    x = torch.utils.dlpack.from_dlpack(_native.empty(list(shape), *_DLPACK_TYPES[dtype]))
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if fills and torch.are_deterministic_algorithms_enabled():
        x.fill_(torch.nan)  # as torch.empty does
    return x


def release_cpu_memory() -> None:
    """Give the memory that is kept for later outputs back to the system."""
    _native.limit_kept_memory(0)
    _native.limit_kept_memory(_limit_from_environment())
