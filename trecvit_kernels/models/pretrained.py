"""Weights in and out of a folder or the Hub: model.safetensors and config.json, never a pickle."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trecvit_kernels.models import positions
from trecvit_kernels.models.config import SIZES, TRecViTConfig
from trecvit_kernels.models.trecvit import TRecViT, reset_linear
from trecvit_kernels.ops._dtypes import REAL

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")
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


# Names of dtypes in the header of a safetensors file.
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class Described(NamedTuple):
    """What the header of a file says about a tensor; a dtype that no weight has stays a word."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str


def save(model: TRecViT, folder: str | Path) -> None:
    """Write both files into an existing folder; what is there already is replaced when both are written."""
    folder = Path(folder)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    weights = safetensors.torch.save(state, metadata={"format": "pt"})
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    _write_together({folder / WEIGHTS: weights, folder / CONFIG: config.encode()})


def save_pretrained(
    model: TRecViT,
    save_directory: str | Path,
    *,
    config: Any = None,
    repo_id: str | None = None,
    push_to_hub: bool = False,
    model_card_kwargs: dict[str, Any] | None = None,
    **push_to_hub_kwargs: Any,
) -> str | None:
    """What ``TRecViT.save_pretrained`` runs; ``config`` is that of the model, whatever is given."""
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder)
    card = folder / "README.md"
    if not card.exists():
        model.generate_model_card(**(model_card_kwargs or {})).save(card)
    if not push_to_hub:
        return None
    return model.push_to_hub(
        repo_id or folder.resolve().name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target and move over it, so that nobody ever sees half a file."""
    _write_together({path: content})


def _write_together(contents: Mapping[Path, bytes]) -> None:
    """``write_atomically`` of several files: none is replaced before all are written."""
    written: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            written[path] = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(name, 0o644)  # mkstemp gives the file to its owner alone
        for path, temporary in written.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
        raise


def load(
    model_id: str | Path, *, map_location: str | torch.device = "cpu", **options_and_overrides: Any
) -> TRecViT:
    """What ``TRecViT.from_pretrained`` runs: the options of ``hf_hub_download``, and fields of the configuration."""
    where, model_id = "TRecViT.from_pretrained", str(model_id)
    download = {k: options_and_overrides.pop(k) for k in _DOWNLOAD if k in options_and_overrides}
    source = read_config(where, _find(where, model_id, CONFIG, download))
    target = source.replace(where, **options_and_overrides)
    path = _find(where, model_id, WEIGHTS, download)
    return build(f"{where}: {path}", source, read_safetensors(where, path), target).to(map_location)


def _find(where: str, model_id: str, name: str, download: Mapping[str, Any]) -> str:
    """Path of a file in a folder, or of one from the Hub."""
    if not os.path.isdir(model_id):
        return str(hf_hub_download(repo_id=model_id, filename=name, **download))
    path = os.path.join(model_id, name)
    if not os.path.isfile(path):
        kind = (
            ValueError if name == CONFIG else FileNotFoundError
        )  # without a config.json it is no such folder
        raise kind(f"{where}: {model_id} must have a {name}, found none")
    return path


def check_folder(where: str, folder: Path) -> TRecViTConfig:
    """The configuration in a folder of ``save_pretrained``, whose weights must fit it.

    Of the weights only the header is read. FileNotFoundError or ValueError as from ``TRecViT.from_pretrained``.
    """
    config = read_config(where, _find(where, str(folder), CONFIG, {}))
    path = _find(where, str(folder), WEIGHTS, {})
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in TRecViT(config).state_dict().items()}
    compare(f"{where}: {path}", shapes, read_header(where, path), one_dtype=True)
    return config


def read_config(where: str, path: str | Path) -> TRecViTConfig:
    """The configuration in a file; ValueError with its name if it is none."""
    return parse_config(f"{where}: {path}", Path(path).read_bytes())


def parse_config(where: str, text: str | bytes) -> TRecViTConfig:
    """``TRecViTConfig.from_dict`` of JSON from a file: whatever is wrong with it is a ValueError."""
    try:
        return TRecViTConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:  # damaged JSON and UTF-8 are ValueErrors
        raise ValueError(f"{where} must hold a configuration of a TRecViT as JSON ({error})") from error


def read_safetensors(where: str, path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file; ValueError if it is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{where}: {path} must be a complete safetensors file ({error})") from error


def read_header(where: str, path: str | Path) -> dict[str, Described]:
    """Shapes and dtypes of all tensors of a file; ValueError if it is damaged or cut off."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            return {
                name: Described(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()))
                for name, part in parts.items()
            }
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
    compare(where, shapes, state, one_dtype=True)
    model.load_state_dict(state, assign=True, strict=False)
    device, dtype = model.embedding.weight.device, model.embedding.weight.dtype
    for layer, what in fresh.values():
        layer.to_empty(device=device)
        reset_linear(layer)
        layer.to(dtype)
        warnings.warn(
            f"{where}: {what} is new and random (the weights have {source.num_classes} classes)", stacklevel=3
        )
    if target.posemb == "sincos2d":
        model.pos_embedding = positions.sincos2d(*target.grid, target.width).to(device, dtype)
    return model.requires_grad_()


def compare(
    where: str,
    expected: Mapping[str, Sequence[int | None]],
    got: Mapping[str, Any],
    *,
    one_dtype: bool = False,
    complaints: Sequence[str] = (),
) -> None:
    """ValueError naming every missing, unexpected and misshapen tensor, after ``complaints`` that are known already.

    None in an expected shape is a size that nothing tells. ``one_dtype``: those that are expected must have one dtype,
    a floating one, and those of another dtype than most are named too.
    """
    complaints = list(complaints)
    complaints += [f"missing {name}" for name in expected if name not in got]
    complaints += [f"unexpected {name} {tuple(got[name].shape)}" for name in got if name not in expected]
    both = {name: (tuple(shape), tuple(got[name].shape)) for name, shape in expected.items() if name in got}
    complaints += [
        f"misshapen {name}: must be {str(wanted).replace('None', '?')}, got {found}"
        for name, (wanted, found) in both.items()
        if len(wanted) != len(found) or not all(map(_fits, wanted, found))
    ]
    if one_dtype and both:
        real = Counter(got[name].dtype for name in both if got[name].dtype in REAL)
        usual = real.most_common(1)[0][0] if real else torch.float32
        complaints += [
            f"mistyped {name}: must have dtype {_word(usual)} like the others, got {_word(got[name].dtype)}"
            for name in both
            if got[name].dtype != usual
        ]
    if complaints:
        raise ValueError(f"{where}: {len(complaints)} weights do not fit the model: {'; '.join(complaints)}")


def _fits(wanted: int | None, found: int) -> bool:
    return found > 0 if wanted is None else found == wanted


def _word(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
