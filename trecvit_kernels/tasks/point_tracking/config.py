"""Sizes of a point tracker."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PointTrackerConfig:
    """Sizes of a ``PointTracker``; the defaults are TAPNext-B as released (194 million parameters).

    Attributes:
        width: channels of a token, a multiple of 4 and of num_heads, at least 8. depth: number of blocks.
        num_heads: attention heads, and blocks of the LRU's gates.
        mlp_dim: hidden channels of both MLPs of a block, the gated one and the ViT's; None means 4 * width.
        lru_width: channels of the recurrence; None means ``width``.
        conv1d_width: taps of the causal convolution over time.
        patch_size: (height, width) in pixels; an int means a square.
        image_size: (height, width) in pixels that query points are measured in, whatever the size of the video, and
            that the learned positions are for; an int means a square.
        head_width: hidden channels of the two heads.
        min_radius: smallest radius at which the LRU's decay starts (Griffin: 0.9).

    Raises:
        TypeError: a field of the wrong type. ValueError: a value that does not fit.
    """

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = None  # type: ignore[assignment]  # None means 4 * width; resolved in __post_init__
    lru_width: int = None  # type: ignore[assignment]  # None means width
    conv1d_width: int = 4
    patch_size: tuple[int, int] = (8, 8)
    image_size: tuple[int, int] = (256, 256)
    head_width: int = 256
    min_radius: float = 0.9

    def __post_init__(self) -> None:
        _check_int("width", self.width, 8)
        if self.mlp_dim is None:
            object.__setattr__(self, "mlp_dim", 4 * self.width)
        if self.lru_width is None:
            object.__setattr__(self, "lru_width", self.width)
        for name in ("patch_size", "image_size"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        for name in ("depth", "num_heads", "mlp_dim", "lru_width", "conv1d_width", "head_width"):
            _check_int(name, getattr(self, name), 1)
        if isinstance(self.min_radius, bool) or not isinstance(self.min_radius, (int, float)):
            raise TypeError(
                f"PointTrackerConfig: min_radius must be a float, got {type(self.min_radius).__name__}"
            )
        if self.width % 4:
            _refuse("width", "a multiple of 4", self.width)
        for name in ("width", "lru_width"):
            if getattr(self, name) % self.num_heads:
                _refuse(name, f"a multiple of num_heads = {self.num_heads}", getattr(self, name))
        if any(size % patch for size, patch in zip(self.image_size, self.patch_size, strict=True)):
            _refuse("image_size", f"whole patches of {self.patch_size}", self.image_size)
        if not 0.0 < self.min_radius < 0.999:
            _refuse("min_radius", "between 0 and 0.999", self.min_radius)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across) in an image of ``image_size``."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values."""
        return dataclasses.asdict(self)


def _refuse(name: str, expected: str, got: object) -> None:
    raise ValueError(f"PointTrackerConfig: {name} must be {expected}, got {got}")


def _check_int(name: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"PointTrackerConfig: {name} must be an int, got {type(value).__name__}")
    if value < at_least:
        _refuse(name, f"at least {at_least}", value)


def _pair(name: str, value: object) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)):
        raise TypeError(f"PointTrackerConfig: {name} must be (height, width), got {type(value).__name__}")
    if len(pair) != 2:
        _refuse(name, "(height, width)", value)
    for part in pair:
        _check_int(name, part, 1)
    return pair[0], pair[1]
