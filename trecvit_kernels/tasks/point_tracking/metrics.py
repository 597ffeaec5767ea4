"""TAP-Vid's metrics of point tracks (Doersch et al. 2022, arXiv 2211.03726, section 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trecvit_kernels._checks import check_dtype, check_like, check_tensor

THRESHOLDS = (1, 2, 4, 8, 16)  # pixels of a 256 x 256 raster
QUERY_MODES = ("first", "strided")
_FLOATS = (torch.float32, torch.float64)


class TapVidMetrics(NamedTuple):
    """Fractions from 0 to 1 for each video of a batch, float64; a benchmark's number is their mean over its videos.

    NaN stands where a video has nothing to count: no evaluated frame, or none where a point is visible.

    Attributes:
        average_jaccard: (B,), mean of ``jaccard`` over the thresholds.
        average_points_within: (B,), the delta-average: mean of ``points_within`` over the thresholds.
        occlusion_accuracy: (B,), share of the frames where visible or occluded was said rightly.
        jaccard: (B, 5) at 1, 2, 4, 8, 16 pixels: true positives / (truly visible + false positives). True positives are
            visible, called visible and within the threshold; false positives are called visible but occluded or not
            within it.
        points_within: (B, 5): share of the truly visible points whose prediction is within the threshold, whatever was
            said of their visibility.
    """

    average_jaccard: Tensor
    average_points_within: Tensor
    occlusion_accuracy: Tensor
    jaccard: Tensor
    points_within: Tensor


def evaluation_mask(query_frames: Tensor, frames: int, query_mode: str) -> Tensor:
    """Which frames count: after the query's frame (``"first"``), or all but the query's (``"strided"``).

    Args:
        query_frames: (..., Q), any real dtype; rounded, halves to even, to frame numbers from 0 to frames - 1.

    Returns:
        bool (..., Q, frames).

    Raises:
        TypeError, ValueError: an unknown mode, frames < 1, or a query outside the video.
    """
    where = "evaluation_mask"
    check_tensor(where, "query_frames", query_frames, ndim_at_least=1)
    if isinstance(frames, bool) or not isinstance(frames, int):
        raise TypeError(f"{where}: frames must be an int, got {type(frames).__name__}")
    if frames < 1:
        raise ValueError(f"{where}: frames must be at least 1, got {frames}")
    if query_mode not in QUERY_MODES:
        raise ValueError(f"{where}: query_mode must be one of {', '.join(QUERY_MODES)}, got {query_mode!r}")
    start = query_frames.double().round().unsqueeze(-1)
    if not ((start >= 0) & (start < frames)).all():
        worst = query_frames.flatten()[((start < 0) | (start >= frames) | start.isnan()).flatten()][0].item()
        raise ValueError(f"{where}: query_frames must lie in the video's {frames} frames, got {worst}")
    frame = torch.arange(frames, device=query_frames.device)
    return frame > start if query_mode == "first" else frame != start


def tapvid_queries(
    target_points: Tensor, target_occluded: Tensor, *, query_mode: str = "first", stride: int = 5
) -> tuple[Tensor, Tensor]:
    """TAP-Vid's queries of one video: every track where it is first visible, or at regular frames where it is visible.

    Args:
        target_points: (N, T, 2), (x, y), pixels of a 256 x 256 raster, float32 or float64.
        target_occluded: bool (N, T).
        query_mode: ``"first"``, or ``"strided"``: at frames 0, stride, 2 stride and so on.
        stride: frames between two queries of a track; 5 in TAP-Vid.

    Returns:
        Query points (Q, 3), (t, y, x) in the same pixels, and int64 (Q,), the track that each belongs to: by track in
        the first mode (tracks that are never visible have none), by frame and then by track in the second.

    Raises:
        TypeError, ValueError: an argument whose type, dtype, shape or device does not fit.
    """
    where = "tapvid_queries"
    check_tensor(where, "target_points", target_points)
    check_dtype(where, "target_points", target_points, _FLOATS)
    if target_points.ndim != 3 or target_points.shape[-1] != 2:
        raise ValueError(
            f"{where}: target_points must have shape (N, T, 2), got {tuple(target_points.shape)}"
        )
    shape, device = target_points.shape[:2], target_points.device
    check_like(where, "target_occluded", target_occluded, shape=shape, dtypes=(torch.bool,), device=device)
    if query_mode not in QUERY_MODES:
        raise ValueError(f"{where}: query_mode must be one of {', '.join(QUERY_MODES)}, got {query_mode!r}")
    if isinstance(stride, bool) or not isinstance(stride, int):
        raise TypeError(f"{where}: stride must be an int, got {type(stride).__name__}")
    if stride < 1:
        raise ValueError(f"{where}: stride must be at least 1, got {stride}")
    visible = ~target_occluded
    if query_mode == "first":
        first = visible & (visible.cumsum(dim=1) == 1)
        track, frame = first.nonzero().unbind(dim=1)
    else:
        step, track = visible[:, ::stride].T.nonzero().unbind(dim=1)
        frame = step * stride
    x, y = target_points[track, frame].unbind(dim=-1)
    return torch.stack([frame.to(x.dtype), y, x], dim=-1), track


def tapvid_metrics(
    query_points: Tensor,
    target_points: Tensor,
    target_occluded: Tensor,
    points: Tensor,
    occluded: Tensor,
    *,
    query_mode: str = "first",
) -> TapVidMetrics:
    """Average Jaccard, delta-average and occlusion accuracy of predicted tracks.

    Args:
        query_points: (B, Q, 3), (t, y, x); only t is read. float32 or float64.
        target_points, points: (B, Q, T, 2), truth and prediction in one order of axes, pixels of a 256 x 256 raster
            (``PointTracks.tapvid()`` gives the prediction). float32 or float64.
        target_occluded, occluded: bool (B, Q, T).
        query_mode: which frames count, see ``evaluation_mask``: ``"first"`` if each point is queried where it is first
            visible, ``"strided"`` if at regular frames.

    Raises:
        TypeError, ValueError: an argument whose type, dtype, shape or device does not fit.
    """
    where = "tapvid_metrics"
    check_tensor(where, "target_points", target_points)
    check_dtype(where, "target_points", target_points, _FLOATS)
    if target_points.ndim != 4 or target_points.shape[-1] != 2:
        raise ValueError(
            f"{where}: target_points must have shape (B, Q, T, 2), got {tuple(target_points.shape)}"
        )
    shape, device = target_points.shape[:3], target_points.device
    check_like(where, "query_points", query_points, shape=(*shape[:2], 3), dtypes=_FLOATS, device=device)
    check_like(where, "points", points, shape=target_points.shape, dtypes=_FLOATS, device=device)
    for name, flags in (("target_occluded", target_occluded), ("occluded", occluded)):
        check_like(where, name, flags, shape=shape, dtypes=(torch.bool,), device=device)
    counts = evaluation_mask(query_points[..., 0], shape[2], query_mode)

    def number(what: Tensor) -> Tensor:
        """How many of the evaluated points of each video: (..., B, Q, T) -> (..., B)."""
        return (what & counts).sum(dim=(-2, -1)).double()

    visible, said_visible = ~target_occluded, ~occluded
    accuracy = number(occluded == target_occluded) / counts.sum(dim=(-2, -1)).double()
    squared = (points.double() - target_points.double()).square().sum(dim=-1)
    limits = torch.tensor(THRESHOLDS, dtype=torch.float64, device=device).square().reshape(-1, 1, 1, 1)
    within = squared < limits  # (5, B, Q, T)
    truly_visible = number(visible)
    points_within = (number(within & visible) / truly_visible).T
    hits = number(within & visible & said_visible)
    false_alarms = number(said_visible & ~(within & visible))
    jaccard = (hits / (truly_visible + false_alarms)).T
    return TapVidMetrics(jaccard.mean(dim=1), points_within.mean(dim=1), accuracy, jaccard, points_within)
