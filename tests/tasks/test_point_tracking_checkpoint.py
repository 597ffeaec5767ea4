"""TAPNext's two checkpoint layouts: the whole key map, round trips bit by bit, refused files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from trecvit_kernels.tasks._weights import read_weights
from trecvit_kernels.tasks.point_tracking import (
    PointTracker,
    PointTrackerConfig,
    layouts,
    load_tapnext_checkpoint,
    save_tapnext_checkpoint,
    tapnext_state_dict,
)

# Sizes that differ wherever they may: a transposed or exchanged tensor cannot pass for another.
CONFIG = PointTrackerConfig(
    width=24, depth=2, num_heads=3, mlp_dim=40, lru_width=36, image_size=32, head_width=20
)


@pytest.fixture
def model() -> PointTracker:
    """Random everywhere: biases and scales that start at 0 too."""
    tracker = PointTracker(CONFIG)
    with torch.no_grad():
        for parameter in tracker.parameters():
            parameter.normal_()
    return tracker


def same(a: PointTracker, b: PointTracker) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pt", ".ckpt"])
def test_round_trip_is_exact(model: PointTracker, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights{ending}"
    save_tapnext_checkpoint(model, path)
    loaded = load_tapnext_checkpoint(path)
    assert loaded.config == CONFIG
    assert same(loaded, model)
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_dtype_of_a_torch_file_stays(model: PointTracker, tmp_path: Path) -> None:
    save_tapnext_checkpoint(model.to(torch.bfloat16), tmp_path / "half.safetensors")
    loaded = load_tapnext_checkpoint(tmp_path / "half.safetensors")
    assert loaded.embedding.weight.dtype == torch.bfloat16 and same(loaded, model)
    state = tapnext_state_dict(model)
    state["encoder_norm.bias"] = state["encoder_norm.bias"].double()
    torch.save(state, tmp_path / "mixed.pt")
    loaded = load_tapnext_checkpoint(tmp_path / "mixed.pt")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def rows(tapnext: Path, depth: int) -> list[dict[str, str]]:
    """Rows of the golden key map, {i} replaced by every block."""
    header, *lines = (tapnext / "jax_key_map.tsv").read_text().splitlines()
    assert header.split("\t")[4] == "torch = f(jax)"
    names = ("jax", "jax_shape", "torch", "torch_shape", "how")
    found = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    blocks = range(depth)
    return [
        {key: value.replace("{i}", str(i)) for key, value in row.items()}
        for row in found
        for i in (blocks if "{i}" in row["jax"] else range(1))
    ]


def converted(array: Tensor, how: str) -> Tensor:
    """f(jax) as the golden key map words it, without our code; C is the last axis of a q, k, v or out kernel's."""
    how = re.sub(r"^rows\[.*?\] = ", "", how)
    if how == "reshape(C,C).T":
        last = array.shape[0] if array.shape[0] == CONFIG.width else array.shape[-1]
        return array.reshape(last, last).T
    conversions: dict[str, Callable[[Tensor], Tensor]] = {
        "copy": lambda a: a,
        "T": lambda a: a.T,
        "flatten": Tensor.flatten,
        "[0].permute(3,2,0,1)": lambda a: a[0].permute(3, 2, 0, 1),
    }
    return conversions[how](array)


def test_every_row_of_the_key_map(model: PointTracker, tapnext: Path, tmp_path: Path) -> None:
    """A file of random arrays under the JAX names; each row's conversion must give the torch layout's tensor."""
    shapes = layouts.write("jax", model.state_dict(), CONFIG)
    table = rows(tapnext, CONFIG.depth)
    assert sorted(row["jax"] for row in table) == sorted(shapes)
    arrays = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    np.savez(tmp_path / "tapnext.npz", **{name: array.numpy() for name, array in arrays.items()})
    theirs = tapnext_state_dict(load_tapnext_checkpoint(tmp_path / "tapnext.npz"))
    seen = {"query_pos_embed"}
    for row in table:
        expected, tensor = converted(arrays[row["jax"]], row["how"]), theirs[row["torch"]]
        if part := re.match(r"rows\[(\d)C:", row["how"]):
            tensor = tensor[int(part[1]) * CONFIG.width :][: CONFIG.width]
        assert torch.equal(tensor, expected), row
        seen.add(row["torch"])
    assert seen == set(theirs)


def test_shapes_of_tapnext_b(tapnext: Path) -> None:
    """The released size: every name and shape of the key map, and the number of parameters of the released file."""
    with torch.device("meta"):
        model = PointTracker(PointTrackerConfig())
    assert sum(p.numel() for p in model.parameters()) == 194_202_881
    table = rows(tapnext, 12)
    assert len(table) == 448
    for layout in ("jax", "torch"):
        tensors = layouts.write(layout, model.state_dict(), model.config)
        expected = {row[layout]: row[f"{layout}_shape"] for row in table}
        assert {name: "x".join(map(str, tensor.shape)) for name, tensor in tensors.items()} == expected


def write_npz(path: Path, model: PointTracker, **changes: Tensor | None) -> None:
    arrays = layouts.write("jax", model.state_dict(), CONFIG) | changes
    np.savez(path, **{name: a.detach().numpy() for name, a in arrays.items() if a is not None})


def test_every_wrong_array_is_named(model: PointTracker, tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    missing, misshapen = "backbone/mask_token", "backbone/Transformer/encoder_norm/scale"
    write_npz(path, model, **{missing: None, misshapen: torch.zeros(25), "backbone/extra": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"load_tapnext_checkpoint: .*3 weights do not fit") as error:
        load_tapnext_checkpoint(path)
    for complaint in (
        f"missing {missing}",
        f"misshapen {misshapen}: must be (24,), got (25,)",
        "unexpected backbone/extra (2,)",
    ):
        assert complaint in str(error.value)
    state = tapnext_state_dict(model)
    del state["blocks.1.vit_block.mlp.3.bias"]
    torch.save({"state_dict": state | {"tapnext.other": torch.zeros(1)}}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=r"missing blocks\.1\.vit_block\.mlp\.3\.bias; unexpected other"):
        load_tapnext_checkpoint(tmp_path / "wrong.pt")


@pytest.mark.parametrize("name", ["backbone/embedding/kernel", "coordinate_head/layers_0/kernel"])
def test_array_that_tells_the_size(model: PointTracker, tmp_path: Path, name: str) -> None:
    write_npz(tmp_path / "a.npz", model, **{name: None})
    with pytest.raises(ValueError, match=f"missing {name}"):
        load_tapnext_checkpoint(tmp_path / "a.npz")
    write_npz(tmp_path / "a.npz", model, **{name: torch.zeros(3)})
    with pytest.raises(ValueError, match=f"misshapen {name}"):
        load_tapnext_checkpoint(tmp_path / "a.npz")


def test_positions_of_an_image_that_is_not_square(tmp_path: Path) -> None:
    config = PointTrackerConfig(width=8, depth=1, num_heads=2, image_size=(16, 32), head_width=4)
    model = PointTracker(config)
    for ending in (".npz", ".pt"):
        path = tmp_path / f"wide{ending}"
        save_tapnext_checkpoint(model, path)
        with pytest.raises(ValueError, match=r"image_size must be given .* its 8 positions are no square"):
            load_tapnext_checkpoint(path)
        with pytest.raises(ValueError, match=r"image_size must have 8 patches .* got \(16, 16\)"):
            load_tapnext_checkpoint(path, image_size=16)
        assert same(load_tapnext_checkpoint(path, image_size=(16, 32)), model)
    with pytest.raises(ValueError, match=r"query_pos_embed must be the sin-cos table of a 32 x 16 image"):
        load_tapnext_checkpoint(tmp_path / "wide.pt", image_size=(32, 16))


def test_sizes_that_no_model_has(model: PointTracker, tmp_path: Path) -> None:
    state = tapnext_state_dict(model)
    state["blocks.0.ssm_block.recurrent_block.rg_lru.input_gate.w"] = torch.zeros(5, 3, 3)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt: .*width must be a multiple of num_heads = 5, got 24"):
        load_tapnext_checkpoint(tmp_path / "odd.pt")


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_are_never_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", **{"backbone/mask_token": np.array([_Evil()], dtype=object)})
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.pt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(_Evil()))
    for name in ("evil.npz", "evil.pt", "old.ckpt"):
        with pytest.raises(ValueError, match=f"load_tapnext_checkpoint: .*{name} must be a complete"):
            load_tapnext_checkpoint(tmp_path / name)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pt"])
def test_damaged_files(model: PointTracker, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights{ending}"
    save_tapnext_checkpoint(model, path)
    content = path.read_bytes()
    for damaged in (b"", b"x", b"hello " * 100, content[:100], content[: len(content) // 2], content[:-5]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"load_tapnext_checkpoint: .*weights{ending}"):
            load_tapnext_checkpoint(path)


def test_changed_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """PyTorch's reader meets them as IndexError, struct.error, AssertionError or whatever else."""
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path)
    content, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        changed = bytearray(content)
        for place in generator.integers(len(content), size=3):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        try:
            read_weights("load", path)
        except ValueError as error:
            refused += str(error).startswith(f"load: {path} must be a complete PyTorch file")
    assert refused > 30


def test_other_files_are_refused(model: PointTracker, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found no file"):
        load_tapnext_checkpoint(tmp_path / "none.npz")
    with pytest.raises(
        ValueError, match=r"path must end in one of \.npz, \.safetensors, .*got .*weights\.h5"
    ):
        load_tapnext_checkpoint(tmp_path / "weights.h5")
    with pytest.raises(ValueError, match=r"path must end in one of"):
        save_tapnext_checkpoint(model, tmp_path / "weights.h5")
    with pytest.raises(TypeError, match="model must be a PointTracker, got Linear"):
        save_tapnext_checkpoint(torch.nn.Linear(1, 1), tmp_path / "a.npz")  # type: ignore[arg-type]
    for content, got in (
        ([1, 2], "must hold a state dict, got list"),
        ({"epoch": 3}, "epoch must be a real floating tensor, got int"),
        ({"step": torch.zeros(1, dtype=torch.int64)}, "step must be a real floating tensor, got torch.int64"),
    ):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=got):
            load_tapnext_checkpoint(tmp_path / "other.pt")
    state = {name: tensor for name, tensor in tapnext_state_dict(model).items() if name != "query_pos_embed"}
    safetensors.torch.save_file(state, tmp_path / "without_table.safetensors")
    assert same(load_tapnext_checkpoint(tmp_path / "without_table.safetensors"), model)
