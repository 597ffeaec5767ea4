"""The recurrent block between its linear layers, step by step in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops.block_diagonal.reference import block_diagonal
from trecvit_kernels.ops.gated_lru.reference import gated_lru

State = tuple[Tensor, Tensor]


def causal_conv1d(
    u: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution over dim 1 that never reads across a reset.

    u: (B, T, *lanes, C). weight: (K, C), last tap = current frame. bias: (C). tail: (B, K-1, *lanes, C), the
    frames before u, oldest first (zeros if None). reset: bool (B, T).
    Returns the output like u and the new tail, in which frames before the last reset are zero.
    """
    taps, frames = weight.shape[0], u.shape[1]
    dtype = state_dtype(u.dtype)
    if tail is None:
        tail = u.new_zeros(u.shape[0], taps - 1, *u.shape[2:])
    padded = torch.cat([tail.to(u.dtype), u], dim=1)
    # Segment number of every padded frame: a tap counts only if it lies in its output's segment.
    if reset is None:
        segment = torch.zeros(u.shape[0], frames + taps - 1, dtype=torch.long, device=u.device)
    else:
        segment = F.pad(reset.long().cumsum(1), (taps - 1, 0))

    out = torch.zeros_like(u, dtype=dtype)
    for k in range(taps):
        same = segment[:, k : k + frames] == segment[:, taps - 1 :]
        # Selected before the product: a NaN behind a reset must not reach the gradient of the weight either.
        window = torch.where(same.reshape(*same.shape, *[1] * (u.ndim - 2)), padded[:, k : k + frames], 0)
        out = out + window.to(dtype) * weight[k].to(dtype)
    if bias is not None:
        out = out + bias.to(dtype)
    new_tail = padded[:, frames:]
    keep = segment[:, frames:] == segment[:, -1:]
    return out.to(u.dtype), torch.where(keep.reshape(*keep.shape, *[1] * (u.ndim - 2)), new_tail, 0)


def recurrent_mixer(
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None = None,
    *,
    state: State | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Shapes and meaning as in ``trecvit_kernels.ops.recurrent_mixer``."""
    h0, tail = (None, None) if state is None else state
    x, tail = causal_conv1d(u, conv_weight, conv_bias, tail, reset)
    gate_x = block_diagonal(x, gate_x_weight, gate_x_bias)
    gate_a = block_diagonal(x, gate_a_weight, gate_a_bias)
    y, h_last = gated_lru(x, gate_x, gate_a, a_param, a_imag, h0=h0, reset=reset)
    return y * F.gelu(v, approximate="tanh"), (h_last, tail)
