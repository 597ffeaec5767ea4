"""The RG-LRU layer: block-diagonal gates and the gated linear recurrence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trecvit_kernels import ops
from trecvit_kernels._checks import check_frames, check_int, check_like, check_tensor
from trecvit_kernels.modules import _init
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops._registration import autocast
from trecvit_kernels.ops.block_diagonal.op import block_diagonal
from trecvit_kernels.ops.gated_lru.op import NORMALIZERS

MAX_RADIUS = 0.999


def check_lru(
    where: str,
    width: int,
    num_heads: int,
    complex_lru: bool,
    min_radius: float,
    max_radius: float,
    normalizer: str,
) -> None:
    """ValueError unless an LRU can have these sizes."""
    halves = 2 if complex_lru else 1
    if num_heads < 1 or width < 1 or width % (halves * num_heads):
        raise ValueError(
            f"{where}: width must be a multiple of {'2 * ' if complex_lru else ''}num_heads"
            f" = {halves * num_heads}, got {width}"
        )
    if not 0.0 < max_radius < 1.0:
        raise ValueError(f"{where}: max_radius must lie between 0 and 1, got {max_radius}")
    if not 0.0 < min_radius < max_radius:
        raise ValueError(f"{where}: min_radius must lie between 0 and {max_radius}, got {min_radius}")
    if normalizer not in NORMALIZERS:
        raise ValueError(f"{where}: normalizer must be one of {', '.join(NORMALIZERS)}, got {normalizer!r}")


@torch.no_grad()
def reset_decay(a_param: Tensor, a_imag_param: Tensor | None, min_radius: float, max_radius: float) -> None:
    """Radius exp(-softplus(a_param)) uniform in area on the ring between the two, phase uniform in [0, 0.1 pi]."""
    area = torch.empty_like(a_param).uniform_()
    squared = area * (max_radius**2 - min_radius**2) + min_radius**2 + 1e-8
    # Inverse softplus of -log(radius): log(exp(-log radius) - 1).
    a_param.copy_(torch.log(torch.expm1(-0.5 * torch.log(squared))))
    if a_imag_param is not None:
        nn.init.uniform_(a_imag_param, 0.0, 0.1 * math.pi)


class BlockDiagonalLinear(nn.Module):
    """A linear layer per head on that head's slice of the channels: (..., width) -> (..., out_width).

    ``weight`` (num_heads, width / num_heads, out_width / num_heads) starts as N(0, 1 / width), ``bias``
    (num_heads, out_width / num_heads) at 0.

    Raises:
        TypeError, ValueError: a size that is not a positive int, or heads that do not divide both widths.
    """

    def __init__(self, width: int, out_width: int, num_heads: int) -> None:
        super().__init__()
        where = "BlockDiagonalLinear"
        check_int(where, "num_heads", num_heads)
        for name, size in (("width", width), ("out_width", out_width)):
            check_int(where, name, size)
            if size % num_heads:
                raise ValueError(f"{where}: {name} must be a multiple of num_heads = {num_heads}, got {size}")
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
        min_radius, max_radius: the decay exp(-8 r softplus(a_param)) starts with a radius between the two to the
            power 8 r, uniform in area.
        normalizer: ``"sqrt"`` or ``"convex"``.

    Raises:
        ValueError: heads that do not divide the (half) width, radii that are not 0 < min < max < 1 or an unknown
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
        max_radius: float = MAX_RADIUS,
        normalizer: str = "sqrt",
    ) -> None:
        super().__init__()
        check_lru("GatedLRU", width, num_heads, complex_lru, min_radius, max_radius, normalizer)
        self.width, self.normalizer = width, normalizer
        self.min_radius, self.max_radius = min_radius, max_radius
        channels = width // (2 if complex_lru else 1)
        self.a_param = nn.Parameter(torch.empty(channels))
        self.a_imag_param = nn.Parameter(torch.empty(channels)) if complex_lru else None
        self.input_gate = BlockDiagonalLinear(width, channels, num_heads)
        self.a_gate = BlockDiagonalLinear(width, channels, num_heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Radius uniform in area on the ring [min_radius, max_radius], phase uniform in [0, 0.1 pi]."""
        reset_decay(self.a_param, self.a_imag_param, self.min_radius, self.max_radius)
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
            y like x (under autocast in its dtype), and the state after the last frame like h0.

        Raises:
            TypeError, ValueError: an argument whose type, dtype, shape or device does not fit.
        """
        check_tensor("GatedLRU", "x", x, ndim_at_least=3)
        shape = (*x.shape[:-1], self.width)
        check_like("GatedLRU", "x", x, shape=shape, dtypes=REAL, device=self.a_param.device)
        check_frames("GatedLRU", "x", x)
        (x,) = autocast(x.device.type, x)  # as the gates come
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
