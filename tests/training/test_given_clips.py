"""Training on datasets that are given in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from trecvit_kernels.training import checkpoint
from trecvit_kernels.training.config import TrainingConfig
from trecvit_kernels.training.loop import Trainer, prepare
from trecvit_kernels.training.synthetic import moving_shapes
from trecvit_kernels.training.tables import ConfigError


class Shapes(Dataset[dict[str, Any]]):
    """The clips that ``source = "synthetic"`` would make, as a user's own dataset."""

    def __init__(self, length: int, stream: int, frames: int = 4, **change: Any) -> None:
        self.length, self.stream, self.frames, self.change = length, stream, frames, change

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([0, self.stream, index])
        clip = moving_shapes(rng, frames=self.frames, size=(16, 16), points=4)
        return {name: value for name, value in {**clip, **self.change}.items() if value is not None}


@pytest.fixture
def given(tables) -> dict[str, Any]:
    """The tables without what is about synthetic clips."""
    data = {
        key: value
        for key, value in tables["data"].items()
        if key not in ("clips", "validation_clips", "points")
    }
    return {**tables, "data": {**data, "source": "python"}}


def test_given_clips_train_as_synthetic_ones_do(tables, given, lines) -> None:
    synthetic = Trainer(TrainingConfig.from_tables(tables))
    measures = synthetic.run()
    logged, run = lines(Path(tables["run"]["folder"])), Path(given["run"]["folder"])
    checkpoint.remove_all(run)
    trainer = prepare(TrainingConfig.from_tables(given), clips=(Shapes(7, 1), Shapes(3, 2)))
    assert trainer.run() == measures and lines(run) == logged

    checkpoint.path_of(run, 6).unlink()
    resumed = prepare(TrainingConfig.from_tables(given), resume=True, clips=(Shapes(7, 1), Shapes(3, 2)))
    assert resumed.step == 3
    assert resumed.run() == measures and lines(run) == logged


def test_without_validation_clips(given) -> None:
    assert Trainer(TrainingConfig.from_tables(given), clips=(Shapes(7, 1), None)).run() == {}


@pytest.mark.parametrize(
    "clips, expected",
    [
        (None, r"data.source = 'python' must go together with clips"),
        ((Shapes(7, 1, frames=5), None), r"clips\[0\]\[0\]\['video'\] must have shape \(4, 3, 16, 16\)"),
        ((Shapes(7, 1), Shapes(2, 2, frames=3)), r"clips\[1\]\[0\]\['video'\] must have shape"),
        ((Shapes(7, 1, visible=None), None), r"clips\[0\]\[0\] must have .*, missing visible"),
        ((Shapes(0, 1), None), r"clips\[0\] must have at least one item, got none"),
    ],
)
def test_wrong_clips_are_named(given, clips: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Trainer(TrainingConfig.from_tables(given), clips=clips)


def test_clips_without_an_order_are_refused(given) -> None:
    class Endless(IterableDataset[torch.Tensor]):
        def __iter__(self) -> Any:
            raise AssertionError("an item was read")

    with pytest.raises(TypeError, match=r"clips\[0\] must be a map-style dataset.*got Endless"):
        Trainer(TrainingConfig.from_tables(given), clips=(Endless(), None))


def test_clips_need_the_source_python(tables, given) -> None:
    with pytest.raises(ConfigError, match="got source 'synthetic' and clips"):
        Trainer(TrainingConfig.from_tables(tables), clips=(Shapes(7, 1), None))
    with pytest.raises(ConfigError, match=r"data\.train must not be given with source = 'python'"):
        TrainingConfig.from_tables({**given, "data": {**given["data"], "train": "somewhere"}})


def test_the_page_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """docs/training.md, its Python as printed, from a folder where the configurations are."""
    pytest.importorskip("tomllib", reason="Python 3.10 reads TOML with tomli only")
    page = Path(__file__).resolve().parents[2] / "docs" / "training.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "docs").symlink_to(page.parent)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    assert names["trainer"].step == 4 and 0 <= names["measures"]["top1"] <= 1
    assert (tmp_path / "runs" / "mine" / "log.jsonl").exists()
