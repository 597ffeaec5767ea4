"""Clips whose answers are known: direction, order, identity after occlusion, point tracks.

A clip follows from (seed, split, index) alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.experiments import scenes

Item = dict[str, Tensor]
DIGITS = (0, 1)  # whose order is asked for


def direction(
    rng: np.random.Generator,
    split: str,
    frames: int,
    size: tuple[int, int],
    *,
    speed: float = 1.0,
    shake: float = 0.0,
    every: int = 1,
) -> Item:
    """A camera that drifts over a photograph to the right (label 1) or to the left (label 0).

    Played backwards, a clip of one class is a clip of the other, as likely: a model that does not know which frame
    came first cannot do better than 1/2.

    Args:
        speed: photograph pixels per frame, times 0.5 to 1.5. shake: standard deviation of the camera's place around
            its path, per axis, in pixels, drawn for each frame. every: of how many frames one is kept; ``frames``
            are those that are kept.
    """
    label = int(rng.integers(2))
    velocity = (2 * label - 1) * speed * rng.uniform(0.5, 1.5)
    times = every * (np.arange(frames) - (frames - 1) / 2)
    path = np.stack([velocity * times, np.zeros(frames)], axis=-1) + shake * rng.standard_normal((frames, 2))
    video = scenes.render([scenes.photograph(rng, split, size, path)], size)
    return {"video": video, "label": torch.tensor(label)}


def order(rng: np.random.Generator, split: str, frames: int, size: tuple[int, int]) -> Item:
    """The digits 0 and 1, one after the other, each drifting over a drifting photograph; the label is the first.

    Played backwards, a clip of one class is a clip of the other, as likely, so that without time 1/2 is the best.
    """
    first, second = (int(label) for label in rng.permutation(DIGITS))
    layers = [_background(rng, split, frames, size, brightness=0.5)]
    for label, gone in ((first, slice(frames // 2, None)), (second, slice(None, frames // 2))):
        layers.append(_digit(rng, split, label, gone, frames, size))
    return {"video": scenes.render(layers, size), "label": torch.tensor(first)}


def identity(rng: np.random.Generator, split: str, frames: int, size: tuple[int, int]) -> Item:
    """A digit, 0 or 1, disappears behind a photograph that covers everything; after that the other one is seen.

    The label is the first digit. The frames alone, without their order, leave both as likely.
    """
    first, second = (int(label) for label in rng.permutation(DIGITS))
    shown = max(frames // 3, 1)
    layers = [_background(rng, split, frames, size, brightness=0.5)]
    for label, gone in ((first, slice(shown, None)), (second, slice(None, frames - shown))):
        layers.append(_digit(rng, split, label, gone, frames, size))
    video = scenes.render(layers, size)
    hidden = frames - 2 * shown
    video[shown : frames - shown] = scenes.render(
        [scenes.photograph(rng, split, size, np.zeros((hidden, 2)))], size
    )
    return {"video": video, "label": torch.tensor(first)}


def turn(
    rng: np.random.Generator, split: str, frames: int, size: tuple[int, int], *, speed: float = 1.0
) -> Item:
    """A camera that goes along one axis and then along the other; the label is which came first (1: horizontal).

    Played backwards, a clip of one class is a clip of the other, as likely, so that without time 1/2 is the best.
    """
    label = int(rng.integers(2))
    half = frames // 2
    steps = speed * rng.uniform(0.5, 1.5, 2) * rng.choice([-1, 1], 2)
    first = np.arange(frames) < half
    moves = np.stack([steps[0] * (first == label), steps[1] * (first != label)], axis=-1)
    path = np.cumsum(moves, axis=0)
    return {
        "video": scenes.render([scenes.photograph(rng, split, size, path)], size),
        "label": torch.tensor(label),
    }


def moving_digit(rng: np.random.Generator, split: str, frames: int, size: tuple[int, int]) -> Item:
    """A digit, the label, drifts over a drifting photograph."""
    label = int(rng.integers(10))
    layers = [_background(rng, split, frames, size)]
    layers.append(_digit(rng, split, label, slice(0), frames, size, zoom=2.0))
    return {"video": scenes.render(layers, size), "label": torch.tensor(label)}


def journey(
    rng: np.random.Generator, split: str, frames: int, size: tuple[int, int], *, speed: float = 1.0
) -> Item:
    """A camera that walks over a photograph, turning its way and zooming: no frame repeats another."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.15, frames))
    step = speed * rng.uniform(0.5, 1.5) * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    path = np.cumsum(step, axis=0)
    zoom = np.exp(rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, frames))
    return {"video": scenes.render([scenes.photograph(rng, split, size, path, zoom=zoom)], size)}


def tracks(
    rng: np.random.Generator,
    split: str,
    frames: int,
    size: tuple[int, int],
    *,
    points: int = 16,
    cuttings: int = 2,
    speed: float = 1.5,
    brightness: float = 1.0,
) -> Item:
    """Cuttings of photographs that move over a moving photograph and hide each other, and points to be followed.

    Three quarters of the points are on a cutting (if one is seen) when they are asked for, which is in the first frame
    in which they are seen. ``speed``: largest, in pixels per frame. ``brightness``: of what is behind the cuttings.

    Returns:
        video uint8 (frames, 3, H, W); query_points (points, 3), (t, y, x); target_points (points, frames, 2), (x, y);
        visible bool (points, frames).
    """
    height, width = size
    layers = [_background(rng, split, frames, size, speed=speed / 2, brightness=brightness)]
    for _ in range(cuttings):
        path = _drift(rng, frames, size, 0.0, speed=speed)
        layers.append(scenes.cutting(rng, split, rng.uniform(0.25, 0.45) * min(size), path))
    queries = np.empty((points, 3), np.float32)
    targets = np.empty((points, frames, 2), np.float32)
    visible = np.empty((points, frames), bool)
    owners = scenes.owners(layers, size)
    for q in range(points):
        frame = int(rng.integers(frames))
        pixels = np.flatnonzero((owners[frame] > 0) == (rng.random() < 0.75))
        if not pixels.size:  # nothing but the background, or cuttings everywhere
            pixels = np.arange(height * width)
        y, x = divmod(int(pixels[rng.integers(pixels.size)]), width)
        owner, point = int(owners[frame, y, x]), np.array([x + 0.5, y + 0.5])
        track, seen = scenes.follow(layers, owner, frame, point, size)
        first = int(seen.argmax())
        queries[q] = (first, track[first, 1], track[first, 0])
        targets[q], visible[q] = track, seen
    return {
        "video": scenes.render(layers, size),
        "query_points": torch.from_numpy(queries),
        "target_points": torch.from_numpy(targets),
        "visible": torch.from_numpy(visible),
    }


def _background(
    rng: np.random.Generator,
    split: str,
    frames: int,
    size: tuple[int, int],
    speed: float = 0.5,
    brightness: float = 1.0,
) -> scenes.Layer:
    """A photograph under a camera that goes straight on, in any direction."""
    velocity = _velocity(rng, speed)
    times = np.arange(frames) - (frames - 1) / 2
    layer = scenes.photograph(rng, split, size, times[:, None] * velocity)
    return dataclasses.replace(layer, picture=brightness * layer.picture)


def _digit(
    rng: np.random.Generator,
    split: str,
    label: int,
    gone: slice,
    frames: int,
    size: tuple[int, int],
    zoom: float = 1.5,
) -> scenes.Layer:
    """A handwritten digit that drifts near the middle and is out of the frame in the frames ``gone``."""
    path = _drift(rng, frames, size, min(7.0, min(size) / 2 - 1))
    path[gone] = -100.0
    return scenes.digit(rng, split, label, path, zoom=zoom)


def _drift(
    rng: np.random.Generator, frames: int, size: tuple[int, int], margin: float, speed: float = 0.5
) -> np.ndarray:
    """A straight path (T, 2) whose middle is at least ``margin`` from the frame's edges."""
    middle = rng.uniform(margin, np.array(size[::-1]) - margin)
    return middle + (np.arange(frames) - (frames - 1) / 2)[:, None] * _velocity(rng, speed)


def _velocity(rng: np.random.Generator, speed: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return speed * rng.uniform(0, 1) * np.array([np.cos(angle), np.sin(angle)])


MAKERS: dict[str, Callable[..., Item]] = {
    made.__name__: made for made in (direction, order, identity, turn, moving_digit, journey, tracks)
}


@dataclass(frozen=True)
class Clips(Dataset[Item]):
    """``length`` clips of one kind; training clips differ from test clips in photographs, writers and seeds.

    A clip is kept in memory once it is made: making it takes about as long as a small model takes to learn from it.
    """

    kind: str
    split: str
    length: int
    frames: int
    size: tuple[int, int]
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    _made: dict[int, Item] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.length:
            raise IndexError(index)
        if index not in self._made:
            rng = np.random.default_rng([self.seed, self.split == "test", index])
            self._made[index] = MAKERS[self.kind](rng, self.split, self.frames, self.size, **self.options)
        return self._made[index]
