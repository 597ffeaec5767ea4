"""The point tracker's own promises: streaming, late queries, dtypes, losses by hand, refused input."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

import trecvit_kernels as tk
from trecvit_kernels.tasks.point_tracking import (
    LossWeights,
    PointTracker,
    PointTrackerConfig,
    PointTracks,
    tracking_loss,
)
from trecvit_kernels.tasks.point_tracking.losses import coordinate_cross_entropy, huber_distance
from trecvit_kernels.tasks.point_tracking.queries import sample_positions

CONFIG = PointTrackerConfig(width=16, depth=2, num_heads=2, image_size=32, head_width=16)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "point_tracking.md"


@pytest.fixture
def model() -> PointTracker:
    return PointTracker(CONFIG).eval()


@pytest.fixture
def video() -> Tensor:
    return torch.rand(2, 5, 3, 32, 32)


@pytest.fixture
def queries() -> Tensor:
    return torch.tensor([[[0.0, 4.5, 20.5], [3.0, 10.0, 7.25]], [[1.0, 0.5, 31.5], [4.0, 16.0, 16.0]]])


def assert_same(a: PointTracks, b: PointTracks, tolerance: float = 1e-5) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * y.abs().max().item())


def stream(model: PointTracker, video: Tensor, queries: Tensor, sizes: list[int]) -> PointTracks:
    state, parts = model.init_state(queries, tuple(video.shape[-2:])), []
    for chunk in video.split(sizes, dim=1):
        tracks, state = model.step(chunk, state)
        parts.append(tracks)
    return PointTracks(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))


def test_chunks_give_the_same_gradients(model: PointTracker, video: Tensor, queries: Tensor) -> None:
    model = model.double()
    found = []
    for tracks in (model(video, queries), stream(model, video, queries, [1, 3, 1])):
        loss = sum(output.square().mean() for output in tracks)
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for offline, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, offline, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_a_query_is_unknown_before_its_frame(model: PointTracker, video: Tensor, queries: Tensor) -> None:
    moved = queries.clone()
    moved[:, 1, 1:] += 9.0  # queried at frames 3 and 4
    a, b = stream(model, video, queries, [2, 1, 2]), stream(model, video, moved, [2, 1, 2])
    for start, clip in zip((3, 4), range(2), strict=True):
        before, on = (slice(None, start), slice(start, start + 1))
        assert all(torch.equal(x[clip, before], y[clip, before]) for x, y in zip(a, b, strict=True))
        assert all(not torch.equal(x[clip, on], y[clip, on]) for x, y in zip(a, b, strict=True))


@torch.no_grad()
def test_other_queries_for_one_chunk_leave_the_state_its_own(
    model: PointTracker, video: Tensor, queries: Tensor
) -> None:
    other = queries + torch.tensor([0.0, 3.0, -2.0])
    other[..., 0] = 2.0
    _, state = model.step(video[:, :2], model.init_state(queries))
    tracks, after = model.step(video[:, 2:4], state, other)
    assert torch.equal(after.query_points, queries) and after.step == 4
    as_if_always = model.step(video[:, 2:4], type(state)(CONFIG, state.layers, other, state.grid, 2))[0]
    assert_same(tracks, as_if_always, 0.0)
    assert not torch.equal(tracks.tracks, model.step(video[:, 2:4], state)[0].tracks)


def test_state_is_constant_movable_and_a_pytree(model: PointTracker, video: Tensor, queries: Tensor) -> None:
    state = model.init_state(queries)
    tokens = 16 + 2
    assert state.nbytes == queries.nbytes + 2 * (2 * tokens * 16 + 2 * 3 * tokens * 16) * 4
    _, after = model.step(video, state)
    assert after.nbytes == state.nbytes and state.step == 0 and after.step == 5
    assert after.layers[0][0].requires_grad and not after.detach().layers[0][0].requires_grad
    copy = after.clone()
    assert copy.layers[1][1].data_ptr() != after.layers[1][1].data_ptr()
    doubled = _pytree.tree_map(lambda tensor: 2 * tensor, after)
    assert torch.equal(doubled.layers[0][1], 2 * after.layers[0][1]) and doubled.step == 5
    assert after.to("cpu").device == torch.device("cpu")


@torch.no_grad()
def test_pixels_in_bytes_and_in_half_precision(model: PointTracker, queries: Tensor) -> None:
    pixels = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    expected = model(pixels / 255, queries)
    assert_same(model(pixels, queries), expected, 0.0)
    # 2 x - 1 is computed in float32: nothing is lost near black, where bfloat16 is finer than near -1.
    half = (pixels / 255).bfloat16()
    assert_same(model(half, queries), model(half.float(), queries), 0.0)


@torch.no_grad()
def test_bfloat16(model: PointTracker, video: Tensor, queries: Tensor, backend: str) -> None:
    exact = model(video, queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        casted = model(video, queries)
    half = model.bfloat16()
    tracks = half(video, queries)
    assert tracks.tracks.dtype == torch.float32 and tracks.track_logits.dtype == torch.bfloat16
    streamed = stream(half, video, queries, [1, 4])
    for found in (tracks, streamed, casted):
        for logits, truth in zip(found[1:], exact[1:], strict=True):
            assert (logits.float() - truth).norm() <= 0.05 * truth.norm()  # 13 times the spacing of bfloat16
        assert found.tracks.min() >= 0.5 and found.tracks.max() <= 255.5
    loss = tracking_loss(half(video, queries), torch.rand(2, 2, 5, 2) * 256, torch.rand(2, 2, 5) > 0.5)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in loss)


@torch.no_grad()
def test_fused_additions_give_the_same(
    model: PointTracker, video: Tensor, queries: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way through the blocks that a GPU's fused residual additions take, here with the plain ones."""
    expected = model(video, queries)
    monkeypatch.setattr("trecvit_kernels.models.encoder.is_fused", lambda *tensors: True)
    assert_same(model(video, queries), expected)
    assert_same(stream(model, video, queries, [2, 3]), expected)


def test_sampling_is_grid_sample_of_the_table() -> None:
    """Zero padding at every edge, half in, far out; and no mixing up of height and width."""
    height, width, channels = 6, 9, 8
    table = tk.models.positions.sincos2d(height, width, channels).unflatten(1, (height, width)).double()
    y = torch.tensor([-7.0, -0.5, -0.2, 0.0, 0.3, 0.5, 2.75, 5.5, 5.9, 6.0, 6.4, 6.5, 12.0]).double()
    x = torch.cat([y[:-4], torch.tensor([8.5, 8.8, 9.0, 9.4, 9.5, 20.0]).double()])
    points = torch.cartesian_prod(y, x)
    grid = (points.flip(-1) / torch.tensor([width, height]) * 2 - 1).reshape(1, 1, -1, 2)
    theirs = torch.nn.functional.grid_sample(table.permute(0, 3, 1, 2), grid, align_corners=False)
    ours = sample_positions(points, (height, width), channels)
    torch.testing.assert_close(ours, theirs[0, :, 0].T, rtol=0, atol=1e-12)


def test_a_few_steps_of_training(video: Tensor, queries: Tensor) -> None:
    model = PointTracker(CONFIG).train()
    targets, visible = torch.rand(2, 2, 5, 2) * 256, torch.rand(2, 2, 5) > 0.3
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = tracking_loss(model(video, queries), targets, visible).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def outputs(tracks: Tensor) -> PointTracks:
    shape = tracks.shape[:3]
    return PointTracks(tracks, torch.randn(*shape, 512), torch.randn(*shape, 1))


def test_losses_by_hand() -> None:
    # Off by (3, 4): distance 5, beyond delta, so 5 - 1/2. Off by (0.6, 0): 0.36 / 2. A target at 300 counts as 255.
    points = torch.tensor([[13.0, 14.0], [10.6, 10.0], [255.0, 10.0], [10.0, 10.0]])
    target = torch.tensor([[10.0, 10.0], [10.0, 10.0], [300.0, 10.0], [10.0, 10.0]])
    torch.testing.assert_close(huber_distance(points, target), torch.tensor([4.5, 0.18, 0.0, 0.0]))
    # Bins: 11 - 0.5 = 10.5 and 12 - 0.5 = 11.5 round to the even 10 and 12; 0.2 and 400 are clipped to 0 and 255.
    logits = torch.zeros(2, 512)
    logits[0, 10] = logits[0, 256 + 12] = logits[1, 0] = logits[1, 511] = 50.0
    entropy = coordinate_cross_entropy(logits, torch.tensor([[11.0, 12.0], [0.2, 400.0]]))
    torch.testing.assert_close(entropy, torch.zeros(2), rtol=0, atol=1e-5)
    # Equal logits: ln 256 per axis and ln 2 for visibility, whatever the truth; weights 0.1, 1, 1.
    flat = PointTracks(torch.full((1, 1, 2, 2), 5.0), torch.zeros(1, 1, 2, 512), torch.zeros(1, 1, 2, 1))
    truth, visible = torch.tensor([[[[5.0, 8.0]], [[5.0, 5.0]]]]), torch.tensor([[[True], [True]]])
    loss = tracking_loss(flat, truth[0].unsqueeze(0), visible)
    huber = (2.5 + 0.0) / 2
    expected = (huber, 2 * math.log(256), math.log(2))
    torch.testing.assert_close(torch.stack(loss[:3]), torch.tensor(expected))
    assert loss.total.item() == pytest.approx(0.1 * huber + expected[1] + expected[2], rel=1e-6)
    weighted = tracking_loss(flat, truth[0].unsqueeze(0), visible, weights=LossWeights(2.0, 0.0, 3.0))
    assert weighted.total.item() == pytest.approx(2 * huber + 3 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("hidden", [0.0, math.nan, math.inf])
def test_nothing_visible_is_no_nan(hidden: float) -> None:
    tracks = outputs(torch.rand(1, 3, 2, 2) * 256)
    for tensor in tracks:
        tensor.requires_grad_()
    targets, visible = torch.full((1, 2, 3, 2), hidden), torch.zeros(1, 2, 3, dtype=torch.bool)
    loss = tracking_loss(tracks, targets, visible)
    assert loss.huber == 0 and loss.coordinate == 0 and loss.visibility > 0
    loss.total.backward()
    assert all(tensor.grad.isfinite().all() for tensor in tracks)
    assert not tracks.tracks.grad.any() and not tracks.track_logits.grad.any()


def test_configuration_refuses_by_name() -> None:
    for fields, error, message in (
        ({"width": 10}, ValueError, "width must be a multiple of 4, got 10"),
        ({"num_heads": 5}, ValueError, "width must be a multiple of num_heads = 5, got 768"),
        ({"lru_width": 100}, ValueError, "lru_width must be a multiple of num_heads = 12, got 100"),
        ({"image_size": 250}, ValueError, r"image_size must be whole patches of \(8, 8\), got \(250, 250\)"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": 1.0}, TypeError, "depth must be an int, got float"),
        ({"patch_size": "8"}, TypeError, r"patch_size must be \(height, width\), got str"),
        ({"min_radius": 1.0}, ValueError, "min_radius must be between 0 and 0.999, got 1.0"),
    ):
        with pytest.raises(error, match=f"PointTrackerConfig: {message}"):
            PointTrackerConfig(**fields)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config must be a PointTrackerConfig, got dict"):
        PointTracker({})  # type: ignore[arg-type]


def test_wrong_videos_and_queries(model: PointTracker, video: Tensor, queries: Tensor) -> None:
    for arguments, error, message in (
        ((video.numpy(), queries), TypeError, "video must be a torch.Tensor, got ndarray"),
        ((video.int(), queries), TypeError, "video must have dtype .* got int32"),
        ((video[0], queries), ValueError, r"video must have shape \(B, T, 3, H, W\), got \(5, 3, 32, 32\)"),
        ((video.movedim(2, -1), queries), ValueError, r"video must have shape \(B, T, 3, H, W\)"),
        ((video[:, :0], queries), ValueError, "video must have at least one frame"),
        ((video[..., :30], queries), ValueError, r"whole patches of \(8, 8\) pixels, got 32 x 30"),
        ((video.to("meta"), queries), ValueError, "video must be on device cpu, got meta"),
        ((video, queries.tolist()), TypeError, "query_points must be a torch.Tensor, got list"),
        ((video, queries.long()), TypeError, "query_points must have dtype float32 or float64, got int64"),
        ((video, queries[..., :2]), ValueError, r"query_points must have shape \(B, Q, 3\) with Q >= 1"),
        ((video, queries[:, :0]), ValueError, r"query_points must have shape \(B, Q, 3\) with Q >= 1"),
        ((video, queries[:1]), ValueError, "query_points must have batch size 2"),
        ((video, queries * math.nan), ValueError, r"query_points must be finite, got \[nan, nan, nan\] at"),
    ):
        with pytest.raises(error, match=f"PointTracker.forward: .*{message}"):
            model(*arguments)


def test_wrong_states(model: PointTracker, video: Tensor, queries: Tensor) -> None:
    state = model.init_state(queries)
    other = PointTracker(PointTrackerConfig(width=16, depth=1, num_heads=2, image_size=32))
    layers = tuple((h[:, :-1], tail) for h, tail in state.layers)
    cut = type(state)(CONFIG, layers, queries, state.grid)
    three = torch.cat([queries, queries[:, :1]], dim=1)
    cases: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((video[0, 0], state), ValueError, "frame must have at least 4 dimensions"),
        ((video, None), TypeError, "state must be a PointTrackerState, got NoneType"),
        ((video[:1], state), ValueError, "state must have batch size 1, got 2"),
        (
            (video, other.init_state(queries)),
            ValueError,
            r"state must come from a model with depth = 2 \(state: 1",
        ),
        ((video[..., :16], state), ValueError, r"state must be of frames of \(4, 2\) patches, got \(4, 4\)"),
        ((video, cut), ValueError, r"state layers\.0\.h must have shape \(2, 18, 16\), got \(2, 17, 16\)"),
        ((video, state.to("meta")), ValueError, "state query_points must be on device cpu, got meta"),
        ((video, state, three), ValueError, "query_points must be 2, as many as the state's, got 3"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=f"PointTracker.step: .*{message}"):
            model.step(*arguments)
    with pytest.raises(
        ValueError, match="init_state: video_size must have height and width in whole patches"
    ):
        model.init_state(queries, (32, 33))
    with pytest.raises(TypeError, match=r"init_state: video_size must be \(height, width\), got 32"):
        model.init_state(queries, 32)  # type: ignore[arg-type]


def test_wrong_targets() -> None:
    tracks = outputs(torch.rand(1, 3, 2, 2))
    targets, visible = torch.rand(1, 2, 3, 2), torch.ones(1, 2, 3, dtype=torch.bool)
    cases: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        (((1, 2, 3), targets, visible), TypeError, "tracks must be PointTracks, got tuple"),
        (
            (tracks, targets.transpose(1, 2), visible),
            ValueError,
            r"target_points must have shape \(1, 2, 3, 2\)",
        ),
        ((tracks, targets, visible.unsqueeze(-1)), ValueError, r"visible must have shape \(1, 2, 3\)"),
        ((tracks, targets, visible.float()), TypeError, "visible must have dtype bool, got float32"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=f"tracking_loss: {message}"):
            tracking_loss(*arguments)
    with pytest.raises(ValueError, match="coordinate_mean must be one of visible, all, got 'none'"):
        tracking_loss(tracks, targets, visible, coordinate_mean="none")


def test_the_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["tracks"].tracks.shape == (1, 8, 3, 2)
    assert_same(PointTracks(*(x[:, -1:] for x in names["tracks"])), names["now"])
    assert names["metrics"].average_jaccard.shape == (1,)
    assert names["query_points"].shape == (1, 3, 3)
    for name in re.findall(r"`(?:point_tracking\.)?(\w+)\(\)?`", text):
        assert hasattr(tk.tasks.point_tracking, name) or hasattr(PointTracks, name), name
