"""The point tracker against the official TAPNext: golden/tapnext/tapnext_{small,interp}.npz."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trecvit_kernels.tasks.point_tracking import (
    PointTracker,
    PointTrackerConfig,
    PointTrackerState,
    PointTracks,
    certainty,
    layouts,
    load_tapnext_checkpoint,
    tapnext_state_dict,
    tracking_loss,
)

OUTPUT, GRADIENT = 5e-6, 2e-5  # golden/tapnext/README.md: relative to the largest element
OUTPUTS = PointTracks._fields
Arrays = dict[str, Tensor]


def parameters(small: Arrays) -> Arrays:
    return {name.removeprefix("param/"): a for name, a in small.items() if name.startswith("param/")}


def tracker(small: Arrays, image_size: int | tuple[int, int] = 64) -> PointTracker:
    config = PointTrackerConfig(width=48, depth=3, num_heads=4, image_size=image_size)
    model = PointTracker(config)
    model.load_state_dict(layouts.read("torch", parameters(small), config), strict=True)
    return model


def video(golden: Arrays, prefix: str = "") -> Tensor:
    """Channels last in [-1, 1] -> our layout in [0, 1], in float64: the model sees the same pixels to the last bit."""
    return ((golden[f"{prefix}video"].double() + 1) / 2).permute(0, 1, 4, 2, 3)


def assert_close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype, what
    error = (got - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{what}: {error:.2e}"


def assert_tracks(tracks: PointTracks, golden: Arrays, prefix: str) -> None:
    for name in OUTPUTS:
        assert_close(getattr(tracks, name), golden[f"{prefix}/{name}"], OUTPUT, f"{prefix}/{name}")


def stream(
    model: PointTracker, pixels: Tensor, queries: Tensor, sizes: list[int]
) -> tuple[PointTracks, PointTrackerState]:
    state = model.init_state(queries, tuple(pixels.shape[-2:]))
    parts = []
    for chunk in pixels.split(sizes, dim=1):
        tracks, state = model.step(chunk[:, 0] if chunk.shape[1] == 1 else chunk, state)
        parts.append(tracks)
    return PointTracks(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True))), state


def assert_state(state: PointTrackerState, golden: Arrays, prefix: str) -> None:
    assert state.step == golden[f"{prefix}/state/step"].item()
    assert torch.equal(state.query_points, golden[f"{prefix}/state/query_points"])
    for i, (h, tail) in enumerate(state.layers):
        lru, conv = (golden[f"{prefix}/state/{i}/{n}_state"] for n in ("rg_lru", "conv1d"))
        assert_close(h.flatten(0, 1), lru, OUTPUT, f"{prefix} h {i}")
        assert_close(tail.transpose(1, 2).flatten(0, 1), conv, OUTPUT, f"{prefix} tail {i}")


def test_official_names_and_the_query_table_bit_by_bit(small: Arrays) -> None:
    ours = tapnext_state_dict(tracker(small))
    assert sorted(ours) == sorted(parameters(small))
    assert all(torch.equal(ours[name], tensor) for name, tensor in parameters(small).items())


@torch.no_grad()
def test_offline(small: Arrays, backend: str) -> None:
    tracks = tracker(small).eval()(video(small), small["query_points"])
    assert_tracks(tracks, small, "offline")
    published = certainty(tracks.tracks, tracks.track_logits, form="published")
    assert_close(published, small["offline/certainty_r8"], OUTPUT, "certainty")


@torch.no_grad()
@pytest.mark.parametrize("mode", ["offline", "online", "chunked"])
def test_with_a_state(small: Arrays, backend: str, mode: str) -> None:
    sizes = {"offline": [7], "online": [1] * 7, "chunked": small["chunked/sizes"].tolist()}[mode]
    tracks, state = stream(tracker(small).eval(), video(small), small["query_points"], sizes)
    assert_tracks(tracks, small, mode)
    assert_state(state, small, mode)


@torch.no_grad()
def test_every_intermediate(small: Arrays, backend: str) -> None:
    kept = tracker(small).forward_features(video(small), small["query_points"])
    theirs = {"tokens": "tokens_in", "encoded": "encoder_norm_out"}
    for i in range(3):
        theirs |= {f"blocks.{i}.time": f"block{i}_ssm_out", f"blocks.{i}.space": f"block{i}_out"}
    assert set(kept) == set(theirs)
    assert {f"inter/{name}" for name in theirs.values()} == {n for n in small if n.startswith("inter/")}
    for ours, name in theirs.items():
        assert_close(kept[ours][:1], small[f"inter/{name}"], OUTPUT, name)


@torch.no_grad()
def test_late_negative_fractional_and_off_image_queries(small: Arrays, backend: str) -> None:
    model, queries = tracker(small).eval(), small["edge/query_points"]
    assert_tracks(model(video(small), queries), small, "edge/offline")
    for mode, sizes in (("online", [1] * 7), ("offline", [2, 5])):
        assert_tracks(stream(model, video(small), queries, sizes)[0], small, f"edge/{mode}")


def weighted(tracks: PointTracks, golden: Arrays, prefix: str) -> Tensor:
    return sum((getattr(tracks, name) * golden[f"{prefix}cot/{name}"]).sum() for name in OUTPUTS)


def assert_loss(loss: Tensor, tracks: PointTracks, golden: Arrays, prefix: str) -> None:
    """The loss is a sum of terms of both signs: its rounding is measured by the sum of their sizes."""
    size = sum((getattr(tracks, n) * golden[f"{prefix}cot/{n}"]).abs().sum() for n in OUTPUTS)
    assert (loss - golden[f"{prefix}train/loss"]).abs() <= OUTPUT * size


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_and_every_gradient(small: Arrays, backend: str, checkpointing: bool) -> None:
    model = tracker(small).train()
    model.set_activation_checkpointing(checkpointing)
    tracks = model(video(small), small["query_points"])
    assert_tracks(tracks, small, "train")
    loss = weighted(tracks, small, "")
    assert_loss(loss, tracks, small, "")
    loss.backward()
    gradients = layouts.write("torch", {n: p.grad for n, p in model.named_parameters()}, model.config)
    assert {f"grad/{name}" for name in gradients} == {name for name in small if name.startswith("grad/")}
    for name, gradient in gradients.items():
        assert_close(gradient, small[f"grad/{name}"], GRADIENT, name)


@pytest.mark.parametrize("case", ["up128", "rect", "down", "same_count", "nonsquare"])
def test_other_sizes_of_video(small: Arrays, interp: Arrays, backend: str, case: str) -> None:
    model = tracker(small, tuple(interp[f"{case}/image_size"].tolist())).eval()
    pixels, queries = video(interp, f"{case}/"), interp[f"{case}/query_points"]
    with torch.no_grad():
        grid = (pixels.shape[-2] // 8, pixels.shape[-1] // 8)
        positions = interp[f"{case}/pos_emb"][0]
        assert_close(model.position_table(grid), positions, OUTPUT, "positions")
        assert_tracks(model(pixels, queries), interp, f"{case}/offline")
        assert_tracks(stream(model, pixels, queries, [1, 1, 1])[0], interp, f"{case}/online")
        if case == "nonsquare":
            table = tapnext_state_dict(model)["query_pos_embed"]
            assert torch.equal(table[:, ::97], interp["nonsquare/query_pos_embed_check"])
    tracks = model.train()(pixels, queries)
    loss = weighted(tracks, interp, f"{case}/")
    assert_loss(loss, tracks, interp, f"{case}/")
    loss.backward()
    gradients = layouts.write("torch", {n: p.grad for n, p in model.named_parameters()}, model.config)
    for name in ("image_pos_emb", "point_query_token", "mask_token", "unknown_token"):
        assert_close(gradients[name], interp[f"{case}/grad/{name}"], GRADIENT, f"{case} {name}")


def leaves(small: Arrays) -> PointTracks:
    return PointTracks(*(small[f"offline/{name}"].clone().requires_grad_() for name in OUTPUTS))


def test_published_losses_and_their_gradients(small: Arrays) -> None:
    tracks, visible = leaves(small), small["loss/visible"].squeeze(-1).bool()
    loss = tracking_loss(tracks, small["loss/target_points"], visible, coordinate_mean="all")
    names = {"huber": "huber", "coordinate": "softmax", "visibility": "visibility", "total": "total"}
    for ours, theirs in names.items():
        assert_close(getattr(loss, ours).reshape(1), small[f"loss/{theirs}"], OUTPUT, theirs)
    loss.total.backward()
    for name in OUTPUTS:
        assert_close(getattr(tracks, name).grad, small[f"loss/grad_{name}"], GRADIENT, name)


def test_masked_loss_differs_in_the_coordinates_alone(small: Arrays) -> None:
    tracks, visible = leaves(small), small["loss/visible"].squeeze(-1).bool()
    targets = small["loss/target_points"]
    assert 0 < visible.sum() < visible.numel()
    loss = tracking_loss(tracks, targets, visible)
    seen = visible.transpose(1, 2)
    bins = (targets.flip(-1).transpose(1, 2)[seen] - 0.5).clamp(0, 255).round().long()
    of_y, of_x = tracks.track_logits[seen].chunk(2, dim=-1)
    entropy = torch.nn.functional.cross_entropy
    expected = entropy(of_y, bins[:, 0]) + entropy(of_x, bins[:, 1])
    torch.testing.assert_close(loss.coordinate, expected)
    assert_close(loss.huber.reshape(1), small["loss/huber"], OUTPUT, "huber")
    assert (loss.coordinate - small["loss/softmax"]).abs() > 1e-3


def _bare(state: Arrays) -> object:
    return state


def _wrapped(state: Arrays) -> object:
    return {"state_dict": {f"tapnext.{name}": tensor for name, tensor in state.items()}, "epoch": 3}


@pytest.mark.parametrize("wrap", [_bare, _wrapped])
def test_torch_checkpoint(small: Arrays, tmp_path: Path, wrap: Callable[[Arrays], object]) -> None:
    path = tmp_path / "tapnextpp.ckpt"
    torch.save(wrap(parameters(small)), path)
    model = load_tapnext_checkpoint(path)
    assert model.config == PointTrackerConfig(width=48, depth=3, num_heads=4, image_size=64)
    with torch.no_grad():
        assert_tracks(model(video(small), small["query_points"]), small, "offline")


def test_every_array_of_the_files_is_compared(small: Arrays, interp: Arrays) -> None:
    """What the tests above read; a new array in a file would show up here."""
    results = {f"{mode}/{name}" for mode in ("offline", "online", "chunked", "train") for name in OUTPUTS}
    results |= {f"edge/{mode}/{name}" for mode in ("offline", "online") for name in OUTPUTS}
    results |= {f"cot/{n}" for n in OUTPUTS} | {"video", "query_points", "edge/query_points", "train/loss"}
    results |= {"offline/certainty_r8", "chunked/sizes"}
    rest = [
        n for n in small if n not in results and n.split("/")[0] not in ("param", "grad", "inter", "loss")
    ]
    assert all("/state/" in name for name in rest), rest
    cases = {name.split("/")[0] for name in interp}
    assert cases == {"up128", "rect", "down", "same_count", "nonsquare"}
