"""Clips of moving shapes whose direction and point tracks are known exactly: every task trains without files."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

KINDS = ("disc", "square", "diamond")


def moving_shapes(
    rng: np.random.Generator,
    *,
    frames: int,
    size: tuple[int, int],
    directions: int = 4,
    shapes: int = 2,
    points: int = 16,
) -> dict[str, Tensor]:
    """One clip: checked shapes that all move in one direction over a still background, hiding each other.

    Three quarters of the points (those that find a shape) move with a shape, the others belong to the background. Each
    is asked for in the first frame where it is visible.

    Args:
        rng: all that is drawn; the same state gives the same clip.
        directions: classes; class k moves at the angle 2 pi k / directions, 0 to the right, a quarter turn downwards.

    Returns:
        video uint8 (frames, 3, H, W); label int64 (); query_points float32 (points, 3), (t, y, x); target_points
        float32 (points, frames, 2), (x, y); visible bool (points, frames). Coordinates are pixels of the video, pixel
        centres at +0.5. A point is visible inside the image where no shape in front of it covers it.
    """
    height, width = size
    small = min(size)
    label = int(rng.integers(directions))
    angle = 2 * math.pi * label / directions
    heading = np.array([math.cos(angle), math.sin(angle)])  # (x, y)
    middle = rng.uniform(0.25, 0.75, (shapes, 2)) * [width, height]
    speed = rng.uniform(0.4, 0.8, shapes) * small / max(frames - 1, 1)
    radius = rng.uniform(0.12, 0.22, shapes) * small
    kinds = rng.integers(len(KINDS), size=shapes)
    colours = rng.uniform(110, 255, (shapes, 3))
    steps = (np.arange(frames) - (frames - 1) / 2)[:, None, None]
    centres = middle + steps * speed[:, None] * heading  # (T, shapes, 2)

    ys, xs = np.mgrid[:height, :width] + 0.5
    slope = rng.uniform(-1, 1, (2, 3))
    still = 60 + 30 * (slope[0] * (xs / width)[..., None] + slope[1] * (ys / height)[..., None])
    still = still + rng.uniform(-12, 12, (height, width, 1))
    video = np.repeat(still[None], frames, axis=0)
    owner = np.full((frames, height, width), -1)
    for s in range(shapes):  # later shapes are in front
        u, v = xs - centres[:, s, 0, None, None], ys - centres[:, s, 1, None, None]
        inside = _contains(kinds[s], u, v, radius[s])
        check = np.sign(np.sin(6 * u / radius[s]) * np.sin(6 * v / radius[s]))
        video = np.where(inside[..., None], colours[s] * (0.8 + 0.2 * check[..., None]), video)
        owner[inside] = s

    queries = np.empty((points, 3), np.float32)
    targets = np.empty((points, frames, 2), np.float32)
    visible = np.empty((points, frames), bool)
    for q in range(points):
        t = int(rng.integers(frames))
        pixels = np.flatnonzero(owner[t] >= 0)
        if rng.random() < 0.25 or not pixels.size:
            pixels = np.flatnonzero(owner[t] < 0)
        if not pixels.size:  # shapes all over
            pixels = np.arange(height * width)
        y, x = divmod(int(pixels[rng.integers(pixels.size)]), width)
        s = int(owner[t, y, x])
        moved = (centres[:, s] - centres[t, s]) if s >= 0 else np.zeros((frames, 2))
        place = moved + [x + 0.5, y + 0.5]  # (T, 2)
        seen = ((place >= 0) & (place < [width, height])).all(axis=1)
        for front in range(s + 1, shapes):
            u, v = (place - centres[:, front]).T
            seen &= ~_contains(kinds[front], u, v, radius[front])
        first = int(seen.argmax())
        queries[q] = (first, place[first, 1], place[first, 0])
        targets[q], visible[q] = place, seen
    pictures = np.ascontiguousarray(video.round().clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2))
    return {
        "video": torch.from_numpy(pictures),
        "label": torch.tensor(label),
        "query_points": torch.from_numpy(queries),
        "target_points": torch.from_numpy(targets),
        "visible": torch.from_numpy(visible),
    }


def _contains(kind: int, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Whether offsets (u, v) from the centre lie in the shape."""
    if KINDS[kind] == "disc":
        return u**2 + v**2 <= radius**2
    if KINDS[kind] == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.85 * radius
    return np.abs(u) + np.abs(v) <= 1.2 * radius
