"""Tokens of the query points: unknown before a query's frame, its position on it, masked after it."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels._checks import check_device, check_dtype, check_tensor
from trecvit_kernels.ops._dtypes import state_dtype

QUERY_DTYPES = (torch.float32, torch.float64)
TEMPERATURE = 10_000.0


def check_query_points(where: str, query_points: object, device: torch.device, batch: int | None) -> None:
    """TypeError or ValueError unless this is (batch, Q, 3), Q >= 1, of finite numbers on ``device``.

    Whether the numbers are finite is only looked at on the CPU: elsewhere the answer would wait for the device.
    """
    check_tensor(where, "query_points", query_points)
    assert isinstance(query_points, Tensor)
    check_dtype(where, "query_points", query_points, QUERY_DTYPES)
    shape = tuple(query_points.shape)
    if query_points.ndim != 3 or shape[-1] != 3 or shape[1] < 1:
        raise ValueError(f"{where}: query_points must have shape (B, Q, 3) with Q >= 1, got {shape}")
    if batch is not None and shape[0] != batch:
        raise ValueError(f"{where}: query_points must have batch size {batch}, got shape {shape}")
    check_device(where, "query_points", query_points, device)
    look = query_points.device.type == "cpu" and not torch.compiler.is_compiling()
    if look and not query_points.isfinite().all():
        raise ValueError(f"{where}: query_points must be finite, got {_first_bad(query_points)}")


def _first_bad(query_points: Tensor) -> str:
    b, q = (int(i) for i in (~query_points.isfinite()).any(dim=-1).nonzero()[0])
    return f"{query_points[b, q].tolist()} at [{b}, {q}]"


def waves(index: Tensor, channels: int) -> Tensor:
    """[sin, cos] (..., 2 * channels) of integer pixel indices (...), frequencies 10000^(-k / (channels - 1)).

    One axis of the sin-cos table of MoCo v3 (``models.positions.sincos2d``): float64 inside, float32 out.
    """
    steps = torch.arange(channels, dtype=torch.float64, device=index.device) / (channels - 1)
    angles = index.double().unsqueeze(-1) * TEMPERATURE**-steps
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def sample_positions(points: Tensor, image_size: tuple[int, int], channels: int) -> Tensor:
    """The sin-cos table (height, width, channels) at any position: bilinear inside, zero outside.

    Equal to ``grid_sample(table, align_corners=False, padding_mode="zeros")``, but without the table (200 MB for
    TAPNext-B): half of its channels depend on one axis and the other half on the other, so each axis is looked up on
    its own and weighted by how much of the other axis lies inside.

    Args:
        points: (..., 2), (y, x) in pixels, pixel centres at +0.5. image_size: (height, width).

    Returns:
        (..., channels), float32 (float64 for float64 points): [sin x, cos x, sin y, cos y].
    """
    (along_y, inside_y), (along_x, inside_x) = (
        _sample_axis(points[..., axis], image_size[axis], channels // 4) for axis in range(2)
    )
    return torch.cat([along_x * inside_y, along_y * inside_x], dim=-1)


def _sample_axis(coordinate: Tensor, size: int, channels: int) -> tuple[Tensor, Tensor]:
    """One axis: interpolated waves (..., 2 * channels) and the share (..., 1) of the weights that lies inside."""
    position = coordinate - 0.5
    low = position.detach().floor()
    fraction = position - low
    corners = torch.stack([low, low + 1], dim=-1)
    weights = torch.stack([1 - fraction, fraction], dim=-1)
    weights = weights * ((corners >= 0) & (corners < size))
    sampled = (weights.unsqueeze(-1) * waves(corners, channels)).sum(dim=-2)
    return sampled, weights.sum(dim=-1, keepdim=True)


def query_tokens(
    query_points: Tensor,
    first_frame: int,
    frames: int,
    image_size: tuple[int, int],
    *,
    query: Tensor,
    mask: Tensor,
    unknown: Tensor,
) -> Tensor:
    """Tokens (B, frames, Q, C) of query points (B, Q, 3) in the frames from ``first_frame`` on.

    Before its frame t a query is ``unknown``, exactly on it ``query`` plus its position, after it ``mask``. So a
    negative t is masked in all frames, and one between two frames is never shown.

    Args:
        query, mask, unknown: learned tokens, C values each in any shape; the result has their dtype.
    """
    channels = query.numel()
    shown = sample_positions(query_points[..., 1:], image_size, channels)
    query, mask, unknown = (token.reshape(1, 1, 1, channels) for token in (query, mask, unknown))
    shown = (query.to(state_dtype(query.dtype)) + shown.unsqueeze(1)).to(query.dtype)  # (B, 1, Q, C)
    frame = torch.arange(first_frame, first_frame + frames, device=query_points.device).reshape(1, -1, 1, 1)
    start = query_points[..., :1].unsqueeze(1)
    return torch.where(frame < start, unknown, torch.where(frame == start, shown, mask))
