"""What a configuration may say; everything else is refused by name before anything is computed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from trecvit_kernels.tasks.point_tracking import PointTracker
from trecvit_kernels.tasks.registry import TASKS
from trecvit_kernels.training import tables as reading
from trecvit_kernels.training.config import TrainingConfig
from trecvit_kernels.training.loop import Trainer


def _with(tables: dict, key: str, value: object) -> dict:
    reading.override(tables, f"{key}={json.dumps(value)}")
    return tables


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.lr", 1, "unknown section optimizer; known are task, data, optimiser, schedule, run"),
        ("data.sise", 16, "data: unknown key sise; known are source, train"),
        ("task.modle", 1, "task: unknown key modle; known are model, checkpoint"),
        ("task.model.widht", 1, "task.model: unknown key widht; known are width"),
        ("task.name", "dancing", "task.name must be one of .*point_tracking.*, got 'dancing'"),
        ("data.batch_size", "8", "data.batch_size must be a whole number, got text '8'"),
        ("data.batch_size", True, "data.batch_size must be a whole number, got bool True"),
        ("data.batch_size", 0, "data.batch_size must be at least 1, got 0"),
        (
            "data.source",
            "disk",
            "data.source must be one of synthetic, folder, csv, webdataset, python, got 'disk'",
        ),
        ("data.source", "folder", "data.train must be given with source = 'folder'"),
        ("data.train", "videos", "must not be given with source = 'synthetic'"),
        ("data.size", [16, 16, 16], "data.size must have 2 entries, got 3"),
        ("data.size", [16, 8.5], r"data.size\[1\] must be a whole number, got float 8.5"),
        ("data.size", 20, "whole patches"),
        ("data.validation_size", 20, "whole patches"),
        ("data.scale_jitter", [0.5, 1.0], r"data.scale_jitter must be \[low, high\]"),
        ("data.flip", True, "labels and tracks know their direction"),
        ("optimiser.learning_rate", -1, "optimiser.learning_rate must be above 0, got -1"),
        ("optimiser.learning_rate", float("nan"), "optimiser.learning_rate must be finite"),
        ("optimiser.ema_decay", 1, r"optimiser.ema_decay must be in \[0, 1\), got 1"),
        ("schedule.warmup_steps", 6, "schedule.warmup_steps must be below steps = 6, got 6"),
        ("run.precision", "float16", "run.precision must be one of float32, bfloat16, got 'float16'"),
        ("run.device", "abacus", "run.device 'abacus' cannot be used"),
        ("task.model.width", 30, "width must be a multiple of 4, got 30"),
        ("task.coordinate_mean", "median", "coordinate_mean must be one of visible, all, got 'median'"),
        ("task.checkpoint", "none.npz", "checkpoint must be a file, got none.npz"),
    ],
)
def test_refused(tables, key: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(PointTracker, "__init__", build)
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        Trainer(TrainingConfig.from_tables(_with(tables, key, value)))


def test_clip_shorter_than_what_is_to_be_remembered(tables) -> None:
    overrides = {"width": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "image_size": 16}
    tables["task"] = {"name": "memorisation", "k": 4, "overrides": overrides}
    with pytest.raises(ValueError, match=r"at least k \+ 1 = 5 frames"):
        Trainer(TrainingConfig.from_tables(tables))
    tables["task"]["k"], tables["data"]["size"] = 3, 32
    with pytest.raises(
        ValueError, match=r"data.size must be the model's image_size \(16, 16\), got \(32, 32\)"
    ):
        Trainer(TrainingConfig.from_tables(tables))


def test_missing(tables) -> None:
    del tables["schedule"]["steps"]
    with pytest.raises(reading.ConfigError, match="schedule: steps must be given"):
        TrainingConfig.from_tables(tables)


def test_registry() -> None:
    assert set(TASKS) == {"classification", "masked_autoencoding", "point_tracking", "memorisation"}


def test_toml_json_and_overrides(tables, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(tables))
    pytest.importorskip("tomllib", reason="Python 3.10 reads TOML with tomli only")
    (tmp_path / "a.toml").write_text(
        "\n".join(f"{part} = {_toml(content)}" for part, content in tables.items())
    )
    given = ["data.size=[16, 32]", "run.folder=elsewhere", "task.model.depth=2"]
    read = [TrainingConfig.from_file(tmp_path / name, given) for name in ("a.json", "a.toml")]
    assert read[0] == read[1]
    assert (
        read[0].data.size == (16, 32) and read[0].run.folder == "elsewhere" and read[0].task.model.depth == 2
    )
    assert TrainingConfig.from_tables(read[0].settled()).differences(read[0].settled()) == []


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        TrainingConfig.from_file(tmp_path / "none.toml")
    (tmp_path / "a.yaml").write_text("a: 1")
    with pytest.raises(reading.ConfigError, match=r"must be a \.toml or \.json file, got \.yaml"):
        TrainingConfig.from_file(tmp_path / "a.yaml")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(reading.ConfigError, match="not JSON"):
        TrainingConfig.from_file(tmp_path / "a.json")
    for assignment in ("a=1", "data.size", "data.size.x.y=1"):
        with pytest.raises(reading.ConfigError, match="--set"):
            reading.override({"data": {"size": 1}}, assignment)


def test_toml_without_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.toml").write_text("")
    with pytest.raises(ImportError, match="pip install tomli"):
        TrainingConfig.from_file(tmp_path / "a.toml")
