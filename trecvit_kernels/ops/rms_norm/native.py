"""Native CPU backend of the RMS norm: csrc/rms_norm/cpu.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels import _native
from trecvit_kernels.ops._compiled import DTYPE_CODES, dense, empty, pointer
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._native import threads


def rms_norm_forward(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    y = empty(x.shape, dtype=x.dtype)
    if x.numel():
        x, wide = x.contiguous(), dense(scale, state_dtype(x.dtype))
        _native.rms_norm_forward(*_sizes(x, eps), pointer(x), pointer(wide), pointer(y))
    return y


def rms_norm_backward(dy: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of x and scale, the latter in the state dtype."""
    dx, dscale = empty(x.shape, dtype=x.dtype), torch.zeros(scale.shape, dtype=state_dtype(x.dtype))
    if x.numel():
        dy, x, wide = dy.contiguous(), x.contiguous(), dense(scale, dscale.dtype)
        _native.rms_norm_backward(
            *_sizes(x, eps), pointer(x), pointer(wide), pointer(dy), pointer(dx), pointer(dscale)
        )
    return dx, dscale


def _sizes(x: Tensor, eps: float) -> tuple[int, int, int, float, int]:
    channels = x.shape[-1]
    return DTYPE_CODES[x.dtype], x.numel() // channels, channels, eps, threads(x.numel())
