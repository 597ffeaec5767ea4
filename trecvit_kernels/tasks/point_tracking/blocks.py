"""One layer of the tracker: recurrent block and gated MLP over each tube of tokens, then a ViT block in each frame."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels import ops
from trecvit_kernels.models.state import LayerState
from trecvit_kernels.modules import RecurrentBlock, RMSNorm, _init
from trecvit_kernels.modules._residual import Residual
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.ops.gelu.op import gelu_tanh
from trecvit_kernels.tasks.point_tracking.config import PointTrackerConfig

EPS = 1e-6


class GatedMLP(nn.Module):
    """x + down(gelu(gate) * value) with [gate | value] = up(norm(x)), on (..., width).

    The channel mixing of Griffin (arXiv 2402.19427): RMS norm, tanh GELU. ``up`` has both halves in one weight
    (2 * hidden, width).

    Args:
        width: channels. hidden: channels of each half.
        out_variance: variance of the last layer's initial weights times its fan-in.
    """

    def __init__(self, width: int, hidden: int, *, out_variance: float = 1.0) -> None:
        super().__init__()
        self.out_variance = out_variance
        self.norm = RMSNorm(width)
        self.up = Linear(width, 2 * hidden)
        self.down = Linear(hidden, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights with Griffin's variances, biases 0."""
        for linear, variance in ((self.up, 1.0), (self.down, self.out_variance)):
            _init.normal_(linear.weight, fan_in=linear.in_features, variance=variance)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> the same."""
        return self.mix(Residual(x)).total()

    def mix(self, stream: Residual) -> Residual:
        """``forward`` with the residual addition left to whoever comes next."""
        x, y = stream.normed(self.norm)
        gate, value = self.up(y).chunk(2, dim=-1)
        return Residual(x, self.down(gelu_tanh(gate) * value))


class ViTBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on (..., N, width): every token of a frame sees all others.

    As ``modules.SpatialBlock``, but with the exact (erf) GELU of torchvision's ViT, which the official PyTorch port of
    TAPNext is made of. LayerNorm eps 1e-6, no dropout.

    Args:
        width: channels. mlp_dim: hidden channels of the MLP. num_heads: attention heads, dividing width.
    """

    def __init__(self, width: int, mlp_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_1 = nn.LayerNorm(width, eps=EPS)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, eps=EPS)
        self.mlp_in = Linear(width, mlp_dim)
        self.mlp_out = Linear(mlp_dim, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights (q, k, v each on its own); MLP biases N(0, 1e-6), the others 0."""
        width = self.out.in_features
        for linear in (self.qkv, self.out, self.mlp_in, self.mlp_out):
            fan_out = width if linear is self.qkv else linear.out_features
            _init.xavier_uniform_(linear.weight, linear.in_features, fan_out)
        for linear in (self.qkv, self.out):
            nn.init.zeros_(linear.bias)
        for linear in (self.mlp_in, self.mlp_out):
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., N, width) -> the same."""
        return self.mix(Residual(x)).total()

    def mix(self, stream: Residual) -> Residual:
        """``forward`` with the last residual addition left to whoever comes next."""
        x, y = stream.normed(self.norm_1)
        branch = self.out(ops.spatial_attention(self.qkv(y), self.num_heads))
        x, y = Residual(x, branch).normed(self.norm_2)
        return Residual(x, self.mlp_out(F.gelu(self.mlp_in(y))))


class TrackerBlock(nn.Module):
    """``time`` mixes along each tube of tokens, ``mlp`` inside each token, ``space`` inside each frame."""

    def __init__(self, config: PointTrackerConfig) -> None:
        super().__init__()
        variance = 2.0 / config.depth
        self.time = RecurrentBlock(
            config.width,
            config.lru_width,
            config.num_heads,
            conv1d_width=config.conv1d_width,
            min_radius=config.min_radius,
            out_variance=variance,
        )
        self.mlp = GatedMLP(config.width, config.mlp_dim, out_variance=variance)
        self.space = ViTBlock(config.width, config.mlp_dim, config.num_heads)

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, Tensor, LayerState]:
        """x (B, T, N, width) -> x before the ViT block, x after it, state after the last frame."""
        stream, state = self.time.mix(Residual(x), state=state)
        after_time = self.mlp.mix(stream).total()
        return after_time, self.space(after_time), state

    def mix(self, stream: Residual, state: LayerState | None = None) -> tuple[Residual, LayerState]:
        """``forward`` on a stream whose last addition is still to be made, and so on."""
        stream, state = self.time.mix(stream, state=state)
        return self.space.mix(self.mlp.mix(stream)), state
