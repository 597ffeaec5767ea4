"""Batched matrix products on the tokens' own layout: heads are strided views, so no transposed copy is made."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels.ops._memory import empty
from trecvit_kernels.ops._products import multiplied_in


def _heads(x: Tensor, heads: int) -> Tensor:
    """Contiguous (..., C) as a view (H, rows, C/H)."""
    return x.view(-1, heads, x.shape[-1] // heads).transpose(0, 1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Contiguous x (..., C) times weight (H, C/H, D/H) -> (..., D), in the dtype of x."""
    heads, _, width = weight.shape
    y = empty((*x.shape[:-1], heads * width), dtype=x.dtype, device=x.device)
    if (dtype := multiplied_in(x)) != x.dtype:
        _heads(y, heads).copy_(torch.bmm(_heads(x.to(dtype), heads), weight.to(x.dtype).to(dtype)))
    else:
        torch.bmm(_heads(x, heads), weight.to(x.dtype), out=_heads(y, heads))
    return y


def add_input_gradient(dy: Tensor, weight: Tensor, dx: Tensor) -> None:
    """Add dy times weight's transpose to ``dx``; all contiguous."""
    heads, dtype = weight.shape[0], multiplied_in(dy)
    weight = weight.to(dy.dtype).to(dtype).transpose(1, 2)
    if dtype != dy.dtype:
        _heads(dx, heads).add_(torch.bmm(_heads(dy.to(dtype), heads), weight))
    else:
        _heads(dx, heads).baddbmm_(_heads(dy, heads), weight)


def weight_gradient(x: Tensor, dy: Tensor, heads: int) -> Tensor:
    """x transposed times dy, per head (H, C/H, D/H), in their dtype or float32; both contiguous."""
    dtype = multiplied_in(x)
    return torch.bmm(_heads(x.to(dtype), heads).transpose(1, 2), _heads(dy.to(dtype), heads))


def block_diagonal_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    heads, _, width = weight.shape
    y = empty((*x.shape[:-1], heads * width), dtype=x.dtype, device=x.device)
    y.copy_(bias.flatten())
    x = x.contiguous()
    if (dtype := multiplied_in(x)) != x.dtype:
        _heads(y, heads).add_(torch.bmm(_heads(x.to(dtype), heads), weight.to(x.dtype).to(dtype)))
    else:
        _heads(y, heads).baddbmm_(_heads(x, heads), weight.to(x.dtype))
    return y


def block_diagonal_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = dy.contiguous(), x.contiguous()
    dx = product(dy, weight.transpose(1, 2))
    dbias = dy.view(-1, dy.shape[-1]).sum(0, dtype=torch.promote_types(dy.dtype, torch.float32))
    dweight = weight_gradient(x, dy, weight.shape[0])
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype).view(weight.shape[0], -1)
