"""What becomes of a run: its measures once more, and a folder of weights for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from trecvit_kernels.models import TRecViT
from trecvit_kernels.models.pretrained import CONFIG, WEIGHTS, write_atomically
from trecvit_kernels.training import checkpoint, tables
from trecvit_kernels.training.checkpoint import Checkpoint
from trecvit_kernels.training.config import TrainingConfig
from trecvit_kernels.training.loop import Trainer

CLASSES = "labels.json"


def open_run(
    run: Path, best: bool, overrides: tuple[str, ...] | list[str]
) -> tuple[TrainingConfig, Checkpoint]:
    """A run's newest or best checkpoint, and the configuration in it, with ``overrides`` applied.

    Raises:
        FileNotFoundError: there is no such checkpoint. ValueError: it is damaged, or the overrides are wrong.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"no such run: {run}")
    saved = checkpoint.read(run / checkpoint.FOLDER / checkpoint.BEST) if best else checkpoint.newest(run)
    if saved is None:
        raise FileNotFoundError(f"{run} has no checkpoint")
    content: dict[str, Any] = saved.state["config"]
    for assignment in overrides:
        tables.override(content, assignment)
    return TrainingConfig.from_tables(content), saved


def evaluate(
    run: Path, *, best: bool = False, overrides: tuple[str, ...] | list[str] = ()
) -> dict[str, float]:
    """Measures of a run's checkpoint on its validation data, with its step. Raises as ``open_run`` and ``Trainer``."""
    config, saved = open_run(run, best, overrides)
    trainer = Trainer(config, training=False)
    trainer.load_weights(saved)
    return {"step": trainer.step, **trainer.evaluate()}


def export(run: Path, out: Path, *, best: bool = False, averaged: bool = True) -> str:
    """Write a run's weights into a new or empty folder: model.safetensors and config.json; returns what was written.

    A TRecViT, or the TRecViT encoder of another model, is written by ``save_pretrained``, so that ``from_pretrained``
    and ``trecvit classify --checkpoint`` read it. Other models get their state dictionary and, as config.json, the
    task section. Class names, where the data had them, go into labels.json.

    Args:
        averaged: the moving average of the weights, if the run has one.

    Raises:
        FileExistsError: ``out`` is not empty. And what ``open_run`` raises.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already; give a new or an empty folder")
    config, saved = open_run(run, best, ())
    model = config.task.build()
    model.load_state_dict((averaged and saved.part("ema")) or saved.part("model"))
    out.mkdir(parents=True, exist_ok=True)
    written = _trecvit(model)
    if written is not None:
        written.save_pretrained(out)
    else:
        state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        write_atomically(out / WEIGHTS, safetensors.torch.save(state, metadata={"format": "pt"}))
        description = {"task": config.settled()["task"]}
        write_atomically(out / CONFIG, (json.dumps(description, indent=2) + "\n").encode())
    if saved.state["classes"]:
        write_atomically(out / CLASSES, (json.dumps(saved.state["classes"], indent=2) + "\n").encode())
    return type(written or model).__name__


def _trecvit(model: nn.Module) -> TRecViT | None:
    """The model itself, or its encoder."""
    candidates = (model, getattr(model, "encoder", None))
    return next((part for part in candidates if isinstance(part, TRecViT)), None)
