"""Trainings of an experiment, two side by side on two cores, each with one thread so that its numbers repeat."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.experiments.clips import Clips

Measures = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training with ``trecvit_kernels.training``, and what is measured after it.

    Attributes:
        name: of the job in its experiment.
        tables: the configuration as in a TOML file, without ``data.source`` and ``run.folder``.
        train: training clips. test: for the evaluation at the end.
        more: other evaluations by name: test clips, and options of the task that differ there.
        start: weights to start from: the name of a job of the same experiment that came before, whose encoder is
            loaded; "" for random ones.
    """

    name: str
    tables: Mapping[str, Any]
    train: Clips
    test: Clips
    more: Mapping[str, tuple[Clips, Mapping[str, Any]]] = field(default_factory=dict)
    start: str = ""

    def tiny(self) -> Job:
        """The same with two steps and few clips: it shows nothing but that it runs."""

        def few(clips: Clips) -> Clips:
            return dataclasses.replace(clips, length=8)

        tables = copy.deepcopy(dict(self.tables))
        tables["data"]["batch_size"] = 4
        tables["schedule"] = {"steps": 2}
        tables["run"] |= {"log_every": 1, "evaluate_every": 1}
        more = {name: (few(clips), options) for name, (clips, options) in [*self.more.items()][:1]}
        return dataclasses.replace(self, tables=tables, train=few(self.train), test=few(self.test), more=more)


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    Attributes:
        curve: what was logged, a dictionary for each line: "kind" ("train" or "validation"), "step", values.
        measures: on ``test``. more: on ``more``. seconds: of wall time. parameters: of the model.
    """

    name: str
    curve: list[Measures]
    measures: Measures
    more: dict[str, Measures]
    seconds: float
    parameters: int


def run(jobs: Sequence[Job], said: Callable[[str], None], processes: int = 0) -> dict[str, Outcome]:
    """All jobs, ``processes`` at a time (0: one a core); one that starts from another waits for it.

    Raises:
        Whatever a job raises.
    """
    processes = processes or os.cpu_count() or 1
    unknown = {job.start for job in jobs} - {"", *(job.name for job in jobs)}
    if unknown:
        raise ValueError(f"run: jobs must start from jobs of the same experiment, got {', '.join(unknown)}")
    names = [job.name for job in jobs]
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="trecvit-experiment-") as folder, _pool(processes) as pool:
        waiting, running = list(jobs), {}
        while waiting or running:
            ready = [job for job in waiting if not job.start or job.start in outcomes]
            for job in ready[: processes - len(running)]:
                waiting.remove(job)
                running[pool.submit(train, job, folder)] = job
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                del running[future]
                outcome = future.result()
                outcomes[outcome.name] = outcome
                words = ", ".join(f"{name} {value:.4g}" for name, value in outcome.measures.items())
                said(f"  {outcome.name}: {words} ({outcome.seconds:.0f} s)")
    return {name: outcomes[name] for name in names}


def train(job: Job, folder: str) -> Outcome:
    """One job in this process, its run below ``folder``."""
    import torch

    from trecvit_kernels.training import export
    from trecvit_kernels.training.config import TrainingConfig
    from trecvit_kernels.training.loop import Trainer

    torch.set_num_threads(1)
    began = time.perf_counter()
    run_folder = Path(folder) / job.name
    tables = copy.deepcopy(dict(job.tables))
    tables["data"] = {
        "source": "python",
        "frames": job.train.frames,
        "size": list(job.train.size),
        "validation_frames": job.test.frames,
        "validation_size": list(job.test.size),
        "workers": 0,
        **tables.get("data", {}),
    }
    tables["run"] = {"folder": str(run_folder), "checkpoint_every": 10**9, **tables.get("run", {})}
    if job.start:
        tables["task"]["pretrained"] = str(_weights(folder, job.start))
    config = TrainingConfig.from_tables(tables)
    # Several progress bars at once can't be read.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        trainer = Trainer(config, clips=(job.train, job.test))
        measures = trainer.run()
        more = {name: measure(trainer, clips, options) for name, (clips, options) in job.more.items()}
        export.export(run_folder, _weights(folder, job.name))
    curve = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return Outcome(job.name, curve, measures, more, time.perf_counter() - began, parameters)


def measure(trainer: Any, clips: Clips, options: Mapping[str, Any]) -> Measures:
    """The task's measures of a trained model on other clips, whatever their length, some ``options`` changed."""
    import torch
    from torch.utils.data import DataLoader

    task = dataclasses.replace(trainer.task, **options)
    trainer.model.eval()
    with torch.inference_mode():
        return task.evaluate(trainer.evaluated_model, DataLoader(clips, trainer.config.data.batch_size))


def _weights(folder: str, name: str) -> Path:
    """Where a job's weights are exported to."""
    return Path(folder) / f"{name}.weights"


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Fresh processes with one OpenMP thread each."""
    kept = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a process starts
    try:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
            yield pool
    finally:
        if kept is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = kept
