"""Root-mean-square norm with a scale stored minus one (RecurrentGemma)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trecvit_kernels.ops.rms_norm.op import rms_norm

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
