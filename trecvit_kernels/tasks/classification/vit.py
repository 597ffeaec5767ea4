"""Spatial weights of a TRecViT from an image ViT in timm's layout; the paper starts from ImageNet-21K."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trecvit_kernels._checks import check_tensor
from trecvit_kernels.models import TRecViT, positions, pretrained
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.tasks._weights import read_weights

_WHERE = "initialise_from_vit"
PARTS = ("patches", "positions", "cls", "blocks", "norm")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# timm's modules of a block, and ours.
_BLOCK = {
    "norm1": "norm_1",
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "norm2": "norm_2",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
}
# Which names belong to which part; a classifier of images has no place in any.
_BELONGS = {
    "patches": re.compile(r"patch_embed\."),
    "positions": re.compile(r"pos_embed$"),
    "cls": re.compile(r"cls_token$"),
    "blocks": re.compile(r"blocks\."),
    "norm": re.compile(r"(fc_)?norm\."),
}
_CLASSIFIER = re.compile(r"(head|pre_logits)\.")
_INDEX = re.compile(r"blocks\.(\d+)\.")


class VitInitialisation(NamedTuple):
    """What ``initialise_from_vit`` did: parameters of ours it ``loaded`` and left as they were (``fresh``), and names
    of the ViT's that were ``unused``."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


class _Positions(NamedTuple):
    grid: tuple[int, int]  # patches (down, across)
    cls: bool  # the first position is the cls token's


def initialise_from_vit(
    model: TRecViT,
    weights: Mapping[str, Tensor] | str | Path,
    *,
    parts: Sequence[str] | None = None,
    interpolate_positions: bool = False,
    source_grid: tuple[int, int] | None = None,
    pixel_mean: float | Sequence[float] = 0.5,
    pixel_std: float | Sequence[float] = 0.5,
) -> VitInitialisation:
    """Copy what a TRecViT and a ViT of timm (``VisionTransformer``) have in common from the ViT into ``model``.

    ============================  ======================  =======================================================
    timm                          here                    how
    ============================  ======================  =======================================================
    patch_embed.proj              embedding               kernel (out, 3, rows, columns) to (out, rows * columns
                                                          * 3); the normalisation of pixels is folded in
    pos_embed                     pos_embedding           without the cls token's position
    cls_token                     cls                     plus its position (ours has none of its own)
    blocks.i.norm1, norm2         blocks.i.space.norm_1,  as is; LayerNorm eps 1e-6 in both
                                  norm_2
    blocks.i.attn.qkv, proj       qkv, out                as is: rows are q, k, v, each head after head, in both
    blocks.i.mlp.fc1, fc2         mlp_in, mlp_out         as is
    norm                          encoder_norm            as is
    ============================  ======================  =======================================================

    Nothing of ``blocks.i.time`` is touched. One difference stays: timm's ViTs have the erf GELU, our spatial blocks the
    tanh approximation (as DeepMind's TRecViT), so they do not compute bit by bit what the ViT did. With a ViT that has
    ``act_layer="gelu_tanh"`` they do, up to rounding.

    A state dict does not tell the number of heads (timm's ViTs have 64 channels a head): that of the model must be
    the ViT's.

    Args:
        model: the TRecViT, on any device and of any floating dtype; changed in place once everything is checked.
        weights: the state dict, or a file with one (at the top level or under "state_dict" or "model"): .safetensors,
            or .pt, .pth, .bin, .ckpt, which are read with PyTorch's ``weights_only`` reader that runs no code.
            ``head.*`` and ``pre_logits.*``, the classifier of images, are not used.
        parts: which of "patches", "positions", "cls", "blocks", "norm" to copy; None: all that the model has a place
            for (no cls with ``pool="mean"``, no positions with ``posemb="sincos2d"``). Names of other parts may be
            there and are not used.
        interpolate_positions: take positions of another grid too, interpolated (bicubic, antialiased, as timm does).
        source_grid: patches (down, across) that the ViT's positions are for; None: the model's grid if their number
            agrees, else a square. (A ViT with a cls token has one position more, or, with timm's
            ``no_embed_class``, has not. Where both readings are possible and the first is not the model's grid, the
            grid must be given.)
        pixel_mean, pixel_std: with which the ViT's pixels in [0, 1] were normalised, one number or one for each of RGB.
            TRecViT reads [0, 1] as it is, so (x - mean) / std goes into the patch embedding. The default, 0.5, is that
            of the ViTs that Google trained on ImageNet-21K; others have (0.485, 0.456, 0.406) and (0.229, 0.224,
            0.225). 0 and 1 take the embedding as it is.

    Returns:
        Names that were loaded, left fresh, not used.

    Raises:
        FileNotFoundError: no such file. TypeError: an argument of a wrong type.
        ValueError: an unknown part or one that the model has no place for; a file that is damaged or holds other
            objects; another number of blocks; tensors that are missing, unexpected or misshapen (all are named).
    """
    if not isinstance(model, TRecViT):
        raise TypeError(f"{_WHERE}: model must be a TRecViT, got {type(model).__name__}")
    chosen = _parts(model, parts)
    mean, std = _three("pixel_mean", pixel_mean), _three("pixel_std", pixel_std)
    if (std <= 0).any():
        raise ValueError(f"{_WHERE}: pixel_std must be above 0, got {pixel_std}")
    given = read_vit(weights) if isinstance(weights, (str, Path)) else _checked(weights, "weights")
    needed = set(chosen) | (
        {"positions"} if "cls" in chosen else set()
    )  # a cls token comes with its position
    left = [_CLASSIFIER, *(_BELONGS[part] for part in PARTS if part not in needed)]
    state = {name: tensor for name, tensor in given.items() if not any(p.match(name) for p in left)}
    found = _understand(state.get("pos_embed"), "cls_token" in given, source_grid, model.config.grid)
    _check(model, chosen, state, found)
    if "positions" in chosen and found.grid != model.config.grid and not interpolate_positions:
        raise ValueError(
            f"{_WHERE}: pos_embed must be for the model's grid {model.config.grid}, or interpolate_positions be True,"
            f" got positions for {found.grid}"
        )

    new: dict[str, Tensor] = {}
    if "patches" in chosen:
        kernel = state["patch_embed.proj.weight"].double().permute(0, 2, 3, 1)  # (out, rows, columns, 3)
        new["embedding.weight"] = (kernel / std).flatten(1)
        new["embedding.bias"] = state["patch_embed.proj.bias"].double() - (kernel * (mean / std)).sum(
            (1, 2, 3)
        )
    if "positions" in chosen:
        of_patches = state["pos_embed"][:, int(found.cls) :]
        new["pos_embedding"] = positions.interpolate(of_patches, found.grid, model.config.grid)
    if "cls" in chosen:
        new["cls"] = state["cls_token"] + state["pos_embed"][:, :1] if found.cls else state["cls_token"]
    new.update((ours, state[theirs]) for theirs, ours in _same_names(model, chosen))
    target = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in new.items():
            target[name].copy_(tensor)
    used = set(state) if "positions" in chosen or found.cls else set(state) - {"pos_embed"}
    return VitInitialisation(
        loaded=tuple(name for name in target if name in new),
        fresh=tuple(name for name in target if name not in new),
        unused=tuple(name for name in given if name not in used),
    )


def read_vit(path: str | Path) -> dict[str, Tensor]:
    """State dict in a file; endings and errors as in ``initialise_from_vit``."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{_WHERE}: weights must be a file that ends in one of {', '.join(SUFFIXES)}, got {path}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{_WHERE}: weights must be a file, found no file {path}")
    content = read_weights(_WHERE, path)
    for inside in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(inside), Mapping):
            content = content[inside]
    return _checked(content, str(path))


def _checked(content: object, source: str) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise TypeError(
            f"{_WHERE}: {source} must be a state dict or a path of one, got {type(content).__name__}"
        )
    for name, tensor in content.items():
        check_tensor(_WHERE, f"{source}: {name}", tensor)
        if tensor.dtype not in REAL:
            raise TypeError(f"{_WHERE}: {source}: {name} must be real and floating, got {tensor.dtype}")
    return {str(name): tensor for name, tensor in content.items()}


def _parts(model: TRecViT, parts: Sequence[str] | None) -> tuple[str, ...]:
    impossible = {
        "cls": model.config.pool != "cls",
        "positions": model.config.posemb != "learned",
    }
    if parts is None:
        return tuple(part for part in PARTS if not impossible.get(part))
    if isinstance(parts, str) or not parts or any(part not in PARTS for part in parts):
        raise ValueError(f"{_WHERE}: parts must be some of {', '.join(PARTS)}, got {parts!r}")
    for part in parts:
        if impossible.get(part):
            has = f"pool={model.config.pool!r}, posemb={model.config.posemb!r}"
            raise ValueError(f"{_WHERE}: parts must have a place in the model ({has}), got {part!r}")
    return tuple(part for part in PARTS if part in parts)


def _three(name: str, value: float | Sequence[float]) -> Tensor:
    numbers = list(value) if isinstance(value, Sequence) else [value] * 3
    if len(numbers) != 3 or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise ValueError(f"{_WHERE}: {name} must be one finite number or three, got {value!r}")
    return torch.tensor(numbers, dtype=torch.float64)


def _understand(
    table: Tensor | None, cls_token: bool, source_grid: tuple[int, int] | None, own: tuple[int, int]
) -> _Positions:
    """For which grid a table of positions is, and whether the cls token has one.

    A table that cannot be for any grid gets the grid that it should be for: ``_check`` names what is wrong with it.
    """
    if source_grid is not None:
        pair = tuple(source_grid) if isinstance(source_grid, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
            raise ValueError(f"{_WHERE}: source_grid must be (down, across), got {source_grid!r}")
        source_grid = (pair[0], pair[1])
    if table is None:
        return _Positions(source_grid or own, False)
    count = table.shape[1] if table.ndim == 3 else 0
    readings = []
    for cls in (False, True) if cls_token else (False,):
        side = math.isqrt(max(count - cls, 0))
        for grid in (own, (side, side)) if source_grid is None else (source_grid,):
            if 0 < grid[0] * grid[1] == count - cls:
                readings.append(_Positions(grid, cls))
                break  # the model's own grid before a square of as many patches
    if cls_token and _Positions(own, True) in readings:  # the usual case in timm
        return _Positions(own, True)
    if len(readings) > 1:
        ways = " or ".join(f"{r.grid} with{'' if r.cls else 'out'} the cls token" for r in readings)
        raise ValueError(f"{_WHERE}: source_grid must be given, as {count} positions may be {ways}, got None")
    return readings[0] if readings else _Positions(source_grid or own, cls_token)


def _check(model: TRecViT, parts: Sequence[str], state: Mapping[str, Tensor], found: _Positions) -> None:
    """ValueError unless ``state`` has exactly what the parts need, in the right shapes."""
    config = model.config
    depth = len({match[1] for name in state if (match := _INDEX.match(name))})
    if "blocks" in parts and depth not in (0, config.depth):
        raise ValueError(
            f"{_WHERE}: weights must have {config.depth} blocks, as many as the model, got {depth}"
        )
    target = dict(model.named_parameters())
    expected: dict[str, tuple[int, ...]] = {}
    if "patches" in parts:
        expected["patch_embed.proj.weight"] = (config.width, 3, *config.patch_size)
        expected["patch_embed.proj.bias"] = (config.width,)
    if "positions" in parts or "pos_embed" in state:  # a ViT without positions may still give its cls token
        expected["pos_embed"] = (1, found.grid[0] * found.grid[1] + found.cls, config.width)
    if "cls" in parts:
        expected["cls_token"] = (1, 1, config.width)
    expected.update((theirs, tuple(target[ours].shape)) for theirs, ours in _same_names(model, parts))
    pretrained.compare(_WHERE, expected, state)


def _same_names(model: TRecViT, parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(timm's name, ours) of tensors that are the same."""
    for kind in ("weight", "bias"):
        if "norm" in parts:
            yield f"norm.{kind}", f"encoder_norm.{kind}"
        if "blocks" in parts:
            for i in range(model.config.depth):
                for theirs, ours in _BLOCK.items():
                    yield f"blocks.{i}.{theirs}.{kind}", f"blocks.{i}.space.{ours}.{kind}"
