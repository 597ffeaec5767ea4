"""Batched matrix products on the tokens' own layout: heads are strided views, so no transposed copy is made."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels.ops._memory import empty


def _heads(x: Tensor, heads: int) -> Tensor:
    """Contiguous (..., C) as a view (H, rows, C/H)."""
    return x.view(-1, heads, x.shape[-1] // heads).transpose(0, 1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Contiguous x (..., C) times weight (H, C/H, D/H) -> (..., D), in the dtype of x."""
    heads, _, width = weight.shape
    y = empty((*x.shape[:-1], heads * width), dtype=x.dtype, device=x.device)
    torch.bmm(_heads(x, heads), weight.to(x.dtype), out=_heads(y, heads))
    return y


def add_input_gradient(dy: Tensor, weight: Tensor, dx: Tensor) -> None:
    """Add dy times weight's transpose to ``dx``; all contiguous."""
    heads = weight.shape[0]
    _heads(dx, heads).baddbmm_(_heads(dy, heads), weight.to(dy.dtype).transpose(1, 2))


def weight_gradient(x: Tensor, dy: Tensor, heads: int) -> Tensor:
    """x transposed times dy, per head (H, C/H, D/H); both contiguous."""
    return torch.bmm(_heads(x, heads).transpose(1, 2), _heads(dy, heads))


def block_diagonal_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    heads, _, width = weight.shape
    y = empty((*x.shape[:-1], heads * width), dtype=x.dtype, device=x.device)
    y.copy_(bias.flatten())
    _heads(y, heads).baddbmm_(_heads(x.contiguous(), heads), weight.to(x.dtype))
    return y


def block_diagonal_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = dy.contiguous(), x.contiguous()
    dx = product(dy, weight.transpose(1, 2))
    dbias = dy.view(-1, dy.shape[-1]).sum(0, dtype=torch.promote_types(dy.dtype, torch.float32))
    dweight = weight_gradient(x, dy, weight.shape[0])
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype).view(weight.shape[0], -1)
