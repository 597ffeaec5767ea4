"""Every task in the documented configurations: the loss falls, a resumed run is exact, evaluation and export run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import trecvit_kernels as tk
from trecvit_kernels.cli import app
from trecvit_kernels.tasks.registry import TASKS
from trecvit_kernels.training import checkpoint

DOCS = Path(__file__).resolve().parents[2] / "docs"
CONFIGS = sorted((DOCS / "configs").glob("*.toml"))
STEPS = 16
pytest.importorskip("tomllib", reason="Python 3.10 reads TOML with tomli only")


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="trecvit")
    assert result.exit_code == status, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result.stdout if status == 0 else result.stderr


def _losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_one_configuration_a_task() -> None:
    assert {path.stem for path in CONFIGS} == set(TASKS)
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    assert set(re.findall(r"trecvit train docs/configs/(\w+)\.toml", text)) == set(TASKS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_trains(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = [
        f"run.folder={folder}",
        f"schedule.steps={STEPS}",
        "schedule.warmup_steps=2",
        "run.log_every=1",
        "run.checkpoint_every=8",
        "optimiser.learning_rate=2e-3",
        "optimiser.accumulation=2",
        "optimiser.ema_decay=0.5",
        "data.validation_clips=8",
        "data.batch_size=4",
        "data.clips=24",
        "data.workers=0",
        "run.device=cpu",
    ]
    command = ["train", path, *(part for assignment in short for part in ("--set", assignment))]
    measures = json.loads(run(*command))
    assert measures["step"] == STEPS and len(measures) > 2
    losses = _losses(folder)
    assert len(losses) == STEPS
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4]), losses

    checkpoint.path_of(folder, STEPS).unlink()
    assert json.loads(run(*command, "--resume")) == measures
    assert _losses(folder) == losses

    assert "--resume" in run(*command, status=1)
    evaluated = json.loads(run("evaluate", folder))
    assert evaluated == {key: value for key, value in measures.items() if key != "run"}
    assert all(math.isfinite(value) for value in json.loads(run("evaluate", folder, "--best")).values())

    run("export", folder, tmp_path / "out")
    saved = checkpoint.read(checkpoint.path_of(folder, STEPS)).part("ema")
    if path.stem in ("classification", "masked_autoencoding"):
        model = tk.TRecViT.from_pretrained(tmp_path / "out")
        prefix = "encoder." if path.stem == "masked_autoencoding" else ""
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, saved[prefix + name]), name
    assert "exists already" in run("export", folder, tmp_path / "out", status=1)


def test_bfloat16_and_activation_checkpointing(tables, start) -> None:
    tables["run"] |= {"precision": "bfloat16", "activation_checkpointing": True}
    trainer = start(tables)
    measures = trainer.run()
    assert all(math.isfinite(value) for value in measures.values())
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.model.activation_checkpointing


def test_activation_checkpointing_changes_nothing(tables, start, lines) -> None:
    start(tables).run()
    logged = lines(Path(tables["run"]["folder"]))
    tables["run"]["activation_checkpointing"] = True
    start(tables, fresh=True).run()
    again = lines(Path(tables["run"]["folder"]))
    assert [line["loss"] for line in again if "loss" in line] == pytest.approx(
        [line["loss"] for line in logged if "loss" in line], rel=1e-4
    )


def test_loss_that_is_not_finite(tables, start) -> None:
    tables["optimiser"]["learning_rate"] = 1e38
    with pytest.raises(RuntimeError, match=r"the gradient of step \d is not finite"):
        start(tables).run()


def test_tensorboard_is_missed_before_anything_else(tables, start, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tables["run"]["tensorboard"] = True
    with pytest.raises(ImportError, match="pip install tensorboard"):
        start(tables)


def test_commands_refuse(tmp_path: Path) -> None:
    assert "no such run" in run("evaluate", tmp_path / "none", status=1)
    assert "has no checkpoint" in run("export", tmp_path, tmp_path / "out", status=1)
    assert "no such checkpoint" in run("evaluate", tmp_path, "--best", status=1)
    assert "no such configuration file" in run("train", tmp_path / "none.toml", status=1)
    assert not (tmp_path / "out").exists()
