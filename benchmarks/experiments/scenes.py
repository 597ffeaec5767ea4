"""Pictures moved over pictures: what every pixel shows, and where every point is, are known exactly.

Coordinates are (x, y) in pixels, pixel centres at +0.5. A layer is a picture and its motion: in frame t the pixel p
shows the picture at ``centre[t] + R(angle[t]) (p - anchor[t]) / zoom[t]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.experiments import pixels

_TRIES = 3
OPAQUE = 0.5  # coverage from which on a layer hides what is behind it


@dataclass(frozen=True)
class Layer:
    """A picture in motion.

    Attributes:
        picture: (3, H, W) in [0, 1]. coverage: (H, W) in [0, 1], 0 where the layer shows what is behind it (outside
            of the picture too); None: covers everything, and its edge is repeated for ever.
        centre: (T, 2), the point of the picture that lies at ``anchor``, (T, 2) in the frame.
        zoom: (T,), frame pixels per picture pixel. angle: (T,), radians.
    """

    picture: Tensor
    coverage: Tensor | None
    centre: np.ndarray
    anchor: np.ndarray
    zoom: np.ndarray
    angle: np.ndarray

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Frame points (T, ..., 2) -> points of the picture."""
        lead = (slice(None),) + (None,) * (points.ndim - 2)
        offset = (points - self.anchor[lead]) / self.zoom[lead + (None,)]
        return self.centre[lead] + _turned(offset, self.angle[lead])

    def to_frame(self, points: np.ndarray) -> np.ndarray:
        """The inverse: points of the picture (T, ..., 2) -> frame points."""
        lead = (slice(None),) + (None,) * (points.ndim - 2)
        offset = _turned(points - self.centre[lead], -self.angle[lead])
        return self.anchor[lead] + offset * self.zoom[lead + (None,)]

    def covers(self, points: np.ndarray) -> np.ndarray:
        """Whether frame points (T, ..., 2) lie on the layer -> bool (T, ...)."""
        if self.coverage is None:
            return np.ones(points.shape[:-1], bool)
        return _sampled(self.coverage[None], self.to_picture(points), "zeros")[:, 0].numpy() >= OPAQUE


def render(layers: Sequence[Layer], size: tuple[int, int]) -> Tensor:
    """Layers from back to front as a video uint8 (T, 3, H, W), bilinear."""
    raster = _raster(len(layers[0].zoom), size)
    video = torch.zeros(len(raster), 3, *size)
    for layer in layers:
        where = layer.to_picture(raster)
        colour = _sampled(layer.picture, where, "border")
        if layer.coverage is None:
            video = colour
        else:
            video = torch.lerp(video, colour, _sampled(layer.coverage[None], where, "zeros"))
    return (video * 255).round().to(torch.uint8)


def owners(layers: Sequence[Layer], size: tuple[int, int]) -> np.ndarray:
    """The number of the layer that every pixel of every frame shows, int (T, H, W)."""
    raster = _raster(len(layers[0].zoom), size)
    owner = np.zeros(raster.shape[:-1], int)
    for number, layer in enumerate(layers):
        owner[layer.covers(raster)] = number
    return owner


def follow(
    layers: Sequence[Layer], owner: int, frame: int, point: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the point of ``layers[owner]`` that is at ``point`` (2,) in ``frame`` lies, and whether it is seen.

    Returns:
        (T, 2); bool (T,): inside the frame and not behind a layer further in front.
    """
    layer, (height, width) = layers[owner], size
    frames = len(layer.zoom)
    on_picture = layer.to_picture(np.broadcast_to(point, (frames, 2)))[frame]
    track = layer.to_frame(np.broadcast_to(on_picture, (frames, 2)))
    seen = ((track >= 0) & (track < [width, height])).all(axis=1)
    for front in layers[owner + 1 :]:
        seen &= ~front.covers(track)
    return track, seen


def photograph(
    rng: np.random.Generator,
    split: str,
    size: tuple[int, int],
    path: np.ndarray,
    *,
    zoom: np.ndarray | None = None,
    angle: np.ndarray | None = None,
) -> Layer:
    """A camera over a photograph: ``path`` (T, 2) is where its middle goes, in photograph pixels from a random start.

    The photograph is mirrored, its colours are scaled and swapped at random. Of ``_TRIES`` random starts that keep the
    path inside (where it fits; else the edge is repeated) the one with most contrast in the middle of the path is
    taken.
    """
    known = pixels.photographs(split)
    picture = known[rng.integers(len(known))]
    if rng.random() < 0.5:
        picture = picture.flip(-1)
    picture = (picture[torch.from_numpy(rng.permutation(3))] * rng.uniform(0.7, 1.0)).contiguous()
    frames, (height, width) = len(path), size
    zoom = np.ones(frames) if zoom is None else zoom
    angle = np.zeros(frames) if angle is None else angle
    reach = np.array([width, height]) / 2 / zoom.min() * (1.0 if not angle.any() else 2**0.5)
    low = reach - path.min(axis=0)
    high = np.array([picture.shape[2], picture.shape[1]]) - reach - path.max(axis=0)
    starts = [rng.uniform(np.minimum(low, high), np.maximum(low, high)) for _ in range(_TRIES)]
    start = max(starts, key=lambda start: _contrast(picture, start + path[frames // 2], size))
    anchor = np.broadcast_to(np.array([width, height]) / 2, (frames, 2))
    return Layer(picture, None, start + path, anchor, zoom, angle)


def cutting(rng: np.random.Generator, split: str, diameter: float, path: np.ndarray) -> Layer:
    """A round cutting out of a photograph whose middle takes the ``path`` (T, 2) through the frame."""
    side = int(np.ceil(diameter))
    middle = np.full((len(path), 2), side / 2)
    one = np.ones(len(path))
    window = photograph(rng, split, (side, side), np.zeros((1, 2)))
    ys, xs = np.mgrid[:side, :side] + 0.5
    distance = np.hypot(xs - side / 2, ys - side / 2)
    coverage = torch.from_numpy((diameter / 2 - distance + 0.5).clip(0, 1)).float()
    picture = render([window], (side, side))[0].float() / 255
    return Layer(picture, coverage, middle, path, one, 0 * one)


def digit(rng: np.random.Generator, split: str, label: int, path: np.ndarray, *, zoom: float = 1.5) -> Layer:
    """A handwritten digit, bright, in a random colour, whose middle takes the ``path`` (T, 2) through the frame."""
    known = pixels.digits(split)[label]
    ink = F.pad(known[rng.integers(len(known))], (1, 1, 1, 1))  # so that its edge fades out
    colour = torch.from_numpy(rng.uniform(0.75, 1.0, 3)).float()
    picture = colour[:, None, None].expand(3, *ink.shape).contiguous()
    frames = len(path)
    middle = np.full((frames, 2), ink.shape[0] / 2)
    return Layer(picture, ink, middle, path, np.full(frames, zoom), np.zeros(frames))


def _raster(frames: int, size: tuple[int, int]) -> np.ndarray:
    """Pixel centres (T, H, W, 2)."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    return np.broadcast_to(np.stack([xs, ys], axis=-1), (frames, *size, 2))


def _sampled(picture: Tensor, points: np.ndarray, outside: str) -> Tensor:
    """Bilinear values of a picture (C, H, W) at points (T, ..., 2) -> float32 (T, C, ...)."""
    frames, shape = points.shape[0], points.shape[1:-1]
    size = np.array([picture.shape[2], picture.shape[1]])
    grid = torch.from_numpy(2 * points / size - 1).float().reshape(1, frames, -1, 2)
    found = F.grid_sample(picture[None], grid, mode="bilinear", padding_mode=outside, align_corners=False)
    return found[0].movedim(1, 0).reshape(frames, picture.shape[0], *shape)


def _contrast(picture: Tensor, middle: np.ndarray, size: tuple[int, int]) -> float:
    """Standard deviation of the grey values in a window of a picture."""
    left, top = (max(int(at - side / 2), 0) for at, side in zip(middle, size[::-1]))
    window = picture[:, top : top + size[0], left : left + size[1]]
    return float(window.mean(dim=0).std()) if window.numel() > 3 else 0.0


def _turned(offset: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = offset[..., 0], offset[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
