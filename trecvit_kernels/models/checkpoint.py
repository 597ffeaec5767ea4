"""DeepMind's released checkpoints: reading, writing and converting their flat .npz files."""

from __future__ import annotations

import math
import os
import re
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
_POSITIONS = "tokenizer/pos_embedding"
_BLOCK, _VIT = "encoder/residualblock_00/recurrent_block", "encoder/encoderblock_0"
# Which array tells a size: its name, its number of dimensions, and in which of them.
_SIZES: dict[str, tuple[str, int, int | slice]] = {
    "width": ("tokenizer/embedding/kernel", 5, 4),
    "patch_size": ("tokenizer/embedding/kernel", 5, slice(1, 3)),
    "mlp_dim": (f"{_VIT}/MlpBlock_0/Dense_0/kernel", 2, 1),
    "num_heads": (f"{_VIT}/MultiHeadDotProductAttention_0/query/kernel", 3, 1),
    "lru_width": (f"{_BLOCK}/linear_x/kernel", 2, 1),
    "conv1d_width": (f"{_BLOCK}/conv_1d/w", 2, 0),
    "head_width": ("decoder/pre_logits/kernel", 2, 1),
    "num_classes": ("decoder/cls_head/kernel", 2, 1),
}
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
    return pretrained.build(_WHERE, *_converted(_WHERE, path, arrays, overrides))


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
    return pretrained.build(where, *_converted(where, path, inside, overrides))


def _converted(
    where: str, path: str | Path, arrays: Mapping[str, Tensor], overrides: dict[str, Any]
) -> tuple[TRecViTConfig, dict[str, Tensor], TRecViTConfig]:
    """A file's configuration, its arrays as our state dict, and the configuration that is asked for.

    Every array must belong to the model.
    """
    wanted = {name: overrides[name] for name in _OF_THE_TARGET if name in overrides}
    told = {name: value for name, value in overrides.items() if name not in wanted}
    source, other, complaints = _infer(f"{where}: {path}", arrays, told, wanted.get("image_size"))
    _check_official(where, source)
    first = _official_shapes(source)
    second = first if other == source else _official_shapes(other)
    expected = {
        name: tuple(n if n == m else None for n, m in zip(shape, second[name], strict=True))
        for name, shape in first.items()
    }
    pretrained.compare(f"{where}: {path}", expected, arrays, complaints=complaints)
    patches = source.grid[0] * source.grid[1]
    if source.posemb == "learned" and patches != (found := arrays[_POSITIONS].shape[1]):
        raise ValueError(
            f"{where}: image_size must have {found} patches, as many as {path} has positions (they are no square"
            f" grid), got {wanted.get('image_size')}"
        )
    return source, official.from_official(arrays, source), source.replace(where, **wanted)


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
        MemoryError,  # a header that claims more than there is, as
        OverflowError,
        RecursionError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{where}: {path} must be a complete .npz of plain floating arrays, without pickles ({error})"
        ) from error
    return arrays


def _infer(
    where: str, arrays: Mapping[str, Tensor], told: dict[str, Any], image_size: Any
) -> tuple[TRecViTConfig, TRecViTConfig, list[str]]:
    """Configuration of the file, twice, and which sizes contradict each other.

    The two differ in the sizes that no array tells: what is the same in both models is sure, so that whatever else is
    wrong with the file can still be named.
    """
    decoder = any(name.startswith("decoder/") for name in arrays)
    blocks = {name.split("/")[1] for name in arrays if name.startswith("encoder/residualblock_")}
    structure = {
        "depth": max(len(blocks), 1),
        "complex_lru": f"{_BLOCK}/rg_lru/a_imag_param" in arrays,
        "pool": "cls" if "tokenizer/cls" in arrays else "mean",
        "posemb": "learned" if _POSITIONS in arrays else "sincos2d",
        **({} if decoder else {"head_width": 0, "num_classes": 0}),
        **told,
    }
    sizes = {
        field: shape[at] if isinstance(at, int) else tuple(shape[at])
        for field, (name, ndim, at) in _SIZES.items()
        if field not in structure and (shape := _shape(arrays, name, ndim))
    }
    complaints: list[str] = []
    while True:
        try:
            sources = [_source({**structure, **sizes}, n, arrays, image_size) for n in (1, 2)]
            break
        except ValueError as error:  # sizes that contradict each other, or an override that does not fit
            message = str(error)
            guilty = [field for field in sizes if re.search(rf"\b{field}\b", message)]
            if not guilty:
                raise ValueError(f"{where}: {message}") from error
            keys = ", ".join(
                f"{name} {tuple(arrays[name].shape)}" for name in {_SIZES[f][0]: 0 for f in guilty}
            )
            complaints.append(f"{message.removeprefix('TRecViTConfig: ')}, as {keys} tells")
            for field in guilty:
                del sizes[field]
    return sources[0], sources[1], complaints


def _shape(arrays: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    """The shape of an array that can tell a size, else ()."""
    shape = tuple(arrays[name].shape) if name in arrays else ()
    return shape if len(shape) == ndim and 0 not in shape else ()


def _source(
    known: Mapping[str, Any], stand_in: int, arrays: Mapping[str, Tensor], image_size: Any
) -> TRecViTConfig:
    """The configuration with what is known, and with the first or second ``stand_in`` for every other size."""
    # What is known must stay a multiple of the heads; what is not is made one.
    width, lru_width = (n if isinstance(n := known.get(f), int) else 0 for f in ("width", "lru_width"))
    common = math.gcd(width, lru_width // (2 if known["complex_lru"] else 1)) or 2
    heads = known.get("num_heads", 1 if stand_in == 1 else common)
    unknown = dict.fromkeys(_SIZES, stand_in) | dict.fromkeys(("width", "lru_width"), 8 * heads * stand_in)
    fields = {**unknown, "num_heads": heads, **known}
    config = TRecViTConfig(**fields, image_size=fields["patch_size"])
    if config.posemb == "sincos2d":
        return config.replace(image_size=224 if image_size is None else image_size)
    down, across = config.patch_size
    shape = _shape(arrays, _POSITIONS, 3)
    patches = shape[1] if shape else 0
    if image_size is not None:
        asked = config.replace(image_size=image_size)
        if asked.grid[0] * asked.grid[1] == patches:
            return asked
    side = math.isqrt(patches)
    if not side or side * side != patches:
        side = stand_in
    return config.replace(image_size=(side * down, side * across))


def _official_shapes(config: TRecViTConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        skeleton = TRecViT(config)
    return {name: tuple(t.shape) for name, t in official.to_official(skeleton.state_dict(), config).items()}


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
