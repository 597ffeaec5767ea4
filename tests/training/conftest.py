"""A tiny run on synthetic clips, as tables and as a command."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trecvit_kernels.training.config import TrainingConfig
from trecvit_kernels.training.loop import Trainer, prepare

TINY: dict[str, Any] = {
    "task": {
        "name": "point_tracking",
        "model": {
            "width": 32,
            "depth": 1,
            "num_heads": 2,
            "patch_size": 8,
            "image_size": 16,
            "head_width": 16,
        },
    },
    "data": {
        "frames": 4,
        "size": 16,
        "batch_size": 2,
        "workers": 0,
        "clips": 7,
        "validation_clips": 3,
        "points": 4,
    },
    "optimiser": {"learning_rate": 1e-3, "accumulation": 2, "ema_decay": 0.5},
    "schedule": {"steps": 6, "warmup_steps": 2},
    "run": {"log_every": 1, "checkpoint_every": 3, "device": "cpu"},
}


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Any]:
    return {**copy.deepcopy(TINY), "run": {**TINY["run"], "folder": str(tmp_path / "run")}}


@pytest.fixture
def start() -> Callable[..., Trainer]:
    """``start(tables, resume=..., fresh=...)``: a trainer."""

    def call(tables: dict[str, Any], **how: bool) -> Trainer:
        return prepare(TrainingConfig.from_tables(tables), **how)

    return call


@pytest.fixture
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    """What a run has logged, without its speed."""

    def read(run: Path) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "frames_per_second"} for line in found]

    return read
