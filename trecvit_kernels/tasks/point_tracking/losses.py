"""TAPNext's training loss: Huber on coordinates, cross-entropy on their bins, binary cross-entropy on visibility."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trecvit_kernels._checks import check_device, check_dtype, check_like, check_shape, check_tensor
from trecvit_kernels.ops._dtypes import REAL, state_dtype
from trecvit_kernels.tasks.point_tracking.readout import BINS, PointTracks

COORDINATE_MEANS = ("visible", "all")


class LossWeights(NamedTuple):
    """Factors of the three terms in the total."""

    huber: float = 0.1
    coordinate: float = 1.0
    visibility: float = 1.0


class TrackingLoss(NamedTuple):
    """The terms without their weights, and the weighted sum; scalars, float32 (float64 for a float64 model)."""

    huber: Tensor
    coordinate: Tensor
    visibility: Tensor
    total: Tensor


def tracking_loss(
    tracks: PointTracks,
    target_points: Tensor,
    visible: Tensor,
    *,
    weights: LossWeights = LossWeights(),  # noqa: B008  a constant
    coordinate_mean: str = "visible",
) -> TrackingLoss:
    """Compare tracks with the truth, given in TAP-Vid's layout.

    Args:
        tracks: what the tracker returned for Q queries in T frames.
        target_points: (B, Q, T, 2), (x, y) in the raster of 256 x 256, float32 or float64. What stands at invisible
            points is not read, except with ``coordinate_mean="all"``.
        visible: bool (B, Q, T).
        weights: of the three terms.
        coordinate_mean: the cross-entropy is averaged over the ``"visible"`` points, as in the JAX code, or over
            ``"all"`` points, which is what the published PyTorch code does although it is given a mask.

    Returns:
        The three terms and their weighted sum. A term that is averaged over visible points is 0, with zero gradients,
        if there is none. (The published code gives NaN.)

    Raises:
        TypeError, ValueError: an argument whose type, dtype, shape or device does not fit, or an unknown mean.
    """
    where = "tracking_loss"
    if not isinstance(tracks, PointTracks):
        raise TypeError(f"{where}: tracks must be PointTracks, got {type(tracks).__name__}")
    check_tensor(where, "tracks", tracks.tracks, ndim_at_least=4)
    batch, frames, queries = tracks.tracks.shape[:3]
    for name, tensor, last in zip(tracks._fields, tracks, (2, 2 * BINS, 1), strict=True):
        check_tensor(where, name, tensor)
        check_dtype(where, name, tensor, REAL)
        check_shape(where, name, tensor, (batch, frames, queries, last))
    device, shape = tracks.tracks.device, (batch, queries, frames)
    dtypes = (torch.float32, torch.float64)
    check_like(where, "target_points", target_points, shape=(*shape, 2), dtypes=dtypes, device=device)
    check_like(where, "visible", visible, shape=shape, dtypes=(torch.bool,), device=device)
    check_device(where, "track_logits", tracks.track_logits, device)
    check_device(where, "visible_logits", tracks.visible_logits, device)
    if coordinate_mean not in COORDINATE_MEANS:
        raise ValueError(
            f"{where}: coordinate_mean must be one of {', '.join(COORDINATE_MEANS)}, got {coordinate_mean!r}"
        )
    dtype = state_dtype(tracks.track_logits.dtype)
    target = target_points.to(dtype).flip(-1).transpose(1, 2)  # (B, T, Q, 2), (y, x) like the tracks
    mask = visible.transpose(1, 2)
    seen = torch.where(mask.unsqueeze(-1), target, 0)  # whatever stands at invisible points, NaN too, is gone
    huber = _mean_over(mask, huber_distance(tracks.tracks.to(dtype), seen))
    logits = tracks.track_logits.to(dtype)
    if coordinate_mean == "visible":
        coordinate = _mean_over(mask, coordinate_cross_entropy(logits, seen))
    else:
        coordinate = coordinate_cross_entropy(logits, target).mean()
    visibility = F.binary_cross_entropy_with_logits(
        tracks.visible_logits.squeeze(-1).to(dtype), mask.to(dtype)
    )
    terms = (huber, coordinate, visibility)
    total = weights.huber * huber + weights.coordinate * coordinate + weights.visibility * visibility
    return TrackingLoss(*terms, total)


def huber_distance(points: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Huber's function of the Euclidean distance d of points (..., 2): d^2 / 2 below ``delta``, then linear -> (...).

    Targets are clipped to [0, 255] and errors to 1e8; 1e-12 under the root keeps its slope finite (as published).
    """
    error = (points - target.clamp(0, BINS - 1)).clamp(-1e8, 1e8)
    squared = error.square().sum(dim=-1)
    distance = (squared + 1e-12).sqrt()
    return torch.where(distance < delta, squared / 2, delta * (distance - delta / 2))


def coordinate_cross_entropy(track_logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of both axes, added: logits (..., 512) and targets (..., 2) in the same order of axes -> (...).

    The right bin is round(target - 0.5) with halves to even, clipped to [0, 255].
    """
    labels = (target - 0.5).clamp(0, BINS - 1).round().long()
    log_softmax = track_logits.unflatten(-1, (2, BINS)).log_softmax(dim=-1)
    return -log_softmax.gather(-1, labels.unsqueeze(-1)).squeeze(-1).sum(dim=-1)


def _mean_over(mask: Tensor, values: Tensor) -> Tensor:
    """Mean of the values where the mask is true, 0 if it is nowhere."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
