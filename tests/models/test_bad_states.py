"""States and saved states that do not fit are refused before anything is computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import trecvit_kernels as tk
from trecvit_kernels.models import TRecViTState

pytestmark = pytest.mark.usefixtures("one_thread")
FRAME = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TEMPORAL = ["gated_lru", "attention", "lstm", "conv1d", "none"]


def make(**overrides: object) -> tk.TRecViT:
    torch.manual_seed(0)
    fields = {
        "width": 16, "depth": 2, "mlp_dim": 16, "num_heads": 2, "patch_size": 4, "image_size": 8, "head_width": 6,
        "num_classes": 5, **overrides,
    }  # fmt: skip
    return tk.TRecViT(tk.TRecViTConfig(**fields)).eval()


def with_layer(state: TRecViTState, *tensors: Any) -> TRecViTState:
    """The state with another second layer."""
    return dataclasses.replace(state, layers=(state.layers[0], tensors))


@torch.no_grad()
def test_shapes_dtypes_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    _, state = model.step(FRAME, model.init_state(2))
    h, tail = state.layers[1]
    monkeypatch.setattr(model, "_embed", None)  # refused before anything is computed
    change = dataclasses.replace
    for bad, error, message in (
        (change(state, mean=torch.zeros(2, 3)), ValueError, r"mean must have shape \(2, 6\), got \(2, 3\)"),
        (change(state, mean=torch.zeros(2, 1)), ValueError, r"mean must have shape \(2, 6\), got \(2, 1\)"),
        (change(state, mean=torch.zeros(())), ValueError, "mean must have at least 1 dimensions"),
        (change(state, mean=None), TypeError, "mean must be a torch.Tensor, got NoneType"),
        (change(state, mean=state.mean.double()), ValueError, "mean must have dtype float32, got float64"),
        (change(state, frames=-1), ValueError, "frames must be at least 0, got -1"),
        (change(state, frames=1.5), TypeError, "frames must be an int, got float"),
        (change(state, frames=True), TypeError, "frames must be an int, got bool"),
        (with_layer(state, h), ValueError, r"layers\.1 must have 2 tensors, got 1"),
        (with_layer(state, h[:1], tail), ValueError, r"layers\.1\.h must have shape \(2, 5, 16\)"),
        (with_layer(state, h, tail[:, 1:]), ValueError, r"layers\.1\.tail must have shape \(2, 3, 5, 16\)"),
        (with_layer(state, h, tail.int()), ValueError, r"layers\.1\.tail must have dtype float32 or"),
        (with_layer(state, h, None), TypeError, r"layers\.1\.tail must be a torch.Tensor, got NoneType"),
        (with_layer(state, h.to("meta"), tail), ValueError, r"layers\.1\.h must be on device cpu, got meta"),
    ):
        with pytest.raises(error, match=f"TRecViT.step: state {message}"):
            model.step(FRAME, bad)


@pytest.mark.parametrize("temporal", TEMPORAL)
@torch.no_grad()
def test_a_state_fits_its_model_and_no_other_dtype(temporal: str) -> None:
    """Fresh and later, also after the model has become another one."""
    model = make(temporal=temporal, temporal_window=3 if temporal == "attention" else None)
    state = model.init_state(2)
    for _ in range(4):
        _, state = model.step(FRAME, state)
    model.double()
    with pytest.raises(ValueError, match=r"TRecViT\.step: state mean must have dtype float64, got float32"):
        model.step(FRAME, state)
    _, state = model.step(FRAME, model.init_state(2))
    model.step(FRAME, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, mixed = model.float().step(FRAME, model.init_state(2))
        model.step(FRAME, mixed)
    model.step(FRAME, mixed)  # and out of autocast again


@torch.no_grad()
def test_a_cache_of_another_length() -> None:
    model = make(temporal="attention")
    _, state = model.step(FRAME, model.init_state(2))
    with pytest.raises(
        ValueError, match=r"state layers\.0\.keys must have shape \(2, 2, 5, 16\), got \(2, 1,"
    ):
        model.step(FRAME, dataclasses.replace(state, frames=2))


def saved(folder: Path) -> tuple[tk.Stream, Path, dict[str, Tensor], dict[str, str]]:
    stream = tk.Stream(make(), batch_size=2)
    stream.push(FRAME)
    stream.save(folder / "state")
    with safetensors.safe_open(folder / "state", framework="pt") as file:
        return stream, folder / "state", safetensors.torch.load_file(folder / "state"), file.metadata()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config", None, "must have the metadata config, found none of that name"),
        ("weights", None, "must have the metadata weights, found none of that name"),
        ("frames", None, "must have the metadata frames, found none of that name"),
        ("frames", "x", "frames must be an int of at least 0, got 'x'"),
        ("frames", "-5", "frames must be an int of at least 0, got '-5'"),
        ("frames", "9" * 5000, "frames must be an int of at least 0, got '999"),
        ("config", "[]", "config must hold a configuration .* mapping by name, got list"),
        ("config", "null", "config must hold a configuration .* mapping by name, got NoneType"),
        ("config", "{", "config must hold a configuration"),
        ("weights", "x", "must be a state of this model, got one of a model with other weights"),
    ],
)
def test_damaged_metadata(name: str, value: str | None, message: str, tmp_path: Path) -> None:
    stream, path, tensors, metadata = saved(tmp_path)
    metadata = {k: v for k, v in {**metadata, name: value}.items() if v is not None}
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    before = stream.state
    with pytest.raises(ValueError, match=rf"Stream\.load: .*state:? {message}"):
        stream.load(path)
    assert stream.frames == 1 and torch.equal(stream.state.mean, before.mean)


def test_damaged_tensors(tmp_path: Path) -> None:
    stream, path, tensors, metadata = saved(tmp_path)
    for change, message in (
        ({"extra": torch.zeros(2)}, "tensors must not have extra"),
        ({"mean": torch.zeros(2, 1)}, r"state mean must have shape \(2, 6\), got \(2, 1\)"),
        ({"layers.1.h": torch.zeros(2, 5, 16).double()}, r"state layers\.1\.h must have dtype float32"),
    ):
        safetensors.torch.save_file({**tensors, **change}, path, metadata=metadata)
        with pytest.raises(ValueError, match=rf"Stream\.load: {path}: .*{message}"):
            stream.load(path)


def test_names_and_switches_of_a_wrong_type() -> None:
    model = make()
    with pytest.raises(TypeError, match=r"intermediates must be a list of names, got 'blocks\.0\.time'"):
        model(FRAME[:, None], return_dict=True, intermediates="blocks.0.time")
    for bad in (torch.ones(2), 1, None, "yes"):
        with pytest.raises(TypeError, match='cuda_graph must be True, False or "auto", got'):
            tk.Stream(model, cuda_graph=bad)
