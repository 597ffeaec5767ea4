"""Block-diagonal matrix products on the tokens' own layout: each head multiplies its slice of the channels.

The batched product reads and writes the heads as strided views, so no transposed copy of the tokens is made.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _heads(x: Tensor, heads: int) -> Tensor:
    """Contiguous (..., C) as a view (H, rows, C/H)."""
    return x.view(-1, heads, x.shape[-1] // heads).transpose(0, 1)


def block_diagonal(x: Tensor, weight: Tensor) -> Tensor:
    """Contiguous x (..., C) times weight (H, C/H, D/H) -> (..., D), in the dtype of x. Records no gradient."""
    heads, _, width = weight.shape
    y = torch.empty((*x.shape[:-1], heads * width), dtype=x.dtype, device=x.device)
    torch.bmm(_heads(x, heads), weight.to(x.dtype), out=_heads(y, heads))
    return y


def block_diagonal_backward(x: Tensor, weight: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Add the gradient of x to ``dx`` in place and return that of weight; all tensors contiguous."""
    heads = weight.shape[0]
    _heads(dx, heads).baddbmm_(_heads(dy, heads), weight.to(x.dtype).transpose(1, 2))
    return torch.bmm(_heads(x, heads).transpose(1, 2), _heads(dy, heads))
