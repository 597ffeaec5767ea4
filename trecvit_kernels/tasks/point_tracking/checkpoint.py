"""Official TAPNext checkpoints in and out: the flat .npz of the JAX code, the state dict of the PyTorch port."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from trecvit_kernels.models import positions, pretrained
from trecvit_kernels.models.checkpoint import read_npz
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.tasks._weights import read_weights
from trecvit_kernels.tasks.point_tracking import layouts
from trecvit_kernels.tasks.point_tracking.config import PointTrackerConfig
from trecvit_kernels.tasks.point_tracking.model import PointTracker
from trecvit_kernels.tasks.point_tracking.queries import waves

_WHERE = "load_tapnext_checkpoint"
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")
QUERY_TABLE = "query_pos_embed"  # a buffer of the PyTorch port that is computed here
_PREFIX = "tapnext."
# Where each layout has what tells a model's size: (name of the tensor, which of its dimensions, of how many).
_SIZES: dict[str, dict[str, tuple[str, tuple[int, ...], int]]] = {
    "torch": {
        "width": ("lin_proj.weight", (0,), 4),
        "patch_size": ("lin_proj.weight", (2, 3), 4),
        "lru_width": ("blocks.0.ssm_block.recurrent_block.linear_x.weight", (0,), 2),
        "num_heads": ("blocks.0.ssm_block.recurrent_block.rg_lru.input_gate.w", (0,), 3),
        "conv1d_width": ("blocks.0.ssm_block.recurrent_block.conv_1d.w", (0,), 2),
        "mlp_dim": ("blocks.0.ssm_block.mlp_block.ffw_up.w", (2,), 3),
        "head_width": ("coordinate_head.0.weight", (0,), 2),
        "patches": ("image_pos_emb", (1,), 3),
    },
    "jax": {
        "width": ("backbone/embedding/kernel", (4,), 5),
        "patch_size": ("backbone/embedding/kernel", (1, 2), 5),
        "lru_width": (
            "backbone/Transformer/encoderblock_0/ssm_block/recurrent_block/linear_x/kernel",
            (1,),
            2,
        ),
        "num_heads": (
            "backbone/Transformer/encoderblock_0/ssm_block/recurrent_block/rg_lru/input_gate/w",
            (0,),
            3,
        ),
        "conv1d_width": (
            "backbone/Transformer/encoderblock_0/ssm_block/recurrent_block/conv_1d/w",
            (0,),
            2,
        ),
        "mlp_dim": ("backbone/Transformer/encoderblock_0/ssm_block/mlp_block/ffw_up/w", (2,), 3),
        "head_width": ("coordinate_head/layers_0/kernel", (1,), 2),
        "patches": ("backbone/pos_embedding", (1,), 3),
    },
}
_BLOCK = {
    "torch": re.compile(r"blocks\.(\d+)\."),
    "jax": re.compile(r"backbone/Transformer/encoderblock_(\d+)/"),
}


def load_tapnext_checkpoint(
    path: str | Path, *, image_size: int | tuple[int, int] | None = None
) -> PointTracker:
    """A PointTracker with the weights of an official file, of whatever size the file's shapes tell.

    Args:
        path: by its ending: ``.npz``, the JAX layout (no pickled arrays); ``.safetensors`` or ``.pt``, ``.pth``,
            ``.ckpt``, the state dict of the PyTorch port, at the top level or under "state_dict", every name with or
            without the prefix "tapnext.". The latter three are pickles and are read with PyTorch's ``weights_only``
            reader, which runs no code. They may hold ``query_pos_embed``, which must be the table that is computed
            here.
        image_size: (height, width) in pixels that the learned positions are for; None means a square image.

    Returns:
        The model on the CPU, in float32; from the PyTorch layout in the dtype of the tensors, if they have one dtype.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending; a file that is truncated, damaged or holds other pickled objects; tensors that are
            missing, unexpected or misshapen (all are named); an image_size that does not fit.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors", *TORCH_SUFFIXES):
        endings = ", ".join((".npz", ".safetensors", *TORCH_SUFFIXES))
        raise ValueError(f"{_WHERE}: path must end in one of {endings}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"{_WHERE}: path must be a checkpoint, found no file {path}")
    if path.suffix == ".npz":
        return _build("jax", path, read_npz(path, _WHERE), image_size)
    tensors = _read_torch(path)
    table = tensors.pop(QUERY_TABLE, None)
    model = _build("torch", path, tensors, image_size)
    if table is not None:
        _check_query_table(path, table, model.config)
    return model


def _read_torch(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a state dict, without the prefix."""
    content = read_weights(_WHERE, path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{_WHERE}: {path} must hold a state dict, got {type(content).__name__}")
    tensors: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in REAL:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{_WHERE}: {path}: {name} must be a real floating tensor, got {got}")
        tensors[str(name).removeprefix(_PREFIX)] = tensor
    dtypes = {tensor.dtype for name, tensor in tensors.items() if name != QUERY_TABLE}
    if len(dtypes) > 1:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    return tensors


def _build(
    layout: str, path: Path, tensors: Mapping[str, Tensor], image_size: int | tuple[int, int] | None
) -> PointTracker:
    config = _infer(layout, path, tensors, image_size)
    with torch.device("meta"):  # no time for an initialisation that is overwritten
        model = PointTracker(config)
    expected = layouts.write(layout, model.state_dict(), config)
    pretrained.compare(f"{_WHERE}: {path}", {name: t.shape for name, t in expected.items()}, tensors)
    model.load_state_dict(layouts.read(layout, tensors, config), assign=True, strict=True)
    return model.requires_grad_()


def _infer(
    layout: str, path: Path, tensors: Mapping[str, Tensor], image_size: int | tuple[int, int] | None
) -> PointTrackerConfig:
    sizes = {field: _size(path, tensors, *found) for field, found in _SIZES[layout].items()}
    (patches,), patch = sizes.pop("patches"), sizes.pop("patch_size")
    blocks = {found[1] for name in tensors if (found := _BLOCK[layout].match(name))}
    if image_size is None:
        side = math.isqrt(patches)
        if side * side != patches:
            raise ValueError(
                f"{_WHERE}: image_size must be given for {path}: its {patches} positions are no square, got None"
            )
        image_size = (side * patch[0], side * patch[1])
    fields: dict[str, int] = {field: size[0] for field, size in sizes.items()}
    try:
        config = PointTrackerConfig(
            depth=len(blocks),
            patch_size=(patch[0], patch[1]),
            image_size=image_size,  # type: ignore[arg-type]  # an int means a square
            **fields,
        )
    except ValueError as error:
        raise ValueError(f"{_WHERE}: {path}: {error}") from error
    if config.grid[0] * config.grid[1] != patches:
        raise ValueError(
            f"{_WHERE}: image_size must have {patches} patches of {patch} pixels, as many as {path} has positions,"
            f" got {config.image_size}"
        )
    return config


def _size(
    path: Path, tensors: Mapping[str, Tensor], name: str, dimensions: tuple[int, ...], ndim: int
) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"{_WHERE}: {path} must have {name}, which tells the model's size; missing {name}")
    shape = tensors[name].shape
    if len(shape) != ndim or 0 in shape:
        raise ValueError(
            f"{_WHERE}: {path}: misshapen {name}: must have {ndim} dimensions, got {tuple(shape)}"
        )
    return tuple(shape[dimension] for dimension in dimensions)


def _check_query_table(path: Path, table: Tensor, config: PointTrackerConfig) -> None:
    """ValueError unless this is the sin-cos table, up to the rounding of bfloat16."""
    (height, width), channels = config.image_size, config.width
    if tuple(table.shape) != (1, height * width, channels):
        raise ValueError(
            f"{_WHERE}: {path}: misshapen {QUERY_TABLE}: must be {(1, height * width, channels)}, got"
            f" {tuple(table.shape)}"
        )
    of_x, of_y = table.reshape(height, width, channels).float().split(channels // 2, dim=-1)
    off_x = of_x - waves(torch.arange(width), channels // 4)
    off_y = of_y - waves(torch.arange(height), channels // 4).unsqueeze(1)
    error = max(off_x.abs().max().item(), off_y.abs().max().item())
    if not error <= torch.finfo(torch.bfloat16).eps:
        raise ValueError(
            f"{_WHERE}: {path}: {QUERY_TABLE} must be the sin-cos table of a {height} x {width} image, got one that"
            f" is off by {error:.2g}"
        )


def tapnext_state_dict(model: PointTracker) -> dict[str, Tensor]:
    """The weights as the state dict of the official PyTorch port, its computed ``query_pos_embed`` included."""
    state = layouts.write("torch", model.state_dict(), model.config)
    weight = model.embedding.weight
    state[QUERY_TABLE] = positions.sincos2d(*model.config.image_size, model.config.width).to(weight)
    return state


def save_tapnext_checkpoint(model: PointTracker, path: str | Path) -> None:
    """Write the weights in an official layout, complete or not at all.

    Args:
        path: ends in ``.npz`` (JAX layout, float32), or ``.safetensors``, ``.pt``, ``.pth``, ``.ckpt`` (PyTorch port).

    Raises:
        TypeError: model is no PointTracker. ValueError: another ending.
    """
    where, path = "save_tapnext_checkpoint", Path(path)
    if not isinstance(model, PointTracker):
        raise TypeError(f"{where}: model must be a PointTracker, got {type(model).__name__}")
    if path.suffix not in (".npz", ".safetensors", *TORCH_SUFFIXES):
        endings = ", ".join((".npz", ".safetensors", *TORCH_SUFFIXES))
        raise ValueError(f"{where}: path must end in one of {endings}, got {path}")
    content = io.BytesIO()
    if path.suffix == ".npz":
        arrays = layouts.write("jax", model.state_dict(), model.config)
        plain: Any = {name: tensor.detach().float().cpu().numpy() for name, tensor in arrays.items()}
        np.savez(content, allow_pickle=False, **plain)
    else:
        state = {name: tensor.detach().cpu().clone() for name, tensor in tapnext_state_dict(model).items()}
        if path.suffix == ".safetensors":
            content.write(safetensors.torch.save(state, metadata={"format": "pt"}))
        else:
            torch.save(state, content)
    pretrained.write_atomically(path, content.getvalue())
