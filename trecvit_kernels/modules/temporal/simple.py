"""The two baselines without a memory: a convolution over the last frames, and nothing at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trecvit_kernels.modules import _init
from trecvit_kernels.modules._residual import Residual
from trecvit_kernels.modules.conv import CausalConv1d
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.modules.temporal.base import TemporalBlock, TemporalState
from trecvit_kernels.ops.gelu.op import gelu_tanh


class Conv1dBlock(TemporalBlock):
    r"""``RecurrentBlock`` without its recurrence: linear_out(conv(linear_x(y)) * gelu(linear_y(y))), y = norm(x).

    The convolution is causal and depthwise, as in the recurrent block; channels are mixed by the linear layers around
    it. A model of L such blocks sees L * (conv1d_width - 1) frames back.

    Args:
        width: channels of the tokens. hidden: channels of the convolution.
        conv1d_width: taps over time.
        out_variance: variance of linear_out's initial weights times its fan-in.
        skip: False leaves the residual addition out.

    The state is (tail,): (B, conv1d_width - 1, \*lanes, hidden), oldest first.
    """

    state_names = ("tail",)
    first_linear = "linear_x"
    takes_reset = True

    def __init__(
        self, width: int, hidden: int, *, conv1d_width: int = 4, out_variance: float = 1.0, skip: bool = True
    ) -> None:
        super().__init__(width, skip=skip)
        self.out_variance = out_variance
        self.linear_x = Linear(width, hidden)
        self.linear_y = Linear(width, hidden)
        self.conv_1d = CausalConv1d(hidden, conv1d_width)
        self.linear_out = Linear(hidden, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear layers as in ``RecurrentBlock``; taps N(0, 1 / K), since no recurrence adds frames up behind them."""
        for linear, variance in (
            (self.linear_x, 1.0),
            (self.linear_y, 1.0),
            (self.linear_out, self.out_variance),
        ):
            _init.normal_(linear.weight, fan_in=linear.in_features, variance=variance)
            nn.init.zeros_(linear.bias)
        _init.normal_(self.conv_1d.weight, fan_in=self.conv_1d.weight.shape[0])
        nn.init.zeros_(self.conv_1d.bias)

    def init_state(self, *lead: int, dtype: torch.dtype | None = None) -> TemporalState:
        r"""Zeros for inputs (lead[0], T, \*lead[1:], width), in ``dtype``."""
        weight, (batch, *lanes) = self.conv_1d.weight, lead
        shape = (batch, weight.shape[0] - 1, *lanes, weight.shape[1])
        return (weight.new_zeros(shape, dtype=dtype or weight.dtype),)

    def branch(
        self, y: Tensor, state: TemporalState | None, reset: Tensor | None
    ) -> tuple[Tensor, TemporalState]:
        (tail,) = (None,) if state is None else state
        z, tail = self.conv_1d(self.linear_x(y), tail=tail, reset=reset)
        return self.linear_out(z * gelu_tanh(self.linear_y(y))), (tail,)


class NoTemporal(TemporalBlock):
    """x as it is: no frame knows of another. Without parameters and with an empty state."""

    state_names = ()
    takes_reset = True

    def __init__(self, width: int) -> None:
        super().__init__(width)
        del self.norm  # nothing to be normed

    def init_state(self, *lead: int, dtype: torch.dtype | None = None) -> TemporalState:
        """No tensors."""
        return ()

    def branch(
        self, y: Tensor, state: TemporalState | None, reset: Tensor | None
    ) -> tuple[Tensor, TemporalState]:
        return torch.zeros_like(y), ()

    def _device(self, x: Tensor) -> torch.device:
        return x.device

    def mix(
        self, stream: Residual, *, state: TemporalState | None = None, reset: Tensor | None = None
    ) -> tuple[Residual, TemporalState]:
        """The stream itself."""
        return stream, ()
