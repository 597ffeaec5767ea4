"""Root-mean-square norm with a scale stored minus one (RecurrentGemma); what is known about a norm's output."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels.ops._recipe import Recipe, worthwhile
from trecvit_kernels.ops.rms_norm.op import choose, rms_norm

EPS = 1e-6


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (scale + 1) over the last dimension; ``scale`` (width,) starts at 0.

    Input and output (..., width), one dtype.
    """

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 0, that is a factor of 1."""
        nn.init.zeros_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale, self.eps)

    def extra_repr(self) -> str:
        return f"{self.scale.numel()}, eps={self.eps}"


def norm_recipe(norm: nn.Module, x: Tensor, y: Tensor) -> Recipe | None:
    """How to make y = norm(x) again from x, or None where that gains nothing.

    None also for a norm of another class or with hooks, which may have done something else to y.
    """
    if not worthwhile(y) or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    if type(norm) is RMSNorm:
        make = partial(rms_norm, eps=norm.eps, backend=choose(x.device.type))
        return Recipe(y, make, (x, norm.scale))
    if type(norm) is nn.LayerNorm:
        make = partial(_layer_norm, shape=norm.normalized_shape, eps=norm.eps)
        return Recipe(y, make, (x, norm.weight, norm.bias))
    return None


def _layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, shape: tuple[int, ...], eps: float
) -> Tensor:
    return F.layer_norm(x, shape, weight, bias, eps)
