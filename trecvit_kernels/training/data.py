"""Datasets and their order. Every item follows from (seed, epoch, index) alone, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from trecvit_kernels.tasks.task import Batch, Task
from trecvit_kernels.training import sources
from trecvit_kernels.training.clips import load_clip
from trecvit_kernels.training.config import DataConfig
from trecvit_kernels.training.synthetic import moving_shapes
from trecvit_kernels.training.tables import ConfigError
from trecvit_kernels.video import VideoError

_TRIES = 64  # damaged videos in a row after which the data is given up
_ORDER, _ITEM, _VALIDATION = 0, 1, 2  # streams of random numbers of one seed
Item = dict[str, Any]


class Clips(Dataset[Item]):
    """Items ``{"video": uint8 (T, 3, H, W), "label": int64 (), ...}``, indexed by (epoch, index).

    ``skipped`` in an item lists (name, reason) of the videos that were passed over on the way to it. In training
    another video takes their place; in evaluation the item is then without a video.
    """

    def __init__(
        self, data: DataConfig, entries: list[sources.Entry] | None, seed: int, training: bool
    ) -> None:
        self.data = data if training else data.for_validation()
        self.entries, self.seed, self.training = entries, seed, training

    def __len__(self) -> int:
        if self.entries is not None:
            return len(self.entries)
        return self.data.clips if self.training else self.data.validation_clips

    def __getitem__(self, place: tuple[int, int]) -> Item:
        epoch, index = place
        data, stream = self.data, _ITEM if self.training else _VALIDATION
        if self.entries is None:  # an index means the same clip in every epoch, as if it were a file
            clip = moving_shapes(
                np.random.default_rng([self.seed, stream, index]),
                frames=data.frames,
                size=data.size,
                directions=data.directions,
                shapes=data.shapes,
                points=data.points,
            )
            return {**clip, "skipped": []}
        rng = np.random.default_rng([self.seed, stream, epoch, index])
        skipped: list[tuple[str, str]] = []
        for attempt in range(min(_TRIES, len(self.entries)) if self.training else 1):
            entry = self.entries[(index + attempt) % len(self.entries)]
            try:
                item: Item = {"video": load_clip(entry.open(), data, rng if self.training else None)}
            except (VideoError, OSError) as error:
                skipped.append((entry.name, " ".join(str(error).split())))
                continue
            if entry.label is not None:
                item["label"] = torch.tensor(entry.label)
            return {**item, "skipped": skipped}
        return {"skipped": skipped}


class GivenClips(Dataset[Item]):
    """A map-style dataset of the user's in the place of ``Clips``; index i means the same item in every epoch.

    Raises:
        TypeError: no such dataset. ConfigError: it is empty, or its first item is not what ``data`` and ``task`` say.
    """

    def __init__(self, name: str, items: Dataset[Item], data: DataConfig, task: Task) -> None:
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise TypeError(
                f"{name} must be a map-style dataset, with __len__ and __getitem__, got {type(items).__name__}"
            )
        if len(items) < 1:
            raise ConfigError(f"{name} must have at least one item, got none")
        first, expected = items[0], (data.frames, 3, *data.size)
        if missing := [key for key in task.needs if key not in first]:
            raise ConfigError(f"{name}[0] must have {', '.join(task.needs)}, missing {', '.join(missing)}")
        if tuple(first["video"].shape) != expected:
            raise ConfigError(
                f"{name}[0]['video'] must have shape {expected}, as data.frames and data.size say, got"
                f" {tuple(first['video'].shape)}"
            )
        self.items, self.data = items, data

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: tuple[int, int]) -> Item:
        return {**self.items[place[1]], "skipped": []}


class Places(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from the ``position``-th sample on, without end: one shuffled epoch after another.

    A batch may reach into the next epoch, so that every batch is full and every video comes once in an epoch.
    """

    def __init__(self, length: int, batch_size: int, seed: int, position: int) -> None:
        self.length, self.batch_size, self.seed, self.position = length, batch_size, seed, position

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, offset = divmod(self.position, self.length)
        order = self._order(epoch)
        while True:
            batch: list[tuple[int, int]] = []
            while len(batch) < self.batch_size:
                if offset == self.length:
                    epoch, offset = epoch + 1, 0
                    order = self._order(epoch)
                batch.append((epoch, int(order[offset])))
                offset += 1
            yield batch

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.length)


Source = Clips | GivenClips


def open_data(
    data: DataConfig,
    task: Task,
    seed: int,
    training: bool = True,
    given: tuple[Dataset[Item], Dataset[Item] | None] | None = None,
) -> tuple[Source | None, Source | None, list[str] | None]:
    """Training clips (None unless ``training``), validation clips, and class names where folders name them.

    Args:
        given: datasets for ``source = "python"``, and for no other.

    Raises:
        ConfigError: data that cannot be read, lacks what the task needs, or has labels that the task has no class for.
        TypeError: what is given is no dataset.
    """
    if (given is None) == (data.source == "python"):
        expected = "go together with clips that are given to Trainer in Python"
        raise ConfigError(
            f"data.source = 'python' must {expected}, got source {data.source!r} and"
            f" {'no clips' if given is None else 'clips'}"
        )
    if given is not None:
        train_items, validation_items = given
        train_given = GivenClips("clips[0]", train_items, data, task) if training else None
        if validation_items is None:
            return train_given, None, None
        return train_given, GivenClips("clips[1]", validation_items, data.for_validation(), task), None
    classes = task.classes
    labelled = "label" in task.needs
    if data.source == "synthetic":
        if labelled and classes is not None and data.directions > classes:
            raise ConfigError(
                f"data.directions must be at most the task's {classes} classes, got {data.directions}"
            )
        validation = Clips(data, None, seed, training=False) if data.validation_clips else None
        return (Clips(data, None, seed, training=True) if training else None), validation, None
    if lacking := sorted(set(task.needs) - {"video", "label"}):
        raise ConfigError(f"data.source = '{data.source}' has no {', '.join(lacking)}, which the task needs")
    listed: dict[str, list[sources.Entry]] = {}
    names: dict[str, list[str] | None] = {}
    for part in ("train", "validation") if training else ("validation",):
        if (where := getattr(data, part)) is not None:
            key = f"data.{part}"
            listed[part], names[part] = sources.list_videos(key, data.source, where)
            if labelled:
                sources.check_labels(key, listed[part], classes)
    ours, theirs = names.get("train"), names.get("validation")
    if ours is not None and theirs is not None and ours != theirs:
        odd = ", ".join(sorted(set(ours) ^ set(theirs)))
        raise ConfigError(f"data.validation must have the same classes as data.train, not in both: {odd}")
    train = Clips(data, listed["train"], seed, training=True) if "train" in listed else None
    validation = Clips(data, listed["validation"], seed, training=False) if "validation" in listed else None
    return train, validation, ours or theirs


def training_loader(clips: Source, seed: int, position: int, pin: bool) -> DataLoader[Any]:
    """Endless batches from a position of the sampler on."""
    places = Places(len(clips), clips.data.batch_size, seed, position)
    return _loader(clips, places, seed, pin)


def validation_loader(clips: Source, seed: int, pin: bool) -> DataLoader[Any]:
    """Every clip once, in order."""
    everything = [(0, index) for index in range(len(clips))]
    size = clips.data.batch_size
    return _loader(clips, [everything[i : i + size] for i in range(0, len(everything), size)], seed, pin)


def _loader(clips: Source, batches: Any, seed: int, pin: bool) -> DataLoader[Any]:
    # A generator of its own: the loader draws its workers' seed from it, and must not touch the model's numbers.
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        clips,
        batch_sampler=batches,
        num_workers=clips.data.workers,
        collate_fn=collate,
        pin_memory=pin,
        generator=generator,
    )


def collate(items: list[Item]) -> tuple[Batch | None, list[tuple[str, str]]]:
    """A batch of the items that have a video (None if none has), and what was skipped."""
    skipped = [pair for item in items for pair in item["skipped"]]
    whole = [{k: v for k, v in item.items() if k != "skipped"} for item in items if "video" in item]
    return (default_collate(whole) if whole else None), skipped


def to_device(batch: Batch, device: torch.device) -> Batch:
    """All tensors of a batch on a device."""
    moved: dict[str, Tensor] = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    return moved
