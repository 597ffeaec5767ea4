"""Tube masks: which patches of a video are hidden, the same ones in every frame."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels._checks import check_like, check_tensor


def number_kept(where: str, patches: int, mask_ratio: float) -> int:
    """round((1 - mask_ratio) * patches); ValueError unless that keeps and hides at least one patch each."""
    if isinstance(mask_ratio, bool) or not isinstance(mask_ratio, (int, float)):
        raise TypeError(f"{where}: mask_ratio must be a float, got {type(mask_ratio).__name__}")
    if not 0.0 < mask_ratio < 1.0:  # NaN too
        raise ValueError(f"{where}: mask_ratio must lie between 0 and 1, got {mask_ratio}")
    kept = round((1.0 - mask_ratio) * patches)
    if not 0 < kept < patches:
        raise ValueError(
            f"{where}: mask_ratio must keep and hide at least one of {patches} patches, got {mask_ratio}, which"
            f" keeps {kept}"
        )
    return kept


def tube_mask(
    batch_size: int,
    patches: int,
    mask_ratio: float = 0.9,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw a mask for each video: uniform among all with round((1 - mask_ratio) * patches) visible patches.

    A mask has no time: it holds in every frame, so a hidden patch is a hidden tube (VideoMAE, arXiv 2203.12602).

    Args:
        batch_size: number of videos, each with its own mask. patches: of a frame.
        mask_ratio: hidden share, between 0 and 1.
        generator: draws on its own device; None draws from PyTorch's global generator of the CPU, so that a seed gives
            the same masks whatever the device.
        device: of the result; None means where it was drawn.

    Returns:
        bool (batch_size, patches), True where a patch is hidden.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a ratio that keeps or hides nothing.
    """
    where = "tube_mask"
    for name, value in (("batch_size", batch_size), ("patches", patches)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{where}: {name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{where}: {name} must be at least 1, got {value}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{where}: generator must be a torch.Generator, got {type(generator).__name__}")
    kept = number_kept(where, patches, mask_ratio)
    drawn_on = generator.device if generator is not None else torch.device("cpu")
    noise = torch.rand(batch_size, patches, generator=generator, device=drawn_on)
    mask = torch.ones(batch_size, patches, dtype=torch.bool, device=drawn_on)
    # By rank and not by threshold, so that the number is exact even if two draws are equal.
    mask.scatter_(1, noise.argsort(dim=1)[:, :kept], False)
    return mask.to(device) if device is not None else mask


def kept_patches(mask: Tensor) -> Tensor:
    """Numbers (B, K) of the visible patches, ascending, int64, of a mask bool (B, patches).

    Raises:
        TypeError: not a bool tensor. ValueError: not two-dimensional, or the videos do not all keep the same number of
        patches, at least one: they go through the encoder as one batch.
    """
    where = "kept_patches"
    check_tensor(where, "mask", mask, ndim_at_least=2)
    check_like(where, "mask", mask, shape=mask.shape[:2], dtypes=(torch.bool,), device=mask.device)
    kept = (~mask).sum(dim=1).tolist()
    if not kept or min(kept) < 1 or min(kept) != max(kept):
        got = f"{min(kept)} to {max(kept)}" if kept else "no video"
        raise ValueError(
            f"{where}: mask must keep the same number of patches in every video, at least 1, got {got}"
        )
    return mask.to(torch.uint8).argsort(dim=1, stable=True)[:, : kept[0]]
