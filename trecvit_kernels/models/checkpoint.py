"""DeepMind's released checkpoints: reading, writing and converting their flat .npz files."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trecvit_kernels.models import official, pretrained
from trecvit_kernels.models.config import TRecViTConfig, check_fields
from trecvit_kernels.models.trecvit import TRecViT
from trecvit_kernels.modules import temporal

_WHERE = "load_official_checkpoint"
# Overrides that make another model of the file's weights; all others say what the file is.
_OF_THE_TARGET = ("image_size", "num_classes", "frames_per_clip", "dropout", "min_radius", "max_radius")


def load_official_checkpoint(path: str | Path, **overrides: Any) -> TRecViT:
    """A TRecViT from an .npz file in the layout of DeepMind's ``utils.load_ckpt``.

    Width, depth, MLP width, heads, patch size, LRU width, convolution width, real or complex LRU, head width
    and number of classes follow from the shapes; a ``tokenizer/cls`` means pool="cls" (else "mean"), a
    ``tokenizer/pos_embedding`` learned positions (else "sincos2d"). A square image is assumed; without
    learned positions 224 x 224. A file without any ``decoder/`` array (an encoder) gives ``head_width=0,
    num_classes=0``: the model returns the temporal mean of the pooled tokens.

    Args:
        path: the file. Pickled arrays are refused.
        overrides: fields of ``TRecViTConfig``. ``image_size`` says which image a table of positions is for if
            the number of patches agrees, else the positions are interpolated (bicubic) from the square grid.
            Another ``num_classes`` than the file's starts a new classifier, with a warning. ``head_width=0``
            leaves all ``decoder/`` arrays out. ``frames_per_clip`` is not in the file: None unless given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an .npz, truncated, damaged or pickled; arrays that are missing, unexpected or
            misshapen (all are named); an override that is no field of the configuration.
    """
    check_fields(_WHERE, overrides)
    arrays = read_npz(path)
    if overrides.get("head_width") == 0:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("decoder/")}
    return pretrained.build(_WHERE, *_converted(path, arrays, overrides))


def load_official_encoder(path: str | Path, **overrides: Any) -> TRecViT:
    """The encoder alone (``head_width=0, num_classes=0``) of an .npz file such as ``trecvit_B_mae.npz``.

    Read are the arrays below ``tokenizer/`` and ``encoder/``, in the layout of ``load_official_checkpoint``. All others
    (a classifier, or the decoder of a masked autoencoder) are left out, with a warning that names them.

    Args:
        path: the file. Pickled arrays are refused.
        overrides: as in ``load_official_checkpoint``, without ``head_width`` and ``num_classes``.

    Raises:
        As ``load_official_checkpoint``; ValueError for a ``head_width`` or ``num_classes`` other than 0.
    """
    where = "load_official_encoder"
    check_fields(where, overrides)
    for name in ("head_width", "num_classes"):
        if overrides.setdefault(name, 0) != 0:
            raise ValueError(f"{where}: {name} must be 0, as an encoder has no head, got {overrides[name]!r}")
    arrays = read_npz(path, where)
    inside = {n: array for n, array in arrays.items() if n.startswith(("tokenizer/", "encoder/"))}
    if outside := [f"{name} {tuple(arrays[name].shape)}" for name in arrays if name not in inside]:
        warnings.warn(
            f"{where}: {path}: {len(outside)} arrays are no part of the encoder and are left out:"
            f" {', '.join(outside)}",
            stacklevel=2,
        )
    return pretrained.build(where, *_converted(path, inside, overrides))


def _converted(
    path: str | Path, arrays: Mapping[str, Tensor], overrides: dict[str, Any]
) -> tuple[TRecViTConfig, dict[str, Tensor], TRecViTConfig]:
    """A file's configuration, its arrays as our state dict, and the configuration that is asked for.

    Every array must belong to the model.
    """
    source, target = _infer(arrays, overrides)
    with torch.device("meta"):
        skeleton = TRecViT(source)
    expected = official.to_official(skeleton.state_dict(), source)
    pretrained.compare(f"{_WHERE}: {path}", {name: t.shape for name, t in expected.items()}, arrays)
    return source, official.from_official(arrays, source), target


def read_npz(path: str | Path, where: str = _WHERE) -> dict[str, Tensor]:
    """Every array of an .npz as a float tensor, without ever unpickling; ``where`` begins the error messages."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{where}: path must be an .npz file, found no file {path}")
    arrays: dict[str, Tensor] = {}
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with content as file:
            for name in file.files:
                array = file[name]
                if array.dtype not in (np.float16, np.float32, np.float64):
                    raise ValueError(f"{name} has dtype {array.dtype}, not a floating one")
                arrays[name] = torch.from_numpy(array).float()
    except (
        ValueError,
        EOFError,
        OSError,
        KeyError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{where}: {path} must be a complete .npz of plain floating arrays, without pickles ({error})"
        ) from error
    return arrays


def _infer(arrays: Mapping[str, Tensor], overrides: dict[str, Any]) -> tuple[TRecViTConfig, TRecViTConfig]:
    """Configuration of the file, and of the model that is asked for."""

    def sizes(name: str, ndim: int) -> tuple[int, ...]:
        if name not in arrays:
            raise ValueError(
                f"{_WHERE}: the file must have the array {name}, which tells the model's size; missing {name}"
            )
        if arrays[name].ndim != ndim:
            raise ValueError(
                f"{_WHERE}: misshapen {name}: must have {ndim} dimensions, got {tuple(arrays[name].shape)}"
            )
        return tuple(arrays[name].shape)

    block, vit = "encoder/residualblock_00/recurrent_block", "encoder/encoderblock_0"
    patch_frames, *patch, colours, width = sizes("tokenizer/embedding/kernel", 5)
    if patch_frames != 1 or colours != 3:
        raise ValueError(
            f"{_WHERE}: misshapen tokenizer/embedding/kernel: must be (1, rows, columns, 3, width), got"
            f" {tuple(arrays['tokenizer/embedding/kernel'].shape)}"
        )
    decoder = any(name.startswith("decoder/") for name in arrays)
    fields: dict[str, Any] = {
        "width": width,
        "depth": len({name.split("/")[1] for name in arrays if name.startswith("encoder/residualblock_")}),
        "mlp_dim": sizes(f"{vit}/MlpBlock_0/Dense_0/kernel", 2)[1],
        "num_heads": sizes(f"{vit}/MultiHeadDotProductAttention_0/query/kernel", 3)[1],
        "patch_size": tuple(patch),
        "lru_width": sizes(f"{block}/linear_x/kernel", 2)[1],
        "conv1d_width": sizes(f"{block}/conv_1d/w", 2)[0],
        "complex_lru": f"{block}/rg_lru/a_imag_param" in arrays,
        "pool": "cls" if "tokenizer/cls" in arrays else "mean",
        "posemb": "learned" if "tokenizer/pos_embedding" in arrays else "sincos2d",
        "head_width": sizes("decoder/pre_logits/kernel", 2)[1] if decoder else 0,
        "num_classes": sizes("decoder/cls_head/kernel", 2)[1] if decoder else 0,
    }
    wanted = {name: overrides[name] for name in _OF_THE_TARGET if name in overrides}
    told = {name: value for name, value in overrides.items() if name not in wanted}
    if "image_size" in wanted:
        told["image_size"] = wanted["image_size"]
    source = TRecViTConfig(**{**fields, **told})
    _check_official(_WHERE, source)
    if source.posemb == "learned" and "tokenizer/pos_embedding" in arrays:
        source = _with_grid_of(source, sizes("tokenizer/pos_embedding", 3)[1], "image_size" in wanted)
    return source, source.replace(_WHERE, **wanted)


def _check_official(where: str, config: TRecViTConfig) -> None:
    """ValueError unless official code knows such a model: its checkpoints have one temporal module, entire."""
    expected = {
        "temporal": temporal.DEFAULT,
        "lru_gates": True,
        "lru_normalizer": "sqrt",
        "temporal_skip": True,
    }
    for name, value in expected.items():
        if (got := getattr(config, name)) != value:
            raise ValueError(f"{where}: {name} must be {value!r} for an official checkpoint, got {got!r}")
    if config.conv1d_width < 1:
        raise ValueError(f"{where}: conv1d_width must be at least 1 for an official checkpoint, got 0")


def _with_grid_of(source: TRecViTConfig, patches: int, image_size_given: bool) -> TRecViTConfig:
    """The image that a table of positions is for: the given one if it has as many patches, or a square."""
    down, across = source.grid
    if image_size_given and down * across == patches:
        return source
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(
            f"{_WHERE}: image_size must have {patches} patches, as many as the file has positions (they are"
            f" no square grid), got {source.image_size if image_size_given else None}"
        )
    return source.replace(image_size=(side * source.patch_size[0], side * source.patch_size[1]))


def save_official_checkpoint(model: TRecViT, path: str | Path) -> None:
    """Write the weights as float32 in DeepMind's .npz layout, complete or not at all."""
    _check_official("save_official_checkpoint", model.config)
    arrays = official.to_official(model.state_dict(), model.config)
    plain: Any = {key: tensor.float().contiguous().cpu().numpy() for key, tensor in arrays.items()}
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **plain)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def convert(source: str | Path, target: str | Path, **overrides: Any) -> TRecViTConfig:
    """DeepMind's .npz ``source`` to the folder ``target`` with model.safetensors and config.json.

    A new folder appears complete or not at all; in an existing one each file is replaced whole. Returns the
    configuration. Overrides and errors as in ``load_official_checkpoint``; FileExistsError if ``target`` is a
    file.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"convert: target must be a folder, {target} is a file")
    model = load_official_checkpoint(source, **overrides)
    if target.exists():
        pretrained.save(model, target)
        return model.config
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        pretrained.save(model, staging)
        staging.chmod(0o755)
        os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return model.config
