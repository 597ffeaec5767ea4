"""Checkpoints of a run: one safetensors file each, complete or absent, never a pickle.

Tensors lie under ``model.``, ``ema.``, ``optimiser.`` and ``rng.``; everything else is JSON in the file's header, so
that a single rename brings all of it into place.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FOLDER = "checkpoints"
BEST = "best.safetensors"
_NAME = re.compile(r"step-(\d+)\.safetensors")
_TEMPORARY = ".partial"


class Checkpoint(NamedTuple):
    """What a file holds: tensors by name, and the rest."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under ``name.``, without that prefix."""
        return {key[len(name) + 1 :]: t for key, t in self.tensors.items() if key.startswith(name + ".")}


def path_of(run: Path, step: int) -> Path:
    """The file of a step."""
    return run / FOLDER / f"step-{step:09d}.safetensors"


def write(path: Path, content: Checkpoint) -> None:
    """Write beside the target, flush to the disk and rename: a crash at any time leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _TEMPORARY)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}
    try:
        safetensors.torch.save_file(tensors, partial, metadata={"state": json.dumps(content.state)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """The rename itself to the disk; some systems cannot."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. FileNotFoundError if there is none, ValueError if it is damaged or no checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        tensors = safetensors.torch.load_file(path)
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is no complete checkpoint of a run ({error})") from error
    return Checkpoint(tensors, state)


def steps(run: Path) -> list[int]:
    """Steps that a run has checkpoints of, ascending."""
    folder = run / FOLDER
    names = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, with a warning for each that cannot; None if there are no files.

    Raises:
        ValueError: there are checkpoints, but all are damaged.
    """
    found = steps(run)
    for step in reversed(found):
        try:
            return read(path_of(run, step))
        except ValueError as error:
            warnings.warn(f"{error}; going back to the one before", stacklevel=2)
    if found:
        raise ValueError(f"{run}: none of its {len(found)} checkpoints can be read")
    return None


def remove_partial(run: Path) -> list[Path]:
    """Delete what a killed process left half-written; returns what it was."""
    left = sorted((run / FOLDER).glob(f"*{_TEMPORARY}"))
    for path in left:
        path.unlink(missing_ok=True)
    return left


def remove_old(run: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints (the best one has a file of its own)."""
    for step in steps(run)[:-keep]:
        path_of(run, step).unlink(missing_ok=True)


def remove_all(run: Path) -> None:
    """Delete a run's checkpoints, and nothing else."""
    remove_partial(run)
    for step in steps(run):
        path_of(run, step).unlink(missing_ok=True)
    (run / FOLDER / BEST).unlink(missing_ok=True)


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as ``<parameter>/<entry>``; parameters by name, so that their order does not matter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
    }


def load_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``optimiser_tensors``. ValueError if the state is of other parameters."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters or (tensor.ndim and tensor.shape != parameters[name].shape):
            raise ValueError(
                f"the checkpoint's optimiser state {key} {tuple(tensor.shape)} does not fit the model"
            )
        parameter = parameters[name]
        # AdamW counts its steps in a tensor that stays on the CPU.
        optimiser.state[parameter][entry] = (
            tensor.clone() if tensor.ndim == 0 else tensor.to(parameter.device)
        )


def random_state(generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of Python's, NumPy's and PyTorch's generators and of the task's own: tensors, and JSON."""
    kind, keys, *rest = np.random.get_state()
    tensors = {
        "torch": torch.get_rng_state(),
        "task": generator.get_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"numpy": [kind, *rest], "python": random.getstate()}


def set_random_state(generator: torch.Generator, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """The inverse of ``random_state``; states of GPUs that are not here are left out."""
    torch.set_rng_state(tensors["torch"])
    generator.set_state(tensors["task"])
    kind, *rest = state["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if (saved := tensors.get(f"cuda.{i}")) is not None:
            torch.cuda.set_rng_state(saved, i)
