"""TRecViT in plain eager PyTorch: what this package's model is without its ops.

Written as the model's official code and most ports write it: every step of the recurrent block is a PyTorch call on
all frames, gates are computed for all frames at once, and the recurrence is a loop with one fused multiply-add per
frame. What PyTorch has a function for is that function, ``F.scaled_dot_product_attention`` included. Autograd keeps
what each call needs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ops.peers import eager_gated_lru
from trecvit_kernels import TRecViT
from trecvit_kernels.models.trecvit import Block
from trecvit_kernels.modules import RecurrentBlock, SpatialBlock
from trecvit_kernels.modules.gated_lru import BlockDiagonalLinear


def plain(model: TRecViT) -> TRecViT:
    """``model`` itself, its parts replaced by plain ones that hold the same parameters.

    Whole videos only: it has no states, so ``init_state`` and ``Stream`` raise ValueError.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        block.add_module("time", _PlainTime(block.time))
        block.add_module("space", _PlainSpace(block.space))
    for name in ("embedding", "pre_logits", "cls_head"):
        if (linear := getattr(model, name)) is not None:
            setattr(model, name, _linear(linear))
    return model


class _PlainTime(nn.Module):
    """``RecurrentBlock``: (B, T, N, width) -> the same, and no state."""

    def __init__(self, block: RecurrentBlock) -> None:
        super().__init__()
        self.norm, self.conv_1d, self.rg_lru = block.norm, block.conv_1d, block.rg_lru
        self.linear_x, self.linear_y = _linear(block.linear_x), _linear(block.linear_y)
        self.linear_out = _linear(block.linear_out)

    def init_state(self, *lead: int) -> None:
        raise ValueError("plain TRecViT has no state: it takes whole videos only")

    def forward(self, x: Tensor, *, state: None = None) -> tuple[Tensor, None]:
        y = F.rms_norm(x, x.shape[-1:], self.norm.scale + 1, self.norm.eps)
        u, v = self._convolve(self.linear_x(y)), self.linear_y(y)
        lru = self.rg_lru
        gates = _block_diagonal(u, lru.input_gate), _block_diagonal(u, lru.a_gate)
        h = eager_gated_lru(u, *gates, lru.a_param, lru.a_imag_param)
        return x + self.linear_out(h * F.gelu(v, approximate="tanh")), None

    def _convolve(self, x: Tensor) -> Tensor:
        taps = self.conv_1d.weight
        padded = F.pad(x, (0, 0, 0, 0, len(taps) - 1, 0))
        shifted = (tap * padded[:, k : k + x.shape[1]] for k, tap in enumerate(taps))
        return sum(shifted, self.conv_1d.bias)


class _PlainSpace(nn.Module):
    """``SpatialBlock`` on (..., N, width)."""

    def __init__(self, block: SpatialBlock) -> None:
        super().__init__()
        self.heads, self.dropout = block.num_heads, block.dropout
        self.norm_1, self.norm_2 = block.norm_1, block.norm_2
        self.qkv, self.out = _linear(block.qkv), _linear(block.out)
        self.mlp_in, self.mlp_out = _linear(block.mlp_in), _linear(block.mlp_out)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.flatten(0, -4).transpose(1, 2) for part in qkv.unbind(-3))  # (frames, heads, N, D)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).view_as(x)
        x = x + self._drop(self.out(mixed))
        hidden = self._drop(F.gelu(self.mlp_in(self.norm_2(x)), approximate="tanh"))
        return x + self._drop(self.mlp_out(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _block_diagonal(x: Tensor, gate: BlockDiagonalLinear) -> Tensor:
    heads = x.unflatten(-1, (gate.weight.shape[0], -1))
    return (torch.einsum("...hi,hij->...hj", heads, gate.weight) + gate.bias).flatten(-2)


def _linear(ours: nn.Linear) -> nn.Linear:
    """``nn.Linear`` itself with the parameters of ``ours``."""
    linear = nn.Linear(ours.in_features, ours.out_features, device="meta")
    linear.weight, linear.bias = ours.weight, ours.bias
    return linear
