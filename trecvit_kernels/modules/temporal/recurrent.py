"""Recurrences other than the default: the recurrent block with parts switched off, the plain LRU, the LSTM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels import ops
from trecvit_kernels._checks import check_frames, check_like, check_tensor
from trecvit_kernels.modules import _init
from trecvit_kernels.modules.conv import CausalConv1d
from trecvit_kernels.modules.gated_lru import MAX_RADIUS, GatedLRU, check_lru, reset_decay
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.modules.recurrent_block import reset_projections, zero_state
from trecvit_kernels.modules.temporal.base import TemporalBlock, TemporalState
from trecvit_kernels.ops._dtypes import REAL, state_dtype
from trecvit_kernels.ops._registration import without_autocast
from trecvit_kernels.ops.gelu.op import gelu_tanh


class PlainLRU(nn.Module):
    r"""Linear recurrent unit with a learned decay that no gate changes, along dim 1.

    Per channel, with :math:`\Lambda` = ``a_param`` and :math:`\theta` = ``a_imag_param``::

        a = exp(-softplus(Lambda) + i theta)              (real: theta = 0)
        beta = sqrt(1 - |a|^2)                            ("convex": beta = 1 - |a|)
        h_t = a h_{t-1} + beta x_t                        (first frame of a sequence: h_t = x_t)

    That is the LRU of Orvieto et al. (arXiv 2303.06349) in the parameters of ``GatedLRU``, which (if real) it equals
    with an input gate of 1 and a decay gate of 1/8: the decay's radius starts between ``min_radius`` and
    ``max_radius``.

    Args:
        width: channels. complex_lru: they are [real half | imaginary half] of width / 2 complex ones.
        min_radius, max_radius, normalizer: as in ``GatedLRU``.

    Raises:
        ValueError: as in ``GatedLRU``.
    """

    a_imag_param: nn.Parameter | None

    def __init__(
        self,
        width: int,
        *,
        complex_lru: bool = False,
        min_radius: float = 0.6,
        max_radius: float = MAX_RADIUS,
        normalizer: str = "sqrt",
    ) -> None:
        super().__init__()
        check_lru("PlainLRU", width, 1, complex_lru, min_radius, max_radius, normalizer)
        self.width, self.normalizer = width, normalizer
        self.min_radius, self.max_radius = min_radius, max_radius
        channels = width // (2 if complex_lru else 1)
        self.a_param = nn.Parameter(torch.empty(channels))
        self.a_imag_param = nn.Parameter(torch.empty(channels)) if complex_lru else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Radius uniform in area on the ring [min_radius, max_radius], phase uniform in [0, 0.1 pi]."""
        reset_decay(self.a_param, self.a_imag_param, self.min_radius, self.max_radius)

    def forward(
        self, x: Tensor, *, h0: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Arguments, results and errors as in ``GatedLRU.forward``."""
        check_tensor("PlainLRU", "x", x, ndim_at_least=3)
        check_like(
            "PlainLRU", "x", x, shape=(*x.shape[:-1], self.width), dtypes=REAL, device=self.a_param.device
        )
        check_frames("PlainLRU", "x", x)
        dtype = state_dtype(x.dtype)
        if reset is None:
            reset = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            if h0 is None:
                reset[:, 0] = True
        reset = reset.reshape(*reset.shape, *[1] * (x.ndim - 2))

        log_radius = -F.softplus(self.a_param.to(dtype))
        if self.normalizer == "sqrt":
            beta = torch.sqrt(-torch.expm1(2 * log_radius))
        else:
            beta = -torch.expm1(log_radius)
        inputs = x.to(dtype)
        if self.a_imag_param is None:
            a = torch.exp(log_radius)
        else:
            a = torch.polar(torch.exp(log_radius), self.a_imag_param.to(dtype))
            inputs = _as_complex(inputs)
            h0 = None if h0 is None else _as_complex(h0)
        # The scan takes a decay for every frame and lane: in memory, since those of an expanded one have no stride.
        decay = torch.where(reset, torch.zeros((), dtype=a.dtype, device=a.device), a).expand_as(inputs)
        y, h = ops.linear_scan(decay, torch.where(reset, inputs, beta * inputs), h0)
        if self.a_imag_param is not None:
            y, h = (torch.cat([z.real, z.imag], dim=-1) for z in (y, h))
        return y.to(x.dtype), h

    def extra_repr(self) -> str:
        return f"{self.width}, complex_lru={self.a_imag_param is not None}, min_radius={self.min_radius}"


def _as_complex(halves: Tensor) -> Tensor:
    return torch.complex(*halves.chunk(2, dim=-1))


class AblatedRecurrentBlock(TemporalBlock):
    r"""``RecurrentBlock`` with parts switched off, for ablations: composed of single ops, so slower than the whole.

    Args:
        width, lru_width, num_heads, complex_lru, min_radius, max_radius, out_variance: as in ``RecurrentBlock``.
        conv1d_width: taps of the convolution over time; 0 leaves it out.
        gates: False replaces the gated LRU by a ``PlainLRU``.
        normalizer: "sqrt" or "convex", the factor of the recurrence's input.
        skip: False leaves the residual addition out.

    The state is (h, tail), as that of ``RecurrentBlock``; without convolution tail holds no frames.
    """

    state_names = ("h", "tail")
    first_linear = "linear_x"
    takes_reset = True

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
        gates: bool = True,
        normalizer: str = "sqrt",
        skip: bool = True,
    ) -> None:
        super().__init__(width, skip=skip)
        self.out_variance = out_variance
        self.linear_x = Linear(width, lru_width)
        self.linear_y = Linear(width, lru_width)
        self.conv_1d = CausalConv1d(lru_width, conv1d_width) if conv1d_width else None
        self.rg_lru: GatedLRU | None = None
        self.lru: PlainLRU | None = None
        if gates:
            self.rg_lru = GatedLRU(
                lru_width,
                num_heads,
                complex_lru=complex_lru,
                min_radius=min_radius,
                max_radius=max_radius,
                normalizer=normalizer,
            )
        else:
            self.lru = PlainLRU(
                lru_width,
                complex_lru=complex_lru,
                min_radius=min_radius,
                max_radius=max_radius,
                normalizer=normalizer,
            )
        self.linear_out = Linear(lru_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in ``RecurrentBlock``."""
        reset_projections(self.linear_x, self.linear_y, self.linear_out, self.out_variance)

    def init_state(self, *lead: int, dtype: torch.dtype | None = None) -> TemporalState:
        r"""Zero state for inputs (lead[0], T, \*lead[1:], width): h in the state dtype, tail in ``dtype``."""
        taps = 1 if self.conv_1d is None else self.conv_1d.weight.shape[0]
        return zero_state(self.linear_x.weight, taps - 1, lead, dtype)

    def branch(
        self, y: Tensor, state: TemporalState | None, reset: Tensor | None
    ) -> tuple[Tensor, TemporalState]:
        u, v = self.linear_x(y), self.linear_y(y)
        h0, tail = (None, None) if state is None else state
        if self.conv_1d is None:
            tail = u.new_zeros((u.shape[0], 0, *u.shape[2:]))
        else:
            u, tail = self.conv_1d(u, tail=tail, reset=reset)
        lru = self.lru if self.rg_lru is None else self.rg_lru
        assert lru is not None
        z, h = lru(u, h0=h0, reset=reset)
        return self.linear_out(z * gelu_tanh(v)), (h, tail)


class LSTMBlock(TemporalBlock):
    r"""x + linear_out(LSTM(norm(x))), ``torch.nn.LSTM`` along every tube of tokens.

    Starts as PyTorch starts an LSTM, U(-1/sqrt(hidden), 1/sqrt(hidden)), and ``linear_out`` as in ``RecurrentBlock``.
    It computes in the dtype of its weights, under autocast too.

    Args:
        width: channels of the tokens. hidden: channels of the LSTM's state.
        out_variance: variance of linear_out's initial weights times its fan-in.
        skip: False leaves the residual addition out.

    The state is (h, c), each (B, \*lanes, hidden) in the dtype of the weights. ``reset`` is refused: PyTorch's kernels
    cannot start again inside a call.
    """

    state_names = ("h", "c")

    def __init__(self, width: int, hidden: int, *, out_variance: float = 1.0, skip: bool = True) -> None:
        super().__init__(width, skip=skip)
        self.out_variance = out_variance
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.linear_out = Linear(hidden, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's initialisation of the LSTM; N(0, out_variance / hidden) behind it."""
        self.lstm.reset_parameters()
        _init.normal_(self.linear_out.weight, self.linear_out.in_features, self.out_variance)
        nn.init.zeros_(self.linear_out.bias)

    def init_state(self, *lead: int, dtype: torch.dtype | None = None) -> TemporalState:
        r"""Zeros for inputs (lead[0], T, \*lead[1:], width); ``dtype`` is that of the weights whatever is asked."""
        weight = self.linear_out.weight
        h = weight.new_zeros((*lead, weight.shape[1]))
        return h, h.clone()

    def branch(
        self, y: Tensor, state: TemporalState | None, reset: Tensor | None
    ) -> tuple[Tensor, TemporalState]:
        batch, frames, *lanes, width = y.shape
        tubes = y.reshape(batch, frames, -1, width).transpose(1, 2).reshape(-1, frames, width)
        with without_autocast(y.device.type):
            dtype = self.linear_out.weight.dtype
            before = None
            if state is not None:
                before = tuple(part.reshape(1, tubes.shape[0], -1).to(dtype) for part in state)
            hidden, after = self.lstm(tubes.to(dtype), before)
        hidden = hidden.unflatten(0, (batch, math.prod(lanes))).transpose(1, 2)
        hidden = hidden.reshape(batch, frames, *lanes, -1)
        new = tuple(part.reshape(batch, *lanes, -1) for part in after)
        return self.linear_out(hidden), new
