"""A run that stops and goes on is the run that never stopped; nothing half-written is ever taken for a checkpoint."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trecvit_kernels.training import checkpoint
from trecvit_kernels.training.config import TrainingConfig
from trecvit_kernels.training.tables import ConfigError


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_resume_is_exact(tables, start, lines, workers: int, ema: float) -> None:
    """Six steps in one go against three and three: all numbers and all weights, with accumulation."""
    tables["data"]["workers"], tables["optimiser"]["ema_decay"] = workers, ema
    tables["run"]["evaluate_every"] = 2
    run = Path(tables["run"]["folder"])
    whole = start(tables)
    whole.run()
    logged, state = lines(run), whole.state()
    assert [line["step"] for line in logged if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]

    checkpoint.path_of(run, 6).unlink()
    random.seed(99), np.random.seed(99), torch.manual_seed(99)  # whatever the process did before
    again = start(tables, resume=True)
    assert again.step == 3
    again.run()
    assert lines(run) == logged
    resumed = again.state()
    assert resumed.state == state.state
    assert resumed.tensors.keys() == state.tensors.keys()
    for name, tensor in state.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor), name


def test_workers_do_not_matter(tables, start, lines) -> None:
    run = Path(tables["run"]["folder"])
    start(tables).run()
    logged = lines(run)
    tables["data"]["workers"] = 1
    start(tables, fresh=True).run()
    assert lines(run) == logged


def test_evaluation_does_not_change_the_training(tables, start, lines) -> None:
    run = Path(tables["run"]["folder"])
    start(tables).run()
    logged = [line for line in lines(run) if line["kind"] == "train"]
    tables["run"]["evaluate_every"] = 1
    start(tables, fresh=True).run()
    assert [line for line in lines(run) if line["kind"] == "train"] == logged


_KILLED = """
import json, os, signal, sys
from trecvit_kernels.training.config import TrainingConfig
from trecvit_kernels.training.loop import prepare
replace = os.replace
def killed(source, target):
    if "step-000000004" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
prepare(TrainingConfig.from_tables(json.loads(sys.argv[1]))).run()
"""


def test_killed_in_the_middle_of_a_save(tables, start, lines, tmp_path: Path) -> None:
    tables["run"]["checkpoint_every"] = 2
    whole = {**tables, "run": {**tables["run"], "folder": str(tmp_path / "whole")}}
    start(whole).run()
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, json.dumps(tables)], capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = Path(tables["run"]["folder"])
    left = list((run / "checkpoints").glob("*.partial"))
    assert len(left) == 1 and checkpoint.steps(run) == [2]
    with pytest.warns(UserWarning, match="which an interrupted save had left"):
        trainer = start(tables, resume=True)
    assert trainer.step == 2 and not left[0].exists()
    trainer.run()
    assert lines(run) == lines(tmp_path / "whole")


def test_damaged_checkpoint_falls_back_to_the_one_before(tables, start, lines) -> None:
    run = Path(tables["run"]["folder"])
    start(tables).run()
    logged = lines(run)
    newest = checkpoint.path_of(run, 6)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="going back to the one before"):
        trainer = start(tables, resume=True)
    assert trainer.step == 3
    trainer.run()
    assert lines(run) == logged


def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    content = checkpoint.Checkpoint({"a": torch.ones(3)}, {"step": 1})
    checkpoint.write(tmp_path / "a.safetensors", content)
    before = (tmp_path / "a.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.write(tmp_path / "a.safetensors", content._replace(state={"step": 2}))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_keeps_the_newest_and_the_best(tables, start) -> None:
    tables["run"] |= {"checkpoint_every": 1, "keep": 2, "evaluate_every": 3}
    start(tables).run()
    run = Path(tables["run"]["folder"])
    assert checkpoint.steps(run) == [5, 6]
    assert checkpoint.read(run / "checkpoints" / "best.safetensors").state["step"] in (3, 6)


def test_evaluation_that_fails_loses_no_step(tables, start) -> None:
    tables["run"] |= {"best": "beauty", "checkpoint_every": 4}
    with pytest.raises(ConfigError, match=r"run\.best must be one of average_jaccard, .*, got 'beauty'"):
        start(tables).run()
    assert checkpoint.steps(Path(tables["run"]["folder"])) == [4, 6]


def test_what_may_not_happen_by_accident(tables, start) -> None:
    with pytest.raises(FileNotFoundError, match="has no checkpoint to resume"):
        start(tables, resume=True)
    start(tables).run()
    with pytest.raises(FileExistsError, match="--resume"):
        start(tables)
    other = {**tables, "optimiser": {**tables["optimiser"], "learning_rate": 2e-3}}
    with pytest.raises(ConfigError, match=r"optimiser.learning_rate: 0.001, now 0.002"):
        start(other, resume=True)
    other = {**tables, "data": {**tables["data"], "workers": 1}}
    assert TrainingConfig.from_tables(other).differences(TrainingConfig.from_tables(tables).settled()) == []
    assert start(other, resume=True).step == 6
    assert start(tables, fresh=True).step == 0
    assert checkpoint.steps(Path(tables["run"]["folder"])) == []
