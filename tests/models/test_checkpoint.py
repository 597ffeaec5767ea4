"""Official .npz files, their conversion, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import trecvit_kernels as tk
from trecvit_kernels.models import (
    convert,
    load_official_encoder,
    positions,
    pretrained,
    save_official_checkpoint,
)

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


BLOCK, VIT = "encoder/residualblock_00/recurrent_block", "encoder/encoderblock_0"
ATTENTION = f"{VIT}/MultiHeadDotProductAttention_0"


def complaints(load: Callable[..., object], target: Path, **overrides: object) -> list[str]:
    """What is wrong with a file, after the function's name and the file's."""
    with pytest.raises(ValueError) as caught:
        load(target, **overrides)
    start, message = str(caught.value).split(" weights do not fit the model: ")
    assert start.startswith(f"{load.__name__}: {target}: ")
    found = message.split("; ")
    assert int(start.split()[-1]) == len(found)
    return found


def test_every_misfit_is_named_when_sizes_are_untold_too(arrays: Arrays, tmp_path: Path) -> None:
    gone = ("tokenizer/embedding/kernel", f"{BLOCK}/linear_x/kernel", f"{ATTENTION}/query/kernel")
    changed = {name: array for name, array in arrays.items() if name not in gone}
    changed["encoder/extra"] = np.zeros(3, np.float32)
    changed[f"{VIT}/MlpBlock_0/Dense_1/bias"] = np.zeros((2, 2), np.float32)
    target = write(tmp_path, changed)
    for load in (tk.load_official_checkpoint, load_official_encoder):
        encoder = {} if load is tk.load_official_checkpoint else {"decoder/": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if encoder else "error")  # the encoder's says what it leaves out
            found = complaints(load, target)
        assert found == [
            *(f"missing {name}" for name in gone if "query" not in name and "linear_x" not in name),
            f"missing {BLOCK}/linear_x/kernel",
            f"missing {ATTENTION}/query/kernel",
            "unexpected encoder/extra (3,)",
            f"misshapen {VIT}/MlpBlock_0/Dense_1/bias: must be (?,), got (2, 2)",
        ]


def test_known_sizes_are_compared_though_another_is_untold(arrays: Arrays, tmp_path: Path) -> None:
    arrays[f"{BLOCK}/conv_1d/w"] = arrays[f"{BLOCK}/conv_1d/w"][0]
    del arrays["encoder/encoder_norm/scale"]
    arrays["encoder/encoder_norm/bias"] = np.zeros((47,), np.float32)
    width = arrays["tokenizer/embedding/bias"].shape[0]
    lru = arrays[f"{BLOCK}/conv_1d/b"].shape[0]
    assert complaints(tk.load_official_checkpoint, write(tmp_path, arrays)) == [
        "missing encoder/encoder_norm/scale",
        f"misshapen {BLOCK}/conv_1d/w: must be (?, {lru}), got ({lru},)",
        f"misshapen encoder/encoder_norm/bias: must be ({width},), got (47,)",
    ]


def test_sizes_that_contradict_each_other(arrays: Arrays, tmp_path: Path) -> None:
    """The file and the arrays that say so are named, with all that can still be compared."""
    query = f"{ATTENTION}/query/kernel"
    bad = {**arrays, query: np.zeros((48, 5, 12), np.float32), "encoder/extra": np.zeros(3, np.float32)}
    first, *others = complaints(tk.load_official_checkpoint, write(tmp_path, bad))
    assert "width must be a multiple of num_heads = 5, got 48" in first
    assert f"tokenizer/embedding/kernel {arrays['tokenizer/embedding/kernel'].shape}" in first
    assert f"{query} (48, 5, 12)" in first
    assert others == ["unexpected encoder/extra (3,)"]
    linear = f"{BLOCK}/linear_x/kernel"
    bad = {**arrays, linear: np.zeros((48, 33), np.float32)}
    first, *others = complaints(tk.load_official_checkpoint, write(tmp_path, bad))
    assert "lru_width must be a multiple of num_heads = 4, got 33" in first and f"{linear} (48, 33)" in first
    bad = {**arrays, "tokenizer/pos_embedding": np.zeros((1, 0, 48), np.float32)}
    assert complaints(tk.load_official_checkpoint, write(tmp_path, bad)) == [
        "misshapen tokenizer/pos_embedding: must be (1, ?, 48), got (1, 0, 48)"
    ]
    foreign = {"encoder/extra": np.zeros(3, np.float32)}
    assert "missing tokenizer/embedding/kernel" in complaints(
        tk.load_official_checkpoint, write(tmp_path, foreign)
    )


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


@pytest.mark.parametrize("shape", [(10**14,), (10**30,), (-1,)], ids=str)
def test_headers_that_claim_more_than_there_is(shape: tuple[int, ...], tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    target = tmp_path / "crafted.npz"
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("tokenizer/cls.npy", header.getvalue() + bytes(64))
    with pytest.raises(ValueError, match=r"crafted\.npz must be a complete \.npz"):
        tk.load_official_checkpoint(target)


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
