"""Initialisers with the statistics of DeepMind's code (flax's ``variance_scaling`` family)."""

from __future__ import annotations

import math

from torch import Tensor, nn

# Standard deviation of a standard normal cut at +-2, by which flax divides to keep the variance.
_STD_OF_TRUNCATED = 0.87962566103423978


def normal_(weight: Tensor, fan_in: int, variance: float = 1.0) -> None:
    """N(0, variance / fan_in)."""
    nn.init.normal_(weight, std=math.sqrt(variance / fan_in))


def truncated_normal_(weight: Tensor, fan_in: int) -> None:
    """LeCun normal: cut at two standard deviations of the normal before cutting, variance 1 / fan_in."""
    std = math.sqrt(1.0 / fan_in) / _STD_OF_TRUNCATED
    nn.init.trunc_normal_(weight, std=std, a=-2.0 * std, b=2.0 * std)


def xavier_uniform_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """U(-l, l) with l = sqrt(6 / (fan_in + fan_out))."""
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    nn.init.uniform_(weight, -limit, limit)
