"""How kernels see a (B, T, *lanes, C) tensor: batch, frame and row strides, channels contiguous."""

from __future__ import annotations

import torch
from torch import Tensor


def row_stride(x: Tensor) -> int | None:
    """The one stride of the dimensions between T and C, or None if there is none such or C is not contiguous."""
    if x.is_contiguous():
        return x.shape[-1]
    if x.shape[-1] != 1 and x.stride(-1) != 1:
        return None
    expected = stride = None
    for size, step in zip(reversed(x.shape[2:-1]), reversed(x.stride()[2:-1]), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = step
        elif step != expected:
            return None
        expected = step * size
    return x.shape[-1] if stride is None else stride


def readable(x: Tensor) -> Tensor:
    """``x`` (B, T, *lanes, C) itself if C is contiguous and lanes collapse to one stride, else a contiguous copy."""
    return x if row_stride(x) is not None else x.contiguous()


def dense(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous, in ``dtype``, no lazy conjugate; None stays None."""
    return None if x is None else x.to(dtype).resolve_conj().resolve_neg().contiguous()
