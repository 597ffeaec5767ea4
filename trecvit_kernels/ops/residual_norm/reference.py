"""Residual addition and norm as two of PyTorch's ops."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trecvit_kernels.ops.rms_norm.reference import rms_norm


def residual_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``op.py``."""
    total = x + branch
    if bias is None:
        return total, rms_norm(total, weight, eps)
    return total, F.layer_norm(total, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
