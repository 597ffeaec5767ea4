"""Position embeddings of the patch grid: the sin-cos table, and learned ones at another resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos2d(height: int, width: int, channels: int, temperature: float = 10_000.0) -> Tensor:
    """Table (1, height * width, channels), row-major, channels [sin x, cos x, sin y, cos y].

    Frequencies temperature^(-k / (channels / 4 - 1)), k < channels / 4 (MoCo v3, big_vision); float32.
    """
    steps = torch.arange(channels // 4, dtype=torch.float64) / (channels // 4 - 1)
    omega = temperature**-steps
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float().unsqueeze(0)


def interpolate(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Learned positions (1, h * w, C) of grid ``source`` at grid ``target``, bicubic with anti-aliasing."""
    if source == target:
        return table
    grid = table.reshape(1, *source, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=target, mode="bicubic", align_corners=False, antialias=True)
    return grid.permute(0, 2, 3, 1).reshape(1, target[0] * target[1], -1).to(table.dtype)
