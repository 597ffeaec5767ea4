"""Configuration of a training run: five sections, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trecvit_kernels.tasks.registry import TASKS
from trecvit_kernels.tasks.task import Task
from trecvit_kernels.training import tables
from trecvit_kernels.training.tables import ConfigError

# Keys that may change when a run is resumed: they decide where and how it runs, not what it computes.
_FREE = {
    "data.workers",
    "run.folder",
    "run.device",
    "run.log_every",
    "run.checkpoint_every",
    "run.keep",
    "run.evaluate_every",
    "run.tensorboard",
}


@dataclass(frozen=True)
class DataConfig:
    """Where the clips come from and how they are cut.

    Attributes:
        source: "synthetic" (moving shapes, no files), "folder" (of one sub-folder of videos per class), "csv" (lines
            ``path,label``, with a header; relative paths start at the file's folder), "webdataset" (.tar shards) or
            "python" (datasets that are given to ``Trainer``).
        train, validation: folder, CSV file, or shards (a folder, or a pattern with ``*`` or ``{000..012}``). Without
            validation data nothing is evaluated.
        frames, stride: frames of a clip and their distance in the video. size: (height, width) in pixels.
        validation_frames, validation_stride, validation_size: of validation clips, where they differ (longer videos or
            larger pictures, from which a task takes several clips and crops).
        batch_size: clips in a batch (of each of ``optimiser.accumulation`` batches in a step).
        workers: processes that decode; 0 decodes in the training process.
        scale_jitter: smallest and largest factor on 256/224 of the size that a training frame is scaled to before a
            random crop is cut; 0.875 leaves nothing to crop off on the shorter side.
        random_crop: cut anywhere; else at the centre. flip: mirror every other training clip.
        clips, validation_clips: synthetic clips in an epoch, and for validation. directions: their classes.
            shapes: moving shapes in a synthetic clip. points: tracked points in it.
    """

    source: Literal["synthetic", "folder", "csv", "webdataset", "python"] = "synthetic"
    train: str | None = None
    validation: str | None = None
    frames: int = 16
    stride: int = 2
    size: tuple[int, int] = (224, 224)
    validation_frames: int | None = None
    validation_stride: int | None = None
    validation_size: tuple[int, int] | None = None
    batch_size: int = 8
    workers: int = 2
    scale_jitter: tuple[float, float] = (0.875, 1.33)
    random_crop: bool = True
    flip: bool = False
    clips: int = 4096
    validation_clips: int = 64
    directions: int = 4
    shapes: int = 2
    points: int = 16

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "batch_size", "clips", "directions", "shapes", "points"):
            _at_least("data", name, getattr(self, name), 1)
        for name in ("workers", "validation_clips"):
            _at_least("data", name, getattr(self, name), 0)
        for name in ("validation_frames", "validation_stride"):
            if getattr(self, name) is not None:
                _at_least("data", name, getattr(self, name), 1)
        for name in ("size", "validation_size"):
            for side in getattr(self, name) or ():
                _at_least("data", name, side, 1)
        low, high = self.scale_jitter
        if not 0.875 <= low <= high <= 8:
            raise ConfigError(
                "data.scale_jitter must be [low, high] with 0.875 <= low <= high <= 8 (0.875 of 256 are the 224 pixels"
                f" of the crop), got {[low, high]}"
            )
        if self.source in ("synthetic", "python"):
            for name in ("train", "validation"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"data.{name} must not be given with source = '{self.source}'")
            if self.flip:
                raise ConfigError(
                    f"data.flip must be false with source = '{self.source}': labels and tracks know their direction"
                )
            for name in ("size", "validation_size") if self.source == "synthetic" else ():
                if min(getattr(self, name) or (16,)) < 16:
                    raise ConfigError(
                        f"data.{name} must be at least 16 for synthetic clips, got {getattr(self, name)}"
                    )
        elif self.train is None:
            raise ConfigError(f"data.train must be given with source = '{self.source}'")

    def for_validation(self) -> DataConfig:
        """The same with the shape of validation clips."""
        names = ("frames", "stride", "size")
        given = {name: getattr(self, f"validation_{name}") for name in names}
        return dataclasses.replace(
            self, **{name: value for name, value in given.items() if value is not None}
        )


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW (arXiv 1711.05101); what is decayed: ``trecvit_kernels.training.schedule.is_decayed``.

    Attributes:
        learning_rate: its peak. weight_decay, betas, eps: of AdamW.
        clip_norm: largest norm of the gradient; 0 does not clip.
        accumulation: batches whose gradients are averaged in a step.
        ema_decay: of the exponential moving average of the weights; 0 keeps none.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.03
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 1.0
    accumulation: int = 1
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        _at_least("optimiser", "accumulation", self.accumulation, 1)
        for name in ("weight_decay", "clip_norm"):
            _at_least("optimiser", name, getattr(self, name), 0)
        for name in ("learning_rate", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optimiser.{name} must be above 0, got {getattr(self, name)}")
        for name, value in (
            ("betas", self.betas[0]),
            ("betas", self.betas[1]),
            ("ema_decay", self.ema_decay),
        ):
            if not 0 <= value < 1:
                raise ConfigError(f"optimiser.{name} must be in [0, 1), got {value}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then half a cosine.

    Attributes:
        steps: of the optimiser, warm-up included. warmup_steps: from 0 to the peak.
        final_share: of the peak, that the cosine ends at.
    """

    steps: int
    warmup_steps: int = 0
    final_share: float = 0.0

    def __post_init__(self) -> None:
        _at_least("schedule", "steps", self.steps, 1)
        _at_least("schedule", "warmup_steps", self.warmup_steps, 0)
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"schedule.warmup_steps must be below steps = {self.steps}, got {self.warmup_steps}"
            )
        if not 0 <= self.final_share <= 1:
            raise ConfigError(f"schedule.final_share must be in [0, 1], got {self.final_share}")


@dataclass(frozen=True)
class RunConfig:
    """Where and how the run goes.

    Attributes:
        folder: of checkpoints and log. seed: of Python, NumPy, PyTorch, the workers and the order of the clips.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" and so on.
        precision: "float32", or "bfloat16" (autocast; weights and their averages stay float32).
        activation_checkpointing: keep only the blocks' inputs for the backward pass.
        log_every, checkpoint_every, evaluate_every: steps; evaluate_every = 0 evaluates at the end only.
        keep: newest checkpoints that stay; the best one stays besides.
        best: the measure that says which checkpoint is best; default: the task's first. Of names with "loss" or
            "error" in them the smallest is best, of others the largest.
        evaluate_ema: evaluate the averaged weights if there are any.
        tensorboard: also write a TensorBoard log (needs the package tensorboard).
    """

    folder: str
    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    log_every: int = 10
    checkpoint_every: int = 1000
    keep: int = 3
    evaluate_every: int = 0
    best: str | None = None
    evaluate_ema: bool = True
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep"):
            _at_least("run", name, getattr(self, name), 1)
        for name in ("seed", "evaluate_every"):
            _at_least("run", name, getattr(self, name), 0)
        if not self.folder:
            raise ConfigError("run.folder must name a folder, got an empty text")


@dataclass(frozen=True)
class TrainingConfig:
    """All of a run: the task with its options, and how it is trained; ``tables`` is what it was made of."""

    task: Task
    data: DataConfig
    optimiser: OptimiserConfig
    schedule: ScheduleConfig
    run: RunConfig
    tables: dict[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def from_tables(cls, content: dict[str, Any]) -> TrainingConfig:
        """Check and build; ConfigError, TypeError or ValueError names what is wrong."""
        known = ("task", "data", "optimiser", "schedule", "run")
        if unknown := sorted(set(content) - set(known)):
            raise ConfigError(f"unknown section {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(
            data=tables.build(DataConfig, content.get("data", {}), "data"),
            optimiser=tables.build(OptimiserConfig, content.get("optimiser", {}), "optimiser"),
            schedule=tables.build(ScheduleConfig, content.get("schedule", {}), "schedule"),
            run=tables.build(RunConfig, content.get("run", {}), "run"),
            task=_task(content.get("task", {})),
            tables=content,
        )

    @classmethod
    def from_file(cls, path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> TrainingConfig:
        """Read .toml or .json; ``overrides`` are ``section.key=value``."""
        content = tables.read_file(path)
        for assignment in overrides:
            tables.override(content, assignment)
        return cls.from_tables(content)

    def settled(self) -> dict[str, Any]:
        """Every key with its value, defaults included, in plain JSON types."""
        name = self.tables["task"]["name"]
        task = {"name": name, **dataclasses.asdict(self.task)}  # type: ignore[call-overload]
        sections = {
            part: dataclasses.asdict(getattr(self, part)) for part in ("data", "optimiser", "schedule", "run")
        }
        return json.loads(json.dumps({"task": task, **sections}, default=str))

    def differences(self, other: dict[str, Any]) -> list[str]:
        """What of the settled configuration ``other`` differs and decides what is computed: ``key: other, here``."""
        ours, theirs = _flat(self.settled()), _flat(other)
        return [
            f"{key}: {theirs.get(key)!r}, now {ours.get(key)!r}"
            for key in sorted({*ours, *theirs} - _FREE)
            if ours.get(key) != theirs.get(key)
        ]


def _task(table: object) -> Task:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ConfigError(f"task.name must be one of {', '.join(TASKS)}")
    if table["name"] not in TASKS:
        raise ConfigError(f"task.name must be one of {', '.join(TASKS)}, got {table['name']!r}")
    options = {key: value for key, value in table.items() if key != "name"}
    return tables.build(TASKS[table["name"]], options, "task")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _at_least(section: str, name: str, value: float, least: int) -> None:
    if value < least:
        raise ConfigError(f"{section}.{name} must be at least {least}, got {value}")
