"""Point tracking for the training program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from trecvit_kernels._checks import check_like, check_tensor
from trecvit_kernels.tasks.point_tracking.checkpoint import load_tapnext_checkpoint
from trecvit_kernels.tasks.point_tracking.config import PointTrackerConfig
from trecvit_kernels.tasks.point_tracking.losses import COORDINATE_MEANS, LossWeights, tracking_loss
from trecvit_kernels.tasks.point_tracking.metrics import QUERY_MODES, evaluation_mask, tapvid_metrics
from trecvit_kernels.tasks.point_tracking.model import PointTracker
from trecvit_kernels.tasks.point_tracking.readout import BINS
from trecvit_kernels.tasks.task import Batch, Task

_FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class PointTrackingTask(Task):
    """Follow points as TAPNext does.

    A batch holds, beside ``video``, ``query_points`` (B, Q, 3), (t, y, x), ``target_points`` (B, Q, T, 2), (x, y), both
    in pixels of the video with pixel centres at +0.5, and ``visible``, bool (B, Q, T).

    Attributes:
        model: sizes of the tracker.
        checkpoint: official TAPNext weights to start from, which must have these sizes; None: random weights.
        huber_weight, coordinate_weight, visibility_weight: of the terms of the loss.
        coordinate_mean: which points the cross-entropy of the coordinates is averaged over, see ``tracking_loss``.
        query_mode: which frames count in the evaluation, see ``evaluation_mask``.
    """

    needs = ("video", "query_points", "target_points", "visible")

    model: PointTrackerConfig = field(default_factory=PointTrackerConfig)
    checkpoint: str | None = None
    huber_weight: float = 0.1
    coordinate_weight: float = 1.0
    visibility_weight: float = 1.0
    coordinate_mean: str = "visible"
    query_mode: str = "first"

    def __post_init__(self) -> None:
        if not isinstance(self.model, PointTrackerConfig):
            raise TypeError(
                f"PointTrackingTask: model must be a PointTrackerConfig, got {type(self.model).__name__}"
            )
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise FileNotFoundError(f"PointTrackingTask: checkpoint must be a file, got {self.checkpoint}")
        for name in ("huber_weight", "coordinate_weight", "visibility_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"PointTrackingTask: {name} must be at least 0, got {getattr(self, name)}")
        for name, known in (("coordinate_mean", COORDINATE_MEANS), ("query_mode", QUERY_MODES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"PointTrackingTask: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )

    def check_clips(self, prefix: str, frames: int, size: tuple[int, int], *, training: bool) -> None:
        if any(side % patch for side, patch in zip(size, self.model.patch_size)):
            raise ValueError(f"{prefix}size must be whole patches of {self.model.patch_size}, got {size}")

    def build(self) -> nn.Module:
        """A ``PointTracker``."""
        if self.checkpoint is None:
            return PointTracker(self.model)
        tracker = load_tapnext_checkpoint(self.checkpoint)
        if tracker.config != self.model:
            raise ValueError(
                f"PointTrackingTask: checkpoint must hold a model of {self.model}, got {tracker.config}"
            )
        return tracker

    def loss(
        self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of Huber, coordinate and visibility terms, and the three terms."""
        query_points, target_points = self._scaled(batch)
        weights = LossWeights(self.huber_weight, self.coordinate_weight, self.visibility_weight)
        loss = tracking_loss(
            model(batch["video"], query_points),
            target_points,
            batch["visible"],
            weights=weights,
            coordinate_mean=self.coordinate_mean,
        )
        terms = loss._asdict()
        return terms.pop("total"), {name: term.detach() for name, term in terms.items()}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """TAP-Vid's metrics and mean errors.

        Returns:
            ``average_jaccard``, ``average_points_within`` (the delta-average) and ``occlusion_accuracy``, each the mean
            over the videos that define it; ``mean_error``, the mean distance in pixels of the 256 x 256 raster over all
            evaluated frames in which a point is visible; ``static_error``, the same if points never moved from where
            they were asked for.

        Raises:
            ValueError: no batches, or a batch that does not fit.
        """
        names = ("average_jaccard", "average_points_within", "occlusion_accuracy")
        values: dict[str, list[Tensor]] = {name: [] for name in names}
        errors: dict[str, list[Tensor]] = {"mean_error": [], "static_error": []}
        for batch in batches:
            query_points, target_points = self._scaled(batch)
            points, occluded = model(batch["video"], query_points).tapvid()
            target_points = target_points.to(points.dtype)
            metrics = tapvid_metrics(
                query_points,
                target_points,
                ~batch["visible"],
                points,
                occluded,
                query_mode=self.query_mode,
            )
            for name in names:
                values[name].append(getattr(metrics, name).cpu())
            counted = batch["visible"] & evaluation_mask(
                query_points[..., 0], points.shape[2], self.query_mode
            )
            down, across = self.model.image_size
            raster = query_points.new_tensor([BINS / across, BINS / down])
            still = (query_points[..., [2, 1]] * raster).unsqueeze(2)
            for name, guess in (("mean_error", points), ("static_error", still)):
                errors[name].append((guess - target_points).norm(dim=-1)[counted].cpu())
        if not values[names[0]]:
            raise ValueError("PointTrackingTask.evaluate: there must be at least one batch, got none")
        return {name: torch.cat(kept).nanmean().item() for name, kept in values.items()} | {
            name: torch.cat(kept).double().mean().item() for name, kept in errors.items()
        }

    def _scaled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Query points in pixels of ``model.image_size``, targets in the raster of 256 x 256."""
        where, video = "PointTrackingTask", batch["video"]
        queries, targets = batch["query_points"], batch["target_points"]
        check_tensor(where, "query_points", queries)
        if queries.ndim != 3:
            raise ValueError(f"{where}: query_points must have shape (B, Q, 3), got {tuple(queries.shape)}")
        count, (height, width), device = queries.shape[1], video.shape[-2:], video.device
        of_queries, of_targets = (len(video), count, 3), (len(video), count, video.shape[1], 2)
        check_like(where, "query_points", queries, shape=of_queries, dtypes=_FLOATS, device=device)
        check_like(where, "target_points", targets, shape=of_targets, dtypes=_FLOATS, device=device)
        down, across = self.model.image_size
        return (
            queries * queries.new_tensor([1, down / height, across / width]),
            targets * targets.new_tensor([BINS / width, BINS / height]),
        )
