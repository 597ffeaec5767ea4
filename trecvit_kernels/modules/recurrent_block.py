"""Time mixing of TRecViT: Griffin's recurrent block with pre-norm and skip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trecvit_kernels import ops
from trecvit_kernels._checks import check_frames, check_like, check_tensor
from trecvit_kernels.modules import _init
from trecvit_kernels.modules._residual import Residual
from trecvit_kernels.modules.conv import CausalConv1d
from trecvit_kernels.modules.gated_lru import MAX_RADIUS, GatedLRU
from trecvit_kernels.modules.linear import Linear, call_linear, check_weights
from trecvit_kernels.modules.norm import RMSNorm, norm_recipe
from trecvit_kernels.ops._dtypes import REAL, state_dtype
from trecvit_kernels.ops._recipe import worthwhile
from trecvit_kernels.ops.recurrent_mixer import op as mixer

State = tuple[Tensor, Tensor]


class RecurrentBlock(nn.Module):
    r"""x + linear_out(mixer(linear_x(norm(x)), linear_y(norm(x)))) with the mixer of ``ops.recurrent_mixer``.

    The mixer is causal convolution, gated LRU and GELU gate over time, per token; tokens keep their layout. For the
    backward pass it keeps x, the mixer's two inputs and one state every few frames; norm and mixer run again there.

    Args:
        width: channels of the tokens. lru_width: channels of the recurrence.
        num_heads: blocks of the gates' weights.
        conv1d_width: taps of the convolution over time.
        complex_lru, min_radius, max_radius: as in ``GatedLRU``.
        out_variance: variance of linear_out's initial weights times its fan-in (TRecViT: 2 / depth).
    """

    def __init__(
        self,
        width: int,
        lru_width: int,
        num_heads: int,
        *,
        conv1d_width: int = 4,
        complex_lru: bool = False,
        min_radius: float = 0.6,
        max_radius: float = MAX_RADIUS,
        out_variance: float = 1.0,
    ) -> None:
        super().__init__()
        self.width, self.out_variance = width, out_variance
        self.norm = RMSNorm(width)
        self.linear_x = Linear(width, lru_width)
        self.linear_y = Linear(width, lru_width)
        self.conv_1d = CausalConv1d(lru_width, conv1d_width)
        self.rg_lru = GatedLRU(
            lru_width, num_heads, complex_lru=complex_lru, min_radius=min_radius, max_radius=max_radius
        )
        self.linear_out = Linear(lru_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Official initialisation of the three linear layers; the others initialise themselves."""
        reset_projections(self.linear_x, self.linear_y, self.linear_out, self.out_variance)

    def init_state(self, *lead: int, dtype: torch.dtype | None = None) -> State:
        r"""Zero state for inputs (lead[0], T, \*lead[1:], width): h in the state dtype, tail in ``dtype``."""
        return zero_state(self.linear_x.weight, self.conv_1d.weight.shape[0] - 1, lead, dtype)

    def forward(
        self, x: Tensor, *, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        r"""Mix over time.

        Args:
            x: (B, T, \*lanes, width), in the dtype of the weights (on the CPU also 16 bits on float32 weights; under
                autocast any but float64); TRecViT: (B, T, N, D).
            state: (h, tail) from a former call, h (B, \*lanes, lru_width) in the state dtype, tail
                (B, K-1, \*lanes, lru_width). None starts a sequence, unless ``reset`` is given.
            reset: bool (B, T), as in ``ops.recurrent_mixer``.

        Returns:
            The new x and the state after the last frame.

        Raises:
            TypeError, ValueError: an argument whose type, dtype, shape or device does not fit.
        """
        check_tensor("RecurrentBlock", "x", x, ndim_at_least=3)
        shape = (*x.shape[:-1], self.width)
        check_like("RecurrentBlock", "x", x, shape=shape, dtypes=REAL, device=self.norm.scale.device)
        check_frames("RecurrentBlock", "x", x)
        check_weights("RecurrentBlock", x, self.linear_x)
        mixed, state = self.mix(Residual(x), state=state, reset=reset)
        return mixed.total(), state

    def mix(
        self, stream: Residual, *, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Residual, State]:
        """``forward`` without its checks, the residual addition left to whoever comes next."""
        x, y = stream.normed(self.norm)
        again = norm_recipe(self.norm, x, y)
        u, v = call_linear(self.linear_x, y, again), call_linear(self.linear_y, y, again)
        parameters = (
            self.conv_1d.weight,
            self.conv_1d.bias,
            self.rg_lru.input_gate.weight,
            self.rg_lru.input_gate.bias,
            self.rg_lru.a_gate.weight,
            self.rg_lru.a_gate.bias,
            self.rg_lru.a_param,
            self.rg_lru.a_imag_param,
        )
        z, new_state = ops.recurrent_mixer(u, v, *parameters, state=state, reset=reset)
        again = None
        if worthwhile(z):
            again = mixer.recipe(z, u, v, *parameters, *(state or (None, None)), reset)
        return Residual(x, call_linear(self.linear_out, z, again)), new_state


def reset_projections(
    linear_x: nn.Linear, linear_y: nn.Linear, linear_out: nn.Linear, out_variance: float
) -> None:
    """Official initialisation: normal with variance 1 / fan_in, ``linear_out`` out_variance / fan_in; zero biases."""
    for linear, variance in ((linear_x, 1.0), (linear_y, 1.0), (linear_out, out_variance)):
        _init.normal_(linear.weight, fan_in=linear.in_features, variance=variance)
        nn.init.zeros_(linear.bias)


def zero_state(weight: Tensor, tail_frames: int, lead: Sequence[int], dtype: torch.dtype | None) -> State:
    r"""h and tail of a block whose linear_x has ``weight``; ``lead`` = (batch, \*lanes), dtype: of the tokens."""
    dtype = weight.dtype if dtype is None else dtype
    batch, *lanes = lead
    h = weight.new_zeros((batch, *lanes, weight.shape[0]), dtype=state_dtype(dtype))
    return h, weight.new_zeros((batch, tail_frames, *lanes, weight.shape[0]), dtype=dtype)
