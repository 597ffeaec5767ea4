"""The training program: one object that knows everything of a run, and steps that can stop and go on exactly."""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trecvit_kernels.tasks.task import Batch
from trecvit_kernels.training import checkpoint, data, schedule
from trecvit_kernels.training.checkpoint import Checkpoint
from trecvit_kernels.training.config import TrainingConfig
from trecvit_kernels.training.log import Log, check_tensorboard
from trecvit_kernels.training.tables import ConfigError
from trecvit_kernels.video import VideoError

_SMALLER_IS_BETTER = ("loss", "error", "entropy")


class Trainer:
    """Model, optimiser, averages, data and random numbers of a run, as they are after ``step`` steps.

    Making one reads and checks the data, then builds the model from ``run.seed``. Nothing is written. With
    ``training=False`` only the validation data is looked at.

    Args:
        clips: for ``data.source = "python"``: map-style datasets of training and of validation clips (None: nothing is
            evaluated). Items are dictionaries of what the task needs: ``video`` uint8 (T, 3, H, W), ``label``, ...

    Raises:
        ConfigError, TypeError, ValueError: the configuration or the data cannot be right.
        ImportError: PyAV or TensorBoard is asked for and missing.
    """

    def __init__(
        self, config: TrainingConfig, training: bool = True, clips: tuple[Any, Any] | None = None
    ) -> None:
        self.config, self.task = config, config.task
        self.device = _device(config.run.device)
        check_clips(config)
        if config.run.tensorboard:
            check_tensorboard()
        self.train_clips, self.validation_clips, self.classes = data.open_data(
            config.data, self.task, config.run.seed, training, clips
        )
        seed_everything(config.run.seed)
        self.model = self.task.build().to(self.device)
        if config.run.activation_checkpointing:
            _checkpoint_activations(self.model)
        self.optimiser = schedule.make_optimiser(self.model, config.optimiser)
        self.averaged: AveragedModel | None = None
        if config.optimiser.ema_decay:
            self.averaged = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(config.optimiser.ema_decay)
            )
        # Masks and the like are drawn on the CPU, so that they are the same on every device.
        self.generator = torch.Generator().manual_seed(config.run.seed)
        self.step = 0
        self.samples = 0
        self.skipped: dict[str, int] = {}
        self.best: float | None = None

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged weights where there are any and ``run.evaluate_ema``; else the model."""
        return (
            self.averaged.module if self.averaged is not None and self.config.run.evaluate_ema else self.model
        )

    def run(self) -> dict[str, float]:
        """Train from ``step`` to the end with log, evaluations and checkpoints; returns the last measures.

        Raises:
            RuntimeError: a loss or gradient that is not finite. VideoError: no video of the data can be read.
        """
        options, total = self.config.run, self.config.schedule.steps
        folder = Path(options.folder)
        folder.mkdir(parents=True, exist_ok=True)
        measures: dict[str, float] = {}
        with Log(folder, total, self.step, options.tensorboard) as log:
            batches = self._batches(log)
            began, first = time.perf_counter(), self.step
            while self.step < total:
                values = self.train_step(batches)
                log.step(self.step)
                last = self.step == total
                if last or self.step % options.log_every == 0:
                    seconds, now = time.perf_counter() - began, time.perf_counter()
                    frames = (self.step - first) * self._clips_a_step() * self.config.data.frames
                    skipped = float(sum(self.skipped.values()))
                    plain = {name: float(value) for name, value in values.items()}
                    log.training(
                        self.step, {**plain, "frames_per_second": frames / seconds, "skipped": skipped}
                    )
                    began, first = now, self.step
                if self.validation_clips is not None and (
                    last or (options.evaluate_every and self.step % options.evaluate_every == 0)
                ):
                    try:
                        measures = self.evaluate(log)
                        log.evaluation(self.step, measures)
                        self._keep_if_best(folder, measures)
                    except BaseException:  # what was trained is not lost to what cannot be evaluated
                        self.save(folder)
                        raise
                    began, first = time.perf_counter(), self.step
                if last or self.step % options.checkpoint_every == 0:
                    self.save(folder)
                    began, first = time.perf_counter(), self.step
            if self.skipped:
                log.say(
                    f"skipped {sum(self.skipped.values())} times a damaged video: {', '.join(self.skipped)}"
                )
        return measures

    def train_step(self, batches: Iterator[Batch]) -> dict[str, Tensor | float]:
        """One step of the optimiser over ``optimiser.accumulation`` batches; means of what the task logs."""
        options = self.config.optimiser
        rate = schedule.learning_rate(self.step, options.learning_rate, self.config.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for _ in range(options.accumulation):
            batch = next(batches)
            with self._autocast():
                loss, logged = self.task.loss(self.model, batch, self.generator)
            (loss / options.accumulation).backward()
            for name, value in {"loss": loss.detach(), **logged}.items():
                sums[name] = sums.get(name, 0) + value / options.accumulation
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm or math.inf)
        if not bool(norm.isfinite()):
            raise RuntimeError(
                f"the gradient of step {self.step + 1} is not finite (loss {float(sums['loss'])}); the last checkpoint"
                " is kept: resume with a lower learning rate, or look at the data"
            )
        self.optimiser.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.step += 1
        self.samples += self._clips_a_step()
        return {**sums, "gradient_norm": norm, "learning_rate": rate}

    def _batches(self, log: Log) -> Iterator[Batch]:
        assert self.train_clips is not None
        loader = data.training_loader(
            self.train_clips, self.config.run.seed, self.samples, pin=self.device.type == "cuda"
        )
        for batch, skipped in loader:
            self._note(skipped, log)
            # The sampler never ends, and a batch is short only where no video could be read in many tries.
            if batch is None or len(batch["video"]) < self.config.data.batch_size:
                raise VideoError(
                    f"no video can be read among many tried, the last: {skipped[-1][0]}: {skipped[-1][1]}"
                )
            yield data.to_device(batch, self.device)

    def _note(self, skipped: list[tuple[str, str]], log: Log | None) -> None:
        for name, reason in skipped:
            if name not in self.skipped and log is not None:
                log.say(f"skipped {name}: {reason.removeprefix(name).strip()}")
            self.skipped[name] = self.skipped.get(name, 0) + 1

    def _clips_a_step(self) -> int:
        return self.config.data.batch_size * self.config.optimiser.accumulation

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.run.precision == "bfloat16"
        )

    def evaluate(self, log: Log | None = None) -> dict[str, float]:
        """The task's measures on the validation data. Draws no random number that training would have drawn.

        Raises:
            ConfigError: there is no validation data. VideoError: none of its videos can be read.
        """
        if self.validation_clips is None:
            raise ConfigError(
                "data.validation must be given for an evaluation (synthetic: data.validation_clips)"
            )
        loader = data.validation_loader(
            self.validation_clips, self.config.run.seed, self.device.type == "cuda"
        )
        unread: list[tuple[str, str]] = []
        seen = 0

        def batches() -> Iterator[Batch]:
            nonlocal seen
            for batch, skipped in loader:
                unread.extend(skipped)
                self._note(skipped, log)
                if batch is not None:
                    seen += len(batch["video"])
                    yield data.to_device(batch, self.device)
            if not seen:
                raise VideoError(
                    f"no validation video can be read, the last: {unread[-1][0]}: {unread[-1][1]}"
                )

        model, states = self.evaluated_model, checkpoint.random_state(self.generator)
        model.eval()
        try:
            with torch.inference_mode(), self._autocast():
                measures = self.task.evaluate(model, batches())
        finally:
            checkpoint.set_random_state(self.generator, *states)
            model.train()
        return {name: float(value) for name, value in measures.items()}

    def _keep_if_best(self, folder: Path, measures: dict[str, float]) -> None:
        name = self.config.run.best or next(iter(measures))
        if name not in measures:
            raise ConfigError(f"run.best must be one of {', '.join(measures)}, got {name!r}")
        value = measures[name]
        if any(word in name for word in _SMALLER_IS_BETTER):
            value = -value
        if not math.isnan(value) and (self.best is None or value > self.best):
            self.best = value
            checkpoint.write(folder / checkpoint.FOLDER / checkpoint.BEST, self.state())

    def state(self) -> Checkpoint:
        """Everything that the rest of the run follows from."""
        random_tensors, random_rest = checkpoint.random_state(self.generator)
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimiser": checkpoint.optimiser_tensors(self.model, self.optimiser),
            "rng": random_tensors,
        }
        if self.averaged is not None:
            parts["ema"] = self.averaged.module.state_dict()
        rest = {
            "step": self.step,
            "samples": self.samples,
            "skipped": self.skipped,
            "best": self.best,
            "averaged": int(self.averaged.n_averaged) if self.averaged is not None else 0,
            "random": random_rest,
            "classes": self.classes,
            "config": self.config.settled(),
        }
        return Checkpoint({f"{part}.{k}": v for part, kept in parts.items() for k, v in kept.items()}, rest)

    def save(self, folder: Path) -> None:
        """Write the checkpoint of this step and delete those that ``run.keep`` leaves out."""
        checkpoint.write(checkpoint.path_of(folder, self.step), self.state())
        checkpoint.remove_old(folder, self.config.run.keep)

    def load(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint of the same configuration (what may differ: ``config.TrainingConfig.differences``).

        Raises:
            ConfigError: the configuration differs, by name. ValueError, RuntimeError: weights that do not fit.
        """
        if changed := self.config.differences(saved.state["config"]):
            raise ConfigError(f"the checkpoint was made with another configuration: {'; '.join(changed)}")
        if self.classes != saved.state["classes"]:
            raise ConfigError("data.train has other classes than the checkpoint's")
        self.load_weights(saved)
        checkpoint.load_optimiser(self.model, self.optimiser, saved.part("optimiser"))
        checkpoint.set_random_state(self.generator, saved.part("rng"), saved.state["random"])
        self.samples, self.skipped = saved.state["samples"], dict(saved.state["skipped"])
        self.best = saved.state["best"]

    def load_weights(self, saved: Checkpoint) -> None:
        """The weights and their averages alone."""
        self.model.load_state_dict(saved.part("model"))
        if self.averaged is not None:
            self.averaged.module.load_state_dict(saved.part("ema"))
            self.averaged.n_averaged.fill_(saved.state["averaged"])
        self.step = saved.state["step"]


def check_clips(config: TrainingConfig) -> None:
    """ValueError unless clips of the configured sizes fit the task's model."""
    validation = config.data.for_validation()
    for prefix, clips in (("data.", config.data), ("data.validation_", validation)):
        config.task.check_clips(prefix, clips.frames, clips.size, training=clips is config.data)


def seed_everything(seed: int) -> None:
    """Python, NumPy, PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"run.device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _checkpoint_activations(model: nn.Module) -> None:
    switches: list[Any] = [m for m in model.modules() if hasattr(m, "set_activation_checkpointing")]
    if not switches:
        raise ConfigError("run.activation_checkpointing must be false: this task's model has no such switch")
    for module in switches:
        module.set_activation_checkpointing(True)


def prepare(
    config: TrainingConfig,
    *,
    resume: bool = False,
    fresh: bool = False,
    clips: tuple[Any, Any] | None = None,
) -> Trainer:
    """A trainer for a run that is new, resumed from its newest readable checkpoint, or begun again.

    ``clips`` as in ``Trainer``.

    Raises:
        FileExistsError: the folder has checkpoints and neither was asked for. FileNotFoundError: nothing to resume.
        And what ``Trainer`` and ``Trainer.load`` raise.
    """
    folder = Path(config.run.folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.folder must be a folder, got the file {folder}")
    found = checkpoint.steps(folder)
    if found and not (resume or fresh):
        raise FileExistsError(
            f"{folder} has a checkpoint of step {found[-1]}: go on with --resume, or begin again with --fresh"
        )
    if resume and not found:
        raise FileNotFoundError(f"{folder} has no checkpoint to resume from")
    trainer = Trainer(config, clips=clips)
    for left in checkpoint.remove_partial(folder):
        warnings.warn(f"removed {left}, which an interrupted save had left", stacklevel=2)
    if fresh:
        checkpoint.remove_all(folder)
    elif resume and (saved := checkpoint.newest(folder)) is not None:
        trainer.load(saved)
    return trainer
