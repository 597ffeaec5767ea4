"""CUDA backend: csrc/spatial_attention/*.cu. Frames of up to 256 tokens, float32, bfloat16 and float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trecvit_kernels.ops._compiled import DTYPE_CODES, View, pointer
from trecvit_kernels.ops._cuda import GPU
from trecvit_kernels.ops._views import framed


def _view(x: Tensor) -> View:
    """Address and strides of batch, frame and token of (B, T, N, C)."""
    return x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)


def _arguments(qkv: Tensor, heads: int, scale: float, out: Tensor, lse: Tensor | None) -> tuple[Any, ...]:
    batch, frames, tokens, channels = qkv.shape
    head_dim = channels // (3 * heads)
    sizes = (batch, frames, tokens, heads, head_dim)
    return DTYPE_CODES[qkv.dtype], *sizes, scale, _view(qkv), pointer(out), pointer(lse)


def spatial_attention_forward(
    qkv: Tensor, num_heads: int, scale: float, save_lse: bool
) -> tuple[Tensor, Tensor]:
    """out (..., N, H D) and lse (..., H, N), base 2 and float32; (..., H, 0) unless ``save_lse``."""
    *lead, tokens, channels = qkv.shape
    out = torch.empty((*lead, tokens, channels // 3), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((*lead, num_heads, tokens if save_lse else 0), dtype=torch.float32, device=qkv.device)
    if out.numel():
        qkv = framed(qkv)
        arguments = _arguments(qkv, num_heads, scale, out, lse if save_lse else None)
        GPU.run("spatial_attention_forward", qkv.device, *arguments)
    return out, lse


def spatial_attention_backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, scale: float
) -> Tensor:
    """dqkv (..., N, 3 H D), packed as qkv."""
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if dqkv.numel():
        dout, qkv, out, lse = framed(dout), framed(qkv), out.contiguous(), lse.contiguous()
        arguments = _arguments(qkv, num_heads, scale, out, lse)
        GPU.run("spatial_attention_backward", qkv.device, *arguments, _view(dout), pointer(dqkv))
    return dqkv
