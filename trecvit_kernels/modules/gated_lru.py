"""The RG-LRU layer: block-diagonal gates and the gated linear recurrence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trecvit_kernels import ops
from trecvit_kernels._checks import check_like, check_tensor
from trecvit_kernels.modules import _init
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops.block_diagonal.op import block_diagonal
from trecvit_kernels.ops.gated_lru.op import NORMALIZERS

MAX_RADIUS = 0.999


class BlockDiagonalLinear(nn.Module):
    """A linear layer per head on that head's slice of the channels: (..., width) -> (..., out_width).

    ``weight`` (num_heads, width / num_heads, out_width / num_heads) starts as N(0, 1 / width), ``bias``
    (num_heads, out_width / num_heads) at 0.
    """

    def __init__(self, width: int, out_width: int, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, width // num_heads, out_width // num_heads))
        self.bias = nn.Parameter(torch.empty(num_heads, out_width // num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Variance by the full width, as flax counts the head axis into the fan-in."""
        _init.normal_(self.weight, fan_in=self.weight.shape[0] * self.weight.shape[1])
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return block_diagonal(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        heads, width, out_width = self.weight.shape
        return f"{heads * width}, {heads * out_width}, num_heads={heads}"


class GatedLRU(nn.Module):
    r"""Real-gated linear recurrent unit of Griffin (arXiv 2402.19427) along dim 1; see ``ops.gated_lru``.

    Args:
        width: channels. complex_lru: they are [real half | imaginary half] of width / 2 complex ones.
        num_heads: blocks of the gates' weights.
        min_radius: the decay exp(-8 r softplus(a_param)) starts with a radius between ``min_radius`` and
            0.999 to the power 8 r, uniform in area.
        normalizer: ``"sqrt"`` or ``"convex"``.

    Raises:
        ValueError: heads that do not divide the (half) width, a radius outside (0, 0.999) or an unknown
            normalizer.
    """

    a_imag_param: nn.Parameter | None

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        complex_lru: bool = False,
        min_radius: float = 0.6,
        normalizer: str = "sqrt",
    ) -> None:
        super().__init__()
        halves = 2 if complex_lru else 1
        if num_heads < 1 or width < 1 or width % (halves * num_heads):
            raise ValueError(
                f"GatedLRU: width must be a multiple of {'2 * ' if complex_lru else ''}num_heads"
                f" = {halves * num_heads}, got {width}"
            )
        if not 0.0 < min_radius < MAX_RADIUS:
            raise ValueError(f"GatedLRU: min_radius must lie between 0 and {MAX_RADIUS}, got {min_radius}")
        if normalizer not in NORMALIZERS:
            raise ValueError(
                f"GatedLRU: normalizer must be one of {', '.join(NORMALIZERS)}, got {normalizer!r}"
            )
        self.width, self.min_radius, self.normalizer = width, min_radius, normalizer
        channels = width // halves
        self.a_param = nn.Parameter(torch.empty(channels))
        self.a_imag_param = nn.Parameter(torch.empty(channels)) if complex_lru else None
        self.input_gate = BlockDiagonalLinear(width, channels, num_heads)
        self.a_gate = BlockDiagonalLinear(width, channels, num_heads)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Radius uniform in area on the ring [min_radius, 0.999], phase uniform in [0, 0.1 pi]."""
        area = torch.empty_like(self.a_param).uniform_()
        squared = area * (MAX_RADIUS**2 - self.min_radius**2) + self.min_radius**2 + 1e-8
        # Inverse softplus of -log(radius): log(exp(-log radius) - 1).
        self.a_param.copy_(torch.log(torch.expm1(-0.5 * torch.log(squared))))
        if self.a_imag_param is not None:
            nn.init.uniform_(self.a_imag_param, 0.0, 0.1 * math.pi)
        self.input_gate.reset_parameters()
        self.a_gate.reset_parameters()

    def forward(
        self, x: Tensor, *, h0: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Run the recurrence along time.

        Args:
            x: (B, T, \*lanes, width), floating.
            h0: (B, \*lanes, width), the state before the first frame, float32 (float64 for float64 x).
            reset: bool (B, T), as in ``ops.gated_lru``: None with ``h0=None`` starts a sequence.

        Returns:
            y like x, and the state after the last frame like h0.

        Raises:
            TypeError, ValueError: an argument whose type, dtype, shape or device does not fit.
        """
        check_tensor("GatedLRU", "x", x, ndim_at_least=3)
        shape = (*x.shape[:-1], self.width)
        check_like("GatedLRU", "x", x, shape=shape, dtypes=REAL, device=self.a_param.device)
        return ops.gated_lru(
            x,
            self.input_gate(x),
            self.a_gate(x),
            self.a_param,
            self.a_imag_param,
            h0=h0,
            reset=reset,
            normalizer=self.normalizer,
        )

    def extra_repr(self) -> str:
        return f"{self.width}, complex_lru={self.a_imag_param is not None}, min_radius={self.min_radius}"
