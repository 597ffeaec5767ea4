"""Residual additions that spare a temporary, or wait for the norm behind them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from trecvit_kernels.modules.norm import RMSNorm
from trecvit_kernels.ops.residual_norm.op import is_fused, residual_norm


def add_residual(branch: Tensor, x: Tensor) -> Tensor:
    """branch + x, written over ``branch``, which must be the fresh output of a linear layer or of dropout.

    Neither saves its output for the backward pass, so autograd allows it. Under autocast the branch has fewer
    bits than the residual stream; then a new tensor in the stream's dtype is made.
    """
    return branch.add_(x) if branch.dtype == x.dtype else branch + x


class Residual(NamedTuple):
    """The residual stream x + branch, its addition still to be made; ``branch`` is fresh, or None for nothing."""

    x: Tensor
    branch: Tensor | None = None

    def total(self) -> Tensor:
        """The stream as one tensor; ``branch`` is gone then."""
        return self.x if self.branch is None else add_residual(self.branch, self.x)

    def normed(self, norm: RMSNorm | nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """(the stream as one tensor, its norm), in one launch where ``ops/residual_norm`` has one."""
        same_dtype = self.branch is not None and self.branch.dtype == self.x.dtype
        if same_dtype and is_fused(self.x, self.branch, *norm.parameters()):
            assert self.branch is not None
            if isinstance(norm, RMSNorm):
                return residual_norm(self.x, self.branch, norm.scale, None, norm.eps)
            return residual_norm(self.x, self.branch, norm.weight, norm.bias, norm.eps)
        x = self.total()
        return x, norm(x)
