"""Native CPU backend of the GELU: csrc/gelu/cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from trecvit_kernels import _native
from trecvit_kernels.ops._compiled import DTYPE_CODES, empty, pointer
from trecvit_kernels.ops._native import threads


def gelu_forward(x: Tensor) -> Tensor:
    x = x.contiguous()
    y = empty(x.shape, dtype=x.dtype)
    _native.gelu_forward(DTYPE_CODES[x.dtype], x.numel(), threads(x.numel()), pointer(x), pointer(y))
    return y


def gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    dx = empty(x.shape, dtype=x.dtype)
    count = x.numel()
    _native.gelu_backward(DTYPE_CODES[x.dtype], count, threads(count), pointer(x), pointer(dy), pointer(dx))
    return dx
