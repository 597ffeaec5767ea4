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


def framed(x: Tensor) -> Tensor:
    """(..., N, C) as (B, T, N, C) with contiguous channels: a view where the strides allow it, else a copy."""
    lead = x.shape[:-2]
    if len(lead) != 2:
        outer = lead[0] if len(lead) > 1 else 1
        x = x.reshape(outer, lead[1:].numel() if len(lead) > 1 else lead.numel(), *x.shape[-2:])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
