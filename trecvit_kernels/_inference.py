"""What the commands share: a model and its inputs, all checked before anything expensive is begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from trecvit_kernels import video as video_io
from trecvit_kernels.models import (
    SIZES,
    TRecViT,
    TRecViTConfig,
    create_model,
    load_official_checkpoint,
    pretrained,
)

DEFAULT_MODEL = "trecvit_base_k400"
RANDOM_WEIGHTS = "the weights are random (no --checkpoint): the predicted classes mean nothing"


@dataclass
class Setup:
    """What classify and stream share: a checked model that is built late, its device, its class names."""

    config: TRecViTConfig
    build: Callable[[], TRecViT]
    name: str
    weights: str | None
    labels: list[str] | None
    device: torch.device
    dtype: str

    def load(self) -> TRecViT:
        torch.manual_seed(0)  # random weights are the same every time
        return self.build().to(self.device, getattr(torch, self.dtype)).eval()

    def say_what_the_weights_are(self) -> None:
        if self.weights is None:
            typer.echo(f"note: {RANDOM_WEIGHTS}", err=True)

    def description(self, video: Path) -> dict[str, Any]:
        return {
            "video": str(video),
            "model": self.name,
            "weights": self.weights or "random",
            "device": str(self.device),
            "dtype": self.dtype,
        }

    def top(self, probabilities: torch.Tensor, count: int) -> list[dict[str, Any]]:
        if not bool(probabilities.isfinite().all()):
            raise RuntimeError(f"the model's output is not finite (in {self.dtype})")
        values, indices = probabilities.double().topk(min(count, probabilities.numel()))
        return [
            {"class": index, "label": self.labels[index] if self.labels else None, "probability": value}
            for value, index in zip(values.tolist(), indices.tolist())
        ]


def prepare(
    video: Path, checkpoint: Path | None, model: str | None, labels: Path | None, device: str, dtype: str
) -> Setup:
    """Check every argument before anything expensive; the order is that of the cost."""
    if checkpoint is not None and model is not None:
        raise typer.BadParameter("the checkpoint says which model it is", param_hint="--model")
    name = model or DEFAULT_MODEL
    if name not in SIZES:
        raise typer.BadParameter(f"must be one of {', '.join(SIZES)}, got {name!r}", param_hint="--model")
    place = _as_device(device)
    video_io.iter_frames(video)  # opens and checks the file
    if checkpoint is None:
        config, build = SIZES[name], lambda: create_model(name)
    else:
        config, build = open_checkpoint(checkpoint)
        name = str(checkpoint)
    if config.num_classes == 0:
        raise ValueError(f"{name} has no classifier: it cannot name a class")
    names = None if labels is None else read_labels(labels, config.num_classes)
    weights = None if checkpoint is None else str(checkpoint)
    return Setup(config, build, name, weights, names, place, dtype)


def open_checkpoint(path: Path) -> tuple[TRecViTConfig, Callable[[], TRecViT]]:
    """Configuration of a checkpoint (.npz file or ``save_pretrained`` folder), and how to build its model.

    Raises FileNotFoundError, or ValueError for what is neither, damaged, or does not fit together. Of a folder's
    weights only the header is read.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if path.is_dir():
        if not all((path / name).is_file() for name in (pretrained.CONFIG, pretrained.WEIGHTS)):
            raise ValueError(
                f"checkpoint folder {path} must hold {pretrained.CONFIG} and {pretrained.WEIGHTS}"
            )
        config = pretrained.check_folder("checkpoint", path)
        return config, lambda: TRecViT.from_pretrained(str(path))
    if path.suffix != ".npz":
        raise ValueError(f"checkpoint {path} must be an .npz file or a folder written by save_pretrained")
    network = load_official_checkpoint(path)
    return network.config, lambda: network


def read_labels(path: Path, num_classes: int) -> list[str]:
    """Class names from a file: one per line, a JSON list, or a JSON object {"0": name, ...}.

    Raises FileNotFoundError; ValueError if it is no such file or its number of names is not ``num_classes``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such labels file: {path}")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"labels file {path} is neither text lines nor JSON ({error})") from error
    if isinstance(content, dict):
        expected = [str(index) for index in range(len(content))]
        if set(content) != set(expected):
            raise ValueError(f"labels file {path} must have the keys 0 to {len(content) - 1}")
        content = [content[key] for key in expected]
    while content and isinstance(content[-1], str) and not content[-1].strip():
        content.pop()  # blank lines at the end
    if not all(isinstance(name, str) for name in content):
        raise ValueError(f"labels file {path} must hold names only, got something that is no text")
    if len(content) != num_classes:
        raise ValueError(f"labels file {path} has {len(content)} names, the model has {num_classes} classes")
    return [name.strip() for name in content]


def _as_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{name!r} cannot be used: {reason}", param_hint="--device") from error
    return device
