"""Configuration and creation: values that do not fit are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import trecvit_kernels as tk


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"width": 50}, ValueError, "width must be a multiple of num_heads = 12, got 50"),
        ({"lru_width": 100}, ValueError, "lru_width must be a multiple of num_heads = 12, got 100"),
        (
            {"lru_width": 12, "complex_lru": True},
            ValueError,
            r"lru_width must be a multiple of 2 \* num_heads = 24",
        ),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": 2.0}, TypeError, "depth must be an int, got float"),
        ({"depth": True}, TypeError, "depth must be an int, got bool"),
        ({"num_classes": -1}, ValueError, "num_classes must be at least 0, got -1"),
        ({"pool": "gap"}, ValueError, "pool must be one of cls, mean, got 'gap'"),
        ({"posemb": "rope"}, ValueError, "posemb must be one of learned, sincos2d, got 'rope'"),
        ({"min_radius": 1.0}, ValueError, "min_radius must be between 0 and 0.999, got 1.0"),
        ({"min_radius": "0.5"}, TypeError, "min_radius must be a float, got str"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"frames_per_clip": 0}, ValueError, "frames_per_clip must be at least 1, got 0"),
        ({"patch_size": (16, 16, 16)}, ValueError, r"patch_size must be \(height, width\)"),
        ({"patch_size": "16"}, TypeError, r"patch_size must be \(height, width\), got str"),
        ({"image_size": 8}, ValueError, r"image_size must be at least one patch of \(16, 16\), got \(8, 8\)"),
        ({"complex_lru": 1}, TypeError, "complex_lru must be a bool, got int"),
        ({"width": 6, "num_heads": 1, "posemb": "sincos2d"}, ValueError, "width must be a multiple of 4"),
    ],
)
def test_values_that_do_not_fit(fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tk.TRecViTConfig(**fields)


def test_dict_round_trip() -> None:
    config = tk.TRecViTConfig(image_size=96, lru_width=1536, frames_per_clip=8)
    assert config.image_size == (96, 96) and config.grid == (6, 6) and config.tokens == 37
    assert tk.TRecViTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown field heads, layers; known are width, depth"):
        tk.TRecViTConfig.from_dict({"layers": 1, "heads": 2})


def test_lru_width_defaults_to_width() -> None:
    assert tk.TRecViTConfig(width=96).lru_width == 96


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"name must be one of trecvit_tiny, trecvit_small, .*, got 'trecvit_huge'"
    ):
        tk.create_model("trecvit_huge")
    with pytest.raises(ValueError, match="create_model: unknown field classes; known are"):
        tk.create_model("trecvit_tiny", classes=3)
    with pytest.raises(TypeError, match="config must be a TRecViTConfig, got dict"):
        tk.TRecViT({"width": 48})


def test_pretrained_of_another_size(golden: Path) -> None:
    path = golden / "trecvit" / "trecvit_tiny_ckpt.npz"
    with pytest.raises(
        ValueError, match=r"pretrained must be a trecvit_tiny, got one with .*width 48 \(here 192\)"
    ):
        tk.create_model("trecvit_tiny", num_classes=11, pretrained=path, image_size=32)


@pytest.fixture(scope="module")
def model() -> tk.TRecViT:
    torch.manual_seed(0)
    config = tk.TRecViTConfig(
        width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=4, image_size=(8, 12), head_width=8,
        num_classes=3, frames_per_clip=2,
    )  # fmt: skip
    return tk.TRecViT(config).eval()


@pytest.mark.parametrize(
    ("video", "error", "message"),
    [
        ([[0.0]], TypeError, "video must be a torch.Tensor, got list"),
        (torch.zeros(1, 2, 3, 8, 12, dtype=torch.int64), TypeError, "video must have dtype .* got int64"),
        (
            torch.zeros(2, 3, 8, 12),
            ValueError,
            r"video must have shape \(B, T, 3, H, W\), got \(2, 3, 8, 12\)",
        ),
        (
            torch.zeros(1, 2, 8, 12, 3),
            ValueError,
            r"video must have shape \(B, T, 3, H, W\), got \(1, 2, 8, 12, 3\)",
        ),
        (torch.zeros(1, 2, 1, 8, 12), ValueError, r"video must have shape \(B, T, 3, H, W\)"),
        (torch.zeros(1, 0, 3, 8, 12), ValueError, "video must have at least one frame"),
        (torch.zeros(1, 2, 3, 12, 8), ValueError, r"video must have 2 x 3 patches of \(4, 4\) pixels"),
        (torch.zeros(1, 5, 3, 8, 12), ValueError, "a number of frames that 2 clips divide .* got 5"),
        (torch.zeros(1, 2, 3, 8, 12, device="meta"), ValueError, "video must be on device cpu, got meta"),
    ],
)
def test_videos_that_do_not_fit(
    model: tk.TRecViT, video: object, error: type[Exception], message: str
) -> None:
    for call in (model, model.forward_features):
        with pytest.raises(error, match=message):
            call(video)


def test_shorter_than_a_clip_is_one_clip(model: tk.TRecViT) -> None:
    out = model(torch.rand(2, 1, 3, 8, 12), return_dict=True)
    assert out["pre_logits"].shape == (2, 1, 8) and out["tokens"].shape == (2, 1, 7, 16)


def test_empty_batch(model: tk.TRecViT) -> None:
    out = model(torch.rand(0, 4, 3, 8, 12), return_dict=True)
    assert out["encoded"].shape == (0, 2, 7, 16) and out["pre_logits"].shape == (0, 2, 8)
    assert out["logits"].shape == out["probs"].shape == (0, 3)


def test_intermediates_by_name(model: tk.TRecViT) -> None:
    video = torch.rand(1, 2, 3, 8, 12)
    out = model(video, return_dict=True, intermediates=("blocks.0.time", "blocks.0.space", "head_input"))
    torch.testing.assert_close(model.encoder_norm(out["blocks.0.space"]), out["encoded"])
    torch.testing.assert_close(model.blocks[0].space(out["blocks.0.time"]), out["blocks.0.space"])
    torch.testing.assert_close(model.blocks[0].time(out["tokens"])[0], out["blocks.0.time"])
    assert torch.equal(out["head_input"], out["encoded"][:, :, 0])
    with pytest.raises(ValueError, match=r"intermediates must be among blocks.0.time, .* got blocks.1.time"):
        model(video, return_dict=True, intermediates=("blocks.1.time",))
    with pytest.raises(ValueError, match="intermediates need return_dict=True"):
        model(video, intermediates=("blocks.0.time",))


def test_without_classifier() -> None:
    config = tk.TRecViTConfig(
        width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=4, image_size=8, head_width=8, num_classes=0,
        frames_per_clip=2,
    )  # fmt: skip
    video = torch.rand(2, 4, 3, 8, 8)
    model = tk.TRecViT(config)
    out = model(video, return_dict=True)
    assert set(out) == {"tokens", "encoded", "pre_logits"} and out["pre_logits"].shape == (2, 2, 8)
    assert torch.equal(model(video), out["pre_logits"].mean(dim=1))
    encoder = tk.TRecViT(config.replace(head_width=0))
    torch.testing.assert_close(
        encoder(video), encoder.forward_features(video)[:, :, 0].unflatten(0, (2, 2)).mean(dim=(1, 2))
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_propagates(model: tk.TRecViT, value: float) -> None:
    video = torch.rand(2, 2, 3, 8, 12)
    video[0, 0, 0, 0, 0] = value
    logits = model(video)
    assert not logits[0].isfinite().any() and logits[1].isfinite().all()
