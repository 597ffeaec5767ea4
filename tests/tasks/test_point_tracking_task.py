"""Point tracking as a task of the training program: units, masks, measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trecvit_kernels.tasks.point_tracking import PointTrackerConfig, PointTracks, tracking_loss
from trecvit_kernels.tasks.point_tracking.task import PointTrackingTask
from trecvit_kernels.tasks.task import Batch
from trecvit_kernels.training.synthetic import moving_shapes

CONFIG = PointTrackerConfig(width=32, depth=1, num_heads=2, patch_size=8, image_size=64, head_width=16)


def _batch(size: tuple[int, int] = (32, 48)) -> Batch:
    clips = [moving_shapes(np.random.default_rng(seed), frames=5, size=size, points=6) for seed in range(2)]
    return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}


class Oracle(nn.Module):
    """Answers with given tracks, and keeps the queries it was asked."""

    def __init__(self, tracks: Tensor, visible: Tensor) -> None:
        super().__init__()
        self.tracks, self.visible = tracks, visible

    def forward(self, video: Tensor, query_points: Tensor) -> PointTracks:
        self.queries = query_points
        logits = torch.zeros(*self.tracks.shape[:-1], 512)
        return PointTracks(self.tracks, logits, torch.where(self.visible, 9.0, -9.0).unsqueeze(-1))


def _truth(batch: Batch, shift: float = 0.0) -> Oracle:
    """The true tracks, (y, x) in 256 x 256, of a video of 32 x 48 pixels; moved by ``shift`` pixels of that raster."""
    x, y = batch["target_points"].unbind(-1)
    tracks = torch.stack([y * 256 / 32 + shift, x * 256 / 48], dim=-1).transpose(1, 2)
    return Oracle(tracks, batch["visible"].transpose(1, 2))


def _still(batch: Batch) -> Oracle:
    """Every point stays where it was asked for, of a video of 64 x 64 pixels."""
    frames = batch["video"].shape[1]
    tracks = (batch["query_points"][:, None, :, 1:] * 4).expand(-1, frames, -1, -1)
    return Oracle(tracks, batch["visible"].transpose(1, 2))


def test_perfect_tracks() -> None:
    batch, task = _batch(), PointTrackingTask(model=CONFIG)
    oracle = _truth(batch)
    measures = task.evaluate(oracle, [batch, batch])
    assert measures.pop("static_error") > 1
    assert measures == {
        "average_jaccard": 1.0,
        "average_points_within": 1.0,
        "occlusion_accuracy": 1.0,
        "mean_error": pytest.approx(0.0, abs=1e-4),
    }
    t, y, x = batch["query_points"].unbind(-1)
    torch.testing.assert_close(oracle.queries, torch.stack([t, y * 64 / 32, x * 64 / 48], dim=-1))


def test_tracks_that_are_three_pixels_off() -> None:
    """Within 4, 8 and 16 pixels but not within 1 and 2."""
    batch = _batch()
    measures = PointTrackingTask(model=CONFIG).evaluate(_truth(batch, shift=3.0), [batch])
    assert measures["average_points_within"] == pytest.approx(0.6)
    assert measures["average_jaccard"] == pytest.approx(0.6)
    assert measures["occlusion_accuracy"] == 1
    assert measures["mean_error"] == pytest.approx(3.0, abs=1e-4)


def test_mean_errors_count_visible_points_after_the_query() -> None:
    """By hand: the query's frame and a hidden one do not count; a 3-4-5 triangle, in a raster 4 times as fine."""
    batch = {
        "video": torch.zeros(1, 4, 3, 64, 64, dtype=torch.uint8),
        "query_points": torch.tensor([[[0.0, 20.0, 10.0]]]),
        "target_points": torch.tensor([[[[10.0, 20.0], [13.0, 24.0], [900.0, 900.0], [10.0, 30.0]]]]),
        "visible": torch.tensor([[[True, True, False, True]]]),
    }
    stays = _still(batch)
    measures = PointTrackingTask(model=CONFIG).evaluate(stays, [batch])
    assert measures["static_error"] == pytest.approx(4 * (5 + 10) / 2)
    assert measures["mean_error"] == pytest.approx(measures["static_error"])
    assert measures["occlusion_accuracy"] == 1


def test_invisible_points_do_not_count_in_the_masked_terms() -> None:
    batch = _batch((64, 64))
    task = PointTrackingTask(model=CONFIG, visibility_weight=0.0)
    model = task.build()
    moved = torch.where(batch["visible"].unsqueeze(-1), batch["target_points"], 1e6)
    loss, terms = task.loss(model, batch)
    assert torch.equal(task.loss(model, {**batch, "target_points": moved})[0], loss)
    assert set(terms) == {"huber", "coordinate", "visibility"} and not terms["huber"].requires_grad
    expected = tracking_loss(
        model(batch["video"], batch["query_points"]), batch["target_points"] * 4, batch["visible"]
    )
    torch.testing.assert_close(terms["coordinate"], expected.coordinate.detach())
    published = PointTrackingTask(model=CONFIG, coordinate_mean="all")
    assert not torch.equal(published.loss(model, batch)[1]["coordinate"], terms["coordinate"])


def test_refused() -> None:
    with pytest.raises(TypeError, match="model must be a PointTrackerConfig, got dict"):
        PointTrackingTask(model={})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="huber_weight must be at least 0, got -1"):
        PointTrackingTask(huber_weight=-1)
    task, batch = PointTrackingTask(model=CONFIG), _batch()
    with pytest.raises(ValueError, match="there must be at least one batch"):
        task.evaluate(_truth(batch), [])
    with pytest.raises(ValueError, match="target_points must have shape"):
        task.loss(task.build(), {**batch, "target_points": batch["target_points"][:, :, 1:]})
