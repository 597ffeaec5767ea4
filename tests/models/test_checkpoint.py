"""Official .npz files, safetensors folders and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import huggingface_hub.hub_mixin
import numpy as np
import pytest
import safetensors.torch
import torch

import trecvit_kernels as tk
from trecvit_kernels.models import convert, positions, pretrained, save_official_checkpoint

Arrays = dict[str, np.ndarray]


@pytest.fixture
def path(golden: Path) -> Path:
    return golden / "trecvit" / "trecvit_tiny_ckpt.npz"


@pytest.fixture
def arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def write(folder: Path, arrays: Arrays) -> Path:
    target = folder / "changed.npz"
    np.savez(target, **arrays)
    return target


def same(first: tk.TRecViT, second: tk.TRecViT) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return first.config == second.config and set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_every_misfit_is_named(arrays: Arrays, tmp_path: Path) -> None:
    del arrays["encoder/residualblock_01/recurrent_block/rg_lru/a_param"]
    del arrays["encoder/encoderblock_2/MultiHeadDotProductAttention_0/key/bias"]
    arrays["encoder/extra/kernel"] = np.zeros((2, 3), np.float32)
    arrays["encoder/encoder_norm/scale"] = np.zeros((47,), np.float32)
    with pytest.raises(ValueError) as caught:
        tk.load_official_checkpoint(write(tmp_path, arrays))
    message = str(caught.value)
    assert "4 weights do not fit" in message
    assert "missing encoder/residualblock_01/recurrent_block/rg_lru/a_param" in message
    assert "missing encoder/encoderblock_2/MultiHeadDotProductAttention_0/key/bias" in message
    assert "unexpected encoder/extra/kernel (2, 3)" in message
    assert "misshapen encoder/encoder_norm/scale: must be (48,), got (47,)" in message


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer/embedding/kernel",
        "encoder/residualblock_00/recurrent_block/linear_x/kernel",
        "encoder/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel",
        "decoder/cls_head/kernel",
    ],
)
def test_arrays_that_tell_the_size(arrays: Arrays, tmp_path: Path, name: str) -> None:
    kernel = arrays.pop(name)
    with pytest.raises(ValueError, match=f"missing {name}"):
        tk.load_official_checkpoint(write(tmp_path, arrays))
    arrays[name] = kernel[..., None]
    with pytest.raises(ValueError, match=f"misshapen {name}"):
        tk.load_official_checkpoint(write(tmp_path, arrays))


def test_a_block_that_is_missing_or_too_many(arrays: Arrays, tmp_path: Path) -> None:
    gone = [name for name in arrays if "residualblock_01" in name]
    less = {name: array for name, array in arrays.items() if name not in gone}
    with pytest.raises(ValueError, match="missing encoder/residualblock_01/temporal_pre_norm/scale"):
        tk.load_official_checkpoint(write(tmp_path, less))
    more = {**arrays, **{name.replace("_01", "_03"): arrays[name] for name in gone}}
    with pytest.raises(ValueError, match="missing encoder/encoderblock_3/"):
        tk.load_official_checkpoint(write(tmp_path, more))


def test_pickles_are_refused(arrays: Arrays, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    raw = tmp_path / "raw.npz"
    raw.write_bytes(pickle.dumps(Bomb()))
    inside = write(tmp_path, {**arrays, "tokenizer/cls": np.array([Bomb()], dtype=object)})
    for target in (raw, inside):
        with pytest.raises(
            ValueError, match=r"must be a complete \.npz of plain floating arrays, without pickles"
        ):
            tk.load_official_checkpoint(target)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_truncated_files(path: Path, tmp_path: Path, keep: float) -> None:
    content = path.read_bytes()
    target = tmp_path / "truncated.npz"
    target.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"truncated\.npz must be a complete \.npz"):
        tk.load_official_checkpoint(target)


def test_damaged_and_foreign_files(path: Path, arrays: Arrays, tmp_path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    integers = write(tmp_path, {**arrays, "tokenizer/cls": np.zeros((1, 1, 48), np.int32)})
    for target, message in (
        (damaged, "damaged"),
        (single, "single array"),
        (integers, "cls has dtype int32"),
    ):
        with pytest.raises(ValueError, match=message):
            tk.load_official_checkpoint(target)
    with pytest.raises(FileNotFoundError, match="found no file"):
        tk.load_official_checkpoint(tmp_path / "nowhere.npz")


def test_overrides(path: Path) -> None:
    model = tk.load_official_checkpoint(path, frames_per_clip=3, dropout=0.1)
    assert (model.config.frames_per_clip, model.config.dropout) == (3, 0.1)
    with pytest.raises(ValueError, match="load_official_checkpoint: unknown field frames"):
        tk.load_official_checkpoint(path, frames=3)
    with pytest.raises(ValueError, match=r"unexpected tokenizer/cls \(1, 1, 48\)"):
        tk.load_official_checkpoint(path, pool="mean")
    with pytest.raises(ValueError, match="misshapen"):
        tk.load_official_checkpoint(path, mlp_dim=96)


def test_other_number_of_classes_starts_a_new_classifier(path: Path) -> None:
    with pytest.warns(UserWarning, match="classifier for 5 classes is new and random"):
        model = tk.load_official_checkpoint(path, num_classes=5)
    original = tk.load_official_checkpoint(path)
    assert model.cls_head.weight.shape == (5, 96) and model.cls_head.weight.std() > 0
    assert torch.equal(model.pre_logits.weight, original.pre_logits.weight)
    headless = tk.load_official_checkpoint(path, num_classes=0)
    video = torch.rand(1, 2, 3, 32, 32)
    assert torch.equal(headless(video), original(video, return_dict=True)["pre_logits"][:, 0])


def test_encoder_without_a_decoder(arrays: Arrays, path: Path, tmp_path: Path) -> None:
    encoder = {name: array for name, array in arrays.items() if not name.startswith("decoder/")}
    model = tk.load_official_checkpoint(write(tmp_path, encoder))
    assert (model.config.num_classes, model.config.head_width) == (0, 0)
    video = torch.rand(2, 3, 3, 32, 32)
    torch.testing.assert_close(model(video), model.forward_features(video)[:, :, 0].mean(dim=1))
    assert same(model, tk.load_official_checkpoint(path, head_width=0, num_classes=0))
    with pytest.warns(UserWarning, match="classifier for 7 classes is new and random"):
        probe = tk.load_official_checkpoint(write(tmp_path, encoder), num_classes=7)
    assert probe(video).shape == (2, 7)


def test_complex_mean_pooled_model_with_sincos_positions(tmp_path: Path) -> None:
    """Export and inference of everything that the golden checkpoint does not have."""
    torch.manual_seed(0)
    config = tk.TRecViTConfig(
        width=16, depth=11, mlp_dim=24, num_heads=2, patch_size=(4, 8), image_size=(224, 224), lru_width=24,
        conv1d_width=3, complex_lru=True, pool="mean", posemb="sincos2d", head_width=20, num_classes=3,
    )  # fmt: skip
    model = tk.TRecViT(config)
    save_official_checkpoint(model, tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as file:
        assert "encoder/residualblock_10/recurrent_block/rg_lru/a_imag_param" in file.files
        assert "encoder/encoderblock_10/MlpBlock_0/Dense_1/kernel" in file.files
    loaded = tk.load_official_checkpoint(tmp_path / "model.npz")
    assert same(loaded, model) and torch.equal(loaded.pos_embedding, model.pos_embedding)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.npz"]


def test_positions_interpolate_to_another_resolution(path: Path) -> None:
    model = tk.load_official_checkpoint(path)
    larger = tk.load_official_checkpoint(path, image_size=(64, 48))
    assert larger.config.grid == (8, 6) and larger(torch.rand(1, 1, 3, 64, 48)).shape == (1, 11)
    expected = positions.interpolate(model.pos_embedding, (4, 4), (8, 6))
    assert torch.equal(larger.pos_embedding, expected) and larger.pos_embedding.requires_grad
    # A linear ramp stays one away from the borders, and rows are rows.
    ramp = (torch.arange(4.0)[:, None] + 10 * torch.arange(4.0)).reshape(1, 16, 1)
    wide = positions.interpolate(ramp, (4, 4), (4, 8)).reshape(4, 8)
    torch.testing.assert_close(wide[1:, :] - wide[:-1, :], torch.ones(3, 8), rtol=0, atol=1e-4)
    torch.testing.assert_close(wide[:, 4] - wide[:, 3], torch.full((4,), 5.0), rtol=0, atol=1e-4)


def test_image_size_of_as_many_patches_is_taken_as_it_is(path: Path) -> None:
    model = tk.load_official_checkpoint(path, image_size=(16, 64))
    assert model.config.grid == (2, 8)
    assert torch.equal(model.pos_embedding, tk.load_official_checkpoint(path).pos_embedding)


def test_positions_that_are_no_square(arrays: Arrays, tmp_path: Path) -> None:
    arrays["tokenizer/pos_embedding"] = np.zeros((1, 24, 48), np.float32)
    target = write(tmp_path, arrays)
    for overrides in ({}, {"image_size": 32}):
        with pytest.raises(ValueError, match="image_size must have 24 patches"):
            tk.load_official_checkpoint(target, **overrides)
    assert tk.load_official_checkpoint(target, image_size=(32, 48)).config.grid == (4, 6)


def test_convert_writes_a_folder_for_from_pretrained(path: Path, tmp_path: Path) -> None:
    config = convert(path, tmp_path / "deep" / "out", frames_per_clip=3)
    folder = tmp_path / "deep" / "out"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["out"]
    assert tk.TRecViTConfig.from_dict(json.loads((folder / "config.json").read_text())) == config
    expected = tk.load_official_checkpoint(path, frames_per_clip=3)
    assert same(tk.TRecViT.from_pretrained(folder), expected)
    assert same(tk.create_model("trecvit_tiny", 11, folder, **_structure(config)), expected)
    convert(path, folder)  # again, over the first
    assert tk.TRecViT.from_pretrained(folder).config.frames_per_clip is None
    with pytest.raises(FileExistsError, match="target must be a folder"):
        convert(path, folder / "config.json")


def _structure(config: tk.TRecViTConfig) -> dict:
    names = ("width", "depth", "mlp_dim", "num_heads", "patch_size", "image_size", "lru_width", "head_width")
    return {name: getattr(config, name) for name in names} | {"frames_per_clip": config.frames_per_clip}


def test_failed_conversion_leaves_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pretrained.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_save_and_load_round_trip(path: Path, tmp_path: Path) -> None:
    model = tk.load_official_checkpoint(path)
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert same(tk.TRecViT.from_pretrained(tmp_path), model)
    assert same(tk.TRecViT.from_pretrained(str(tmp_path), map_location="cpu"), model)
    larger = tk.TRecViT.from_pretrained(tmp_path, image_size=(64, 48))
    assert same(larger, tk.load_official_checkpoint(path, image_size=(64, 48)))
    with pytest.warns(UserWarning, match="new and random"):
        assert tk.TRecViT.from_pretrained(tmp_path, num_classes=4)(torch.rand(1, 1, 3, 32, 32)).shape == (
            1,
            4,
        )


def test_folders_that_do_not_fit(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have a config\.json, found none"):
        tk.TRecViT.from_pretrained(tmp_path)
    tk.load_official_checkpoint(path).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    del state["cls"]
    safetensors.torch.save_file({**state, "extra": torch.zeros(2)}, weights)
    with pytest.raises(
        ValueError, match=r"2 weights do not fit the model: missing cls; unexpected extra \(2,\)"
    ):
        tk.TRecViT.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        tk.TRecViT.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"TRecViT\.from_pretrained: unknown field classes"):
        tk.TRecViT.from_pretrained(tmp_path, classes=3)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"must have a model\.safetensors"):
        tk.TRecViT.from_pretrained(tmp_path)


def test_from_the_hub(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository id asks the Hub for exactly two files, neither of them a pickle."""
    expected = tk.load_official_checkpoint(path)
    expected.save_pretrained(tmp_path)
    asked = []

    def download(repo_id: str, filename: str, **_: object) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    assert same(tk.TRecViT.from_pretrained("someone/trecvit"), expected)
    assert asked == [("someone/trecvit", "config.json"), ("someone/trecvit", "model.safetensors")]
