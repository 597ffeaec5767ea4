"""Self-attention inside a frame, written out: the truth that every kernel is held to."""

from __future__ import annotations

from torch import Tensor

from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._registration import without_autocast


def spatial_attention(qkv: Tensor, num_heads: int, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v per frame and head; shapes as in ``trecvit_kernels.ops.spatial_attention``."""
    q, k, v = qkv.to(state_dtype(qkv.dtype)).unflatten(-1, (3, num_heads, -1)).unbind(-3)
    q, k, v = (part.transpose(-3, -2) for part in (q, k, v))  # (..., H, N, D)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(qkv.device.type):
        weights = (scale * q @ k.transpose(-1, -2)).softmax(dim=-1)
        out = weights @ v
    return out.transpose(-3, -2).flatten(-2).to(qkv.dtype)
