"""The tanh approximation of GELU in PyTorch's own op."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """x (any shape) -> the same."""
    return F.gelu(x, approximate="tanh")
