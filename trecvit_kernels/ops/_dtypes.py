"""Which dtype carries the state: float32 for 16- and 32-bit inputs, double width for double inputs."""

from __future__ import annotations

import torch

_STATE = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}
REAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Accumulation dtype for tensors of ``dtype``."""
    return _STATE[dtype]
