"""Residual addition that spares a temporary."""

from __future__ import annotations

from torch import Tensor


def add_residual(branch: Tensor, x: Tensor) -> Tensor:
    """branch + x, written over ``branch``, which must be the fresh output of a linear layer or of dropout.

    Neither saves its output for the backward pass, so autograd allows it. Under autocast the branch has fewer
    bits than the residual stream; then a new tensor in the stream's dtype is made.
    """
    return branch.add_(x) if branch.dtype == x.dtype else branch + x
