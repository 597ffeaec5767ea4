"""Spatial attention through PyTorch's own fused attention, on views of the packed projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trecvit_kernels.ops._products import multiplied_in


def spatial_attention(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """Shapes as in ``op.py``; no copy of q, k or v is made, except in float32 on a CPU that has no 16-bit products."""
    if (dtype := multiplied_in(qkv)) != qkv.dtype:
        with torch.autocast(qkv.device.type, enabled=False):  # it would undo the conversion
            return spatial_attention(qkv.to(dtype), num_heads, scale=scale).to(qkv.dtype)
    lead = qkv.shape[:-2]
    # SDPA's fused kernels want exactly (batch, heads, tokens, dim); strides may be anything.
    packed = qkv.reshape(-1, *qkv.shape[-2:]).unflatten(-1, (3, num_heads, -1))
    q, k, v = (part.transpose(1, 2) for part in packed.unbind(2))
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).flatten(-2).reshape(*lead, qkv.shape[-2], qkv.shape[-1] // 3)
