"""What the decoder has to predict, and how far off it is: pixels of patches, normalised patch by patch.

Patches are (B, T, N, rows * columns * 3), as ``TRecViT.patches`` gives them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels._checks import check_like, check_tensor
from trecvit_kernels.ops._dtypes import REAL

# Added to the variance, pixels in [0, 1]. A patch of one colour has target 0.
EPS = 1e-6


def normalise_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(patches - mean) / sqrt(variance + EPS), mean, sqrt(variance + EPS).

    Mean and variance are of all pixels and colours of one patch in one frame (He et al., arXiv 2111.06377). The
    variance divides by their number, so that predicting the mean, which is 0 here, costs variance / (variance + EPS):
    1 but for patches with next to no contrast.

    Args:
        patches: (..., pixels), floating, values in [0, 1].

    Returns:
        Targets like patches; mean and deviation (..., 1).
    """
    mean = patches.mean(dim=-1, keepdim=True)
    deviation = (patches.var(dim=-1, correction=0, keepdim=True) + EPS).sqrt()
    return (patches - mean) / deviation, mean, deviation


def reconstruction_loss(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error over the hidden patches of all frames (``mask=None``: over all patches), a scalar.

    Args:
        prediction: (B, T, N, pixels), floating; computed with in the target's dtype.
        target: (B, T, N, pixels), float32 or float64, from ``normalise_patches``.
        mask: bool (B, N), True where a patch is hidden.

    Raises:
        TypeError, ValueError: an argument whose type, dtype, shape or device does not fit, or a mask that hides
        nothing.
    """
    where = "reconstruction_loss"
    check_tensor(where, "target", target, ndim_at_least=4)
    shape, device = target.shape, target.device
    check_like(where, "target", target, shape=shape[:4], dtypes=(torch.float32, torch.float64), device=device)
    check_like(where, "prediction", prediction, shape=shape, dtypes=REAL, device=device)
    error = (prediction.to(target.dtype) - target).square().mean(dim=-1)
    if mask is None:
        return error.mean()
    check_like(where, "mask", mask, shape=(shape[0], shape[2]), dtypes=(torch.bool,), device=device)
    hidden = mask.sum()
    if hidden == 0:
        raise ValueError(f"{where}: mask must hide at least one patch, got one that hides none")
    return (error * mask.unsqueeze(1)).sum() / (hidden * shape[1])


def join_patches(patches: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """The video (B, T, 3, H, W) of patches (B, T, N, rows * columns * 3): the inverse of ``TRecViT.patches``.

    Args:
        grid: patches (down, across), whose product is N. patch_size: (rows, columns).

    Raises:
        TypeError, ValueError: patches is not a tensor of that shape.
    """
    check_tensor("join_patches", "patches", patches, ndim_at_least=4)
    (down, across), (rows, columns) = grid, patch_size
    expected = (*patches.shape[:2], down * across, rows * columns * 3)
    if tuple(patches.shape) != expected:
        raise ValueError(f"join_patches: patches must have shape {expected}, got {tuple(patches.shape)}")
    video = patches.unflatten(3, (rows, columns, 3)).unflatten(2, (down, across))
    return video.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
