"""TAP-Vid's metrics on cases that are worked out by hand, and certainty against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trecvit_kernels.tasks.point_tracking import (
    PointTracks,
    certainty,
    evaluation_mask,
    tapvid_metrics,
    tapvid_queries,
)
from trecvit_kernels.tasks.point_tracking.readout import expected_coordinates

# One point that stands at (10, 10) in four frames. Predicted: exact; 0.5 off; 3 off; 1 off, where it is occluded.
TRUTH = torch.full((1, 1, 4, 2), 10.0)
OCCLUDED = torch.tensor([[[False, False, False, True]]])
POINTS = torch.tensor([[[[10.0, 10.0], [10.5, 10.0], [10.0, 13.0], [10.0, 11.0]]]])


def queries(*frames: float) -> Tensor:
    return torch.tensor([[[frame, 10.0, 10.0] for frame in frames]])


def assert_equal(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_query_first() -> None:
    # Frames 1, 2, 3 count. All are called visible, 1 and 2 rightly: accuracy 2/3.
    # Of the 2 visible ones frame 1 is within every threshold, frame 2 (3 pixels off) within 4, 8 and 16.
    # Jaccard at 1 and 2: one hit / (2 visible + frames 2 and 3 called visible for nothing) = 1/4;
    # at 4, 8, 16: 2 hits / (2 visible + frame 3) = 2/3.
    said = torch.zeros(1, 1, 4, dtype=torch.bool)
    metrics = tapvid_metrics(queries(0), TRUTH, OCCLUDED, POINTS, said)
    assert_equal(metrics.occlusion_accuracy, [2 / 3])
    assert_equal(metrics.points_within[0], [1 / 2, 1 / 2, 1, 1, 1])
    assert_equal(metrics.average_points_within, [0.8])
    assert_equal(metrics.jaccard[0], [1 / 4, 1 / 4, 2 / 3, 2 / 3, 2 / 3])
    assert_equal(metrics.average_jaccard, [(1 / 4 + 1 / 4 + 2 / 3 * 3) / 5])


def test_strided() -> None:
    # Queried at frame 1: frames 0, 2, 3 count. Frame 0 is called occluded, wrongly, like frame 3: accuracy 1/3.
    # Its exact position counts all the same: within 1 and 2 pixels 1 of 2, within 4, 8, 16 both.
    # Jaccard at 1 and 2: no hit (frame 0 is not called visible, frame 2 too far); at 4, 8, 16: frame 2 is one hit /
    # (2 visible + frame 3) = 1/3; the average is 1/3 * 3 / 5.
    said = torch.tensor([[[True, False, False, False]]])
    metrics = tapvid_metrics(queries(1), TRUTH, OCCLUDED, POINTS, said, query_mode="strided")
    assert_equal(metrics.occlusion_accuracy, [1 / 3])
    assert_equal(metrics.average_points_within, [0.8])
    assert_equal(metrics.jaccard[0], [0, 0, 1 / 3, 1 / 3, 1 / 3])
    assert_equal(metrics.average_jaccard, [0.2])


def test_perfect_tracks_and_distances_at_the_threshold() -> None:
    metrics = tapvid_metrics(queries(0), TRUTH, OCCLUDED, TRUTH, OCCLUDED)
    assert [m.tolist() for m in metrics[:3]] == [[1.0]] * 3
    # "Within" is strict: 1 pixel off is not within 1, 16 pixels off is within none.
    for off, share in ((1.0, 4 / 5), (16.0, 0.0)):
        metrics = tapvid_metrics(queries(0), TRUTH, OCCLUDED, TRUTH + torch.tensor([off, 0.0]), OCCLUDED)
        assert_equal(metrics.average_points_within, [share])


def test_points_of_a_video_are_pooled_and_videos_are_not() -> None:
    # Query-first, 4 frames: the track queried at 0 counts 3 times, the one queried at 2 once (frame 3).
    # First video: visibility right in the first track, wrong in the second: 3/4, not the tracks' mean 1/2.
    # Second video: the other way round: 1/4. Nothing is occluded, so the visible points are 3 + 1 in either video,
    # and Jaccard (positions exact) is 3/4 and 1/4 too: what is called occluded is no hit, but no false alarm either.
    truth = torch.full((2, 2, 4, 2), 10.0)
    visible = torch.zeros(2, 2, 4, dtype=torch.bool)
    said = torch.zeros_like(visible)
    said[0, 1] = said[1, 0] = True
    metrics = tapvid_metrics(queries(0, 2).repeat(2, 1, 1), truth, visible, truth, said)
    assert_equal(metrics.occlusion_accuracy, [3 / 4, 1 / 4])
    assert_equal(metrics.average_jaccard, [3 / 4, 1 / 4])
    assert_equal(metrics.average_points_within, [1, 1])


def test_nothing_to_count_is_nan() -> None:
    metrics = tapvid_metrics(queries(3), TRUTH, OCCLUDED, POINTS, OCCLUDED)  # no frame after the last
    assert metrics.occlusion_accuracy.isnan().all() and metrics.average_jaccard.isnan().all()
    hidden = torch.ones_like(OCCLUDED)
    metrics = tapvid_metrics(queries(0), TRUTH, hidden, POINTS, hidden)
    assert metrics.occlusion_accuracy.tolist() == [1.0] and metrics.average_points_within.isnan().all()


def test_evaluation_masks() -> None:
    # Rounded to frames 0, 2 (2.4) and 2 (2.5, halves to even).
    frames = torch.tensor([0.0, 2.4, 2.5])
    first = evaluation_mask(frames, 4, "first").int().tolist()
    assert first == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    strided = evaluation_mask(frames, 4, "strided").int().tolist()
    assert strided == [[0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 1]]


def test_queries_of_a_video() -> None:
    # Track 0 is visible in frames 1 and 2, track 1 never, track 2 in frames 0 and 2; track n is at (x, y) = (t, 10 n).
    occluded = torch.tensor([[True, False, False], [True, True, True], [False, True, False]])
    points = torch.tensor([[[float(t), 10.0 * n] for t in range(3)] for n in range(3)])
    first, track = tapvid_queries(points, occluded)
    assert first.tolist() == [[1, 0, 1], [0, 20, 0]] and track.tolist() == [0, 2]
    strided, track = tapvid_queries(points, occluded, query_mode="strided", stride=2)  # frames 0 and 2
    assert strided.tolist() == [[0, 20, 0], [2, 0, 2], [2, 20, 2]] and track.tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        tapvid_queries(points, occluded, stride=0)
    with pytest.raises(ValueError, match=r"target_points must have shape \(N, T, 2\), got \(1, 3, 3, 2\)"):
        tapvid_queries(points.unsqueeze(0), occluded)


def test_bad_input_is_named() -> None:
    said = torch.zeros(1, 1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="query_mode must be one of first, strided, got 'last'"):
        tapvid_metrics(queries(0), TRUTH, OCCLUDED, POINTS, said, query_mode="last")
    for frame in (-1.0, 4.0, math.nan):
        with pytest.raises(ValueError, match=r"query_frames must lie in the video's 4 frames, got"):
            tapvid_metrics(queries(frame), TRUTH, OCCLUDED, POINTS, said)
    with pytest.raises(TypeError, match="occluded must have dtype bool, got float32"):
        tapvid_metrics(queries(0), TRUTH, OCCLUDED, POINTS, said.float())
    with pytest.raises(ValueError, match=r"points must have shape \(1, 1, 4, 2\), got \(1, 1, 3, 2\)"):
        tapvid_metrics(queries(0), TRUTH, OCCLUDED, POINTS[:, :, 1:], said)
    with pytest.raises(ValueError, match=r"target_points must have shape \(B, Q, T, 2\), got \(1, 4, 2\)"):
        tapvid_metrics(queries(0), TRUTH[0], OCCLUDED, POINTS, said)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        evaluation_mask(torch.zeros(1), 0, "first")


def test_tracks_to_tapvid() -> None:
    tracks = torch.tensor([[[[64.0, 128.0]], [[32.0, 1.0]]]])  # (B, T, Q, 2) = (1, 2, 1, 2), (y, x)
    result = PointTracks(tracks, torch.zeros(1, 2, 1, 512), torch.tensor([[[[0.1]], [[-0.1]]]]))
    points, occluded = result.tapvid()
    assert points.tolist() == [[[[128.0, 64.0], [1.0, 32.0]]]]
    assert occluded.tolist() == [[[False, True]]]
    assert result.visible.tolist() == [[[True], [False]]]
    assert result.in_pixels(512, 128)[0, 0, 0].tolist() == [128.0, 64.0]


def test_coordinates_of_a_known_distribution() -> None:
    # Half the logits: bins 100 and 101 at 2 ln 3 and 0 weigh 3 : 1, so the mean is 100.25 + 0.5. Bin 121 is 21 bins
    # away from the best and does not count, however heavy; of x all bins are equal: bins 0 to 20 count, mean 10.5.
    logits = torch.full((512,), -1e4)
    logits[100], logits[101], logits[121] = 2 * math.log(3), 0.0, 2.1
    logits[256:] = 0.0
    torch.testing.assert_close(expected_coordinates(logits), torch.tensor([100.75, 10.5]))


@pytest.mark.parametrize("radius", [1, 8, 20])
def test_certainty_counts_every_pair_of_bins(radius: int) -> None:
    tracks = torch.tensor(
        [[0.5, 255.5], [3.25, 250.9], [128.0, 127.5], [8.5, 247.5], [77.77, 13.13]]
    ).double()
    logits = torch.randn(5, 512, dtype=torch.float64) * 3
    of_y, of_x = logits.unflatten(-1, (2, 256)).softmax(dim=-1).unbind(-2)
    centre = torch.arange(256) + 0.5
    squared_y, squared_x = ((centre - tracks[:, axis, None]).square() for axis in range(2))
    inside = squared_y.unsqueeze(2) + squared_x.unsqueeze(1) <= radius**2 + 1e-8
    expected = (of_y.unsqueeze(2) * of_x.unsqueeze(1) * inside).sum(dim=(1, 2))
    torch.testing.assert_close(certainty(tracks, logits, radius).squeeze(-1), expected)


def test_certainty_of_a_sure_prediction_and_bad_input() -> None:
    logits = torch.zeros(512)
    logits[40] = logits[256 + 90] = 100.0
    for form in ("exact", "published"):
        sure = certainty(torch.tensor([40.5, 90.5]), logits, form=form)
        torch.testing.assert_close(sure, torch.ones(1))
    with pytest.raises(ValueError, match=r"track_logits must have shape \(2, 512\), got \(512,\)"):
        certainty(torch.zeros(2, 2), logits)
    with pytest.raises(ValueError, match="radius must be between 1 and 127, got 128"):
        certainty(torch.zeros(2), logits, 128)
    with pytest.raises(ValueError, match="form must be one of exact, published, got 'jax'"):
        certainty(torch.zeros(2), logits, form="jax")
