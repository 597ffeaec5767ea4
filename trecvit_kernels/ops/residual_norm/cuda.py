"""CUDA backend: csrc/residual_norm/kernels.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels.ops._compiled import DTYPE_CODES, pointer
from trecvit_kernels.ops._cuda import GPU


def residual_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``op.py``."""
    x, branch, weight = x.contiguous(), branch.contiguous(), weight.contiguous()
    total, y = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        bias = None if bias is None else bias.to(weight.dtype).contiguous()
        GPU.run(
            "residual_norm",
            x.device,
            DTYPE_CODES[x.dtype],
            DTYPE_CODES[weight.dtype],
            x.numel() // x.shape[-1],
            x.shape[-1],
            bias is not None,
            eps,
            *map(pointer, (x, branch, weight, bias, total, y)),
        )
    return total, y
