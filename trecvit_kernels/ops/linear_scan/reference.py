"""Linear scan as a plain loop over time: the truth that every kernel is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels.ops._dtypes import state_dtype


def linear_scan(
    a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t along dim 1; shapes as in ``trecvit_kernels.ops.linear_scan``."""
    dtype = state_dtype(b.dtype)
    h = torch.zeros_like(b[:, 0], dtype=dtype) if h0 is None else h0.to(dtype)
    steps = range(b.shape[1])
    states = []
    for t in reversed(steps) if reverse else steps:
        h = a[:, t].to(dtype) * h + b[:, t].to(dtype)
        states.append(h)
    if reverse:
        states.reverse()
    return torch.stack(states, dim=1).to(b.dtype), h
