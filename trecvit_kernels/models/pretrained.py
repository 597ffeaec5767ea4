"""Weights in and out of a folder or the Hub: model.safetensors and config.json, never a pickle."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import Tensor, nn

from trecvit_kernels.models import positions
from trecvit_kernels.models.config import SIZES, TRecViTConfig
from trecvit_kernels.models.trecvit import TRecViT, reset_linear

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# What decides which tensors a model has and how they are shaped, positions and classifier aside.
_STRUCTURE = (
    "width",
    "depth",
    "mlp_dim",
    "num_heads",
    "patch_size",
    "lru_width",
    "conv1d_width",
    "complex_lru",
    "pool",
    "posemb",
    "temporal",
    "lru_gates",
)


def save(model: TRecViT, folder: str | Path) -> None:
    """Write both files into an existing folder, each complete or not at all."""
    folder = Path(folder)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(state, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, (json.dumps(model.config.to_dict(), indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target and move over it, so that nobody ever sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp gives the file to its owner alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(
    *,
    model_id: str,
    config: dict[str, Any] | None = None,
    map_location: str | torch.device = "cpu",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **overrides: Any,
) -> TRecViT:
    """What ``TRecViT.from_pretrained`` runs once the Hub mixin has read config.json."""
    where = "TRecViT.from_pretrained"
    if config is None:
        raise ValueError(f"{where}: {model_id} must have a {CONFIG}, found none")
    source = TRecViTConfig.from_dict(config)
    target = source.replace(where, **overrides)
    if os.path.isdir(model_id):
        path = os.path.join(model_id, WEIGHTS)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{where}: {model_id} must have a {WEIGHTS}, found none")
    else:
        path = hf_hub_download(
            repo_id=model_id,
            filename=WEIGHTS,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
    return build(where, source, read_safetensors(where, path), target).to(map_location)


def read_safetensors(where: str, path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file; ValueError if it is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{where}: {path} must be a complete safetensors file ({error})") from error


def load_for(name: str, config: TRecViTConfig, path: str | Path, overrides: dict[str, Any]) -> TRecViT:
    """Weights for ``create_model`` from an .npz, a folder or the Hub, of the size that was named."""
    if str(path).endswith(".npz"):
        from trecvit_kernels.models.checkpoint import load_official_checkpoint

        model = load_official_checkpoint(path, **_defaults(name, overrides))
    else:
        model = TRecViT.from_pretrained(path, **overrides)
    different = [
        f"{field} {getattr(model.config, field)} (here {getattr(config, field)})"
        for field in _STRUCTURE
        if getattr(model.config, field) != getattr(config, field)
    ]
    if different:
        raise ValueError(f"create_model: pretrained must be a {name}, got one with {', '.join(different)}")
    return model


def _defaults(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """An .npz cannot tell these; the size table can."""
    known = SIZES[name]
    told = {field: getattr(known, field) for field in ("image_size", "frames_per_clip", "min_radius")}
    return {**told, **overrides}


def build(where: str, source: TRecViTConfig, state: Mapping[str, Tensor], target: TRecViTConfig) -> TRecViT:
    """A model of configuration ``target`` with the weights of one of configuration ``source``.

    Another image size interpolates learned positions; another number of classes starts a new classifier, with
    a warning; ``head_width=0`` leaves the head behind, and weights without one get a new one, with a warning. Every
    other difference is an error that names each tensor.
    """
    state = dict(state)
    table = state.get("pos_embedding")
    table_shape = (1, source.grid[0] * source.grid[1], source.width)
    if table is not None and table.shape == table_shape and source.grid != target.grid:
        state["pos_embedding"] = positions.interpolate(table, source.grid, target.grid)
    without_head = target.head_width == 0 and source.head_width > 0
    new_head = target.head_width > 0 and source.head_width == 0
    new_classes = target.num_classes != source.num_classes or without_head or new_head
    if without_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("pre_logits.")}
    if new_classes:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("cls_head.")}
    with torch.device("meta"):  # no time for an initialisation that is overwritten
        model = TRecViT(target)
    fresh: dict[str, tuple[nn.Linear, str]] = {}
    if new_head and model.pre_logits is not None:
        fresh["pre_logits"] = model.pre_logits, f"the layer of {target.head_width} pre-logits"
    if new_classes and model.cls_head is not None:
        fresh["cls_head"] = model.cls_head, f"the classifier for {target.num_classes} classes"
    shapes = {n: t.shape for n, t in model.state_dict().items() if n.split(".")[0] not in fresh}
    compare(where, shapes, state)
    model.load_state_dict(state, assign=True, strict=False)
    for layer, what in fresh.values():
        layer.to_empty(device=model.embedding.weight.device)
        reset_linear(layer)
        warnings.warn(
            f"{where}: {what} is new and random (the weights have {source.num_classes} classes)", stacklevel=3
        )
    if target.posemb == "sincos2d":
        model.pos_embedding = positions.sincos2d(*target.grid, target.width)
    return model.requires_grad_()


def compare(where: str, expected: Mapping[str, tuple[int, ...]], got: Mapping[str, Any]) -> None:
    """ValueError naming every missing, unexpected and misshapen tensor."""
    complaints = [f"missing {name}" for name in expected if name not in got]
    complaints += [f"unexpected {name} {tuple(got[name].shape)}" for name in got if name not in expected]
    complaints += [
        f"misshapen {name}: must be {tuple(shape)}, got {tuple(got[name].shape)}"
        for name, shape in expected.items()
        if name in got and tuple(got[name].shape) != tuple(shape)
    ]
    if complaints:
        raise ValueError(f"{where}: {len(complaints)} weights do not fit the model: {'; '.join(complaints)}")
