"""Spatial attention through PyTorch's own fused attention, on views of the packed projection."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._products import multiplied_in


def spatial_attention(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """Shapes as in ``op.py``; no copy of q, k or v is made, but for CPUs without products in the dtype of qkv."""
    packed = qkv.reshape(qkv.shape[:-2].numel(), *qkv.shape[-2:])
    # SDPA's fused kernels want exactly (batch, heads, tokens, dim); strides may be anything.
    if multiplied_in(qkv) == qkv.dtype or qkv.numel() == 0:
        q, k, v = _heads(packed, num_heads)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        out = _Widened.apply(packed, num_heads, scale)[0]
    return out.transpose(1, 2).flatten(-2).reshape(*qkv.shape[:-1], qkv.shape[-1] // 3)


def _heads(packed: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (batch, heads, tokens, dim), views of (batch, tokens, 3 H D)."""
    q, k, v = packed.unflatten(-1, (3, num_heads, -1)).transpose(1, 3).unbind(2)
    return q, k, v


class _Widened(torch.autograd.Function):
    """(batch, heads, tokens, dim) of 16-bit qkv (batch, tokens, 3 H D), computed in float32 by PyTorch's CPU kernel.

    For the backward pass it keeps what the kernel would keep of 16-bit tensors: qkv, the result, and the log-sum-exp
    of every query's scores.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(packed: Tensor, num_heads: int, scale: float | None) -> tuple[Tensor, Tensor]:
        wide = _heads(packed.float(), num_heads)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*wide, 0.0, False, scale=scale)
        return out.to(packed.dtype), lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        packed, ctx.num_heads, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(packed, *output)

    @staticmethod
    @_registration.first_derivatives_only
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        packed, out, lse = ctx.saved_tensors
        wide = _heads(packed.float(), ctx.num_heads)
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dout.float(), *wide, out.float(), lse, 0.0, False, scale=ctx.scale
        )
        stacked = torch.stack([g.transpose(1, 2).to(packed.dtype) for g in gradients], dim=2)
        return stacked.flatten(2), None, None
