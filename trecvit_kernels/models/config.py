"""Configuration of TRecViT and the table of sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trecvit_kernels.modules import temporal
from trecvit_kernels.modules.gated_lru import MAX_RADIUS
from trecvit_kernels.ops.gated_lru.op import NORMALIZERS

_POOLS = ("cls", "mean")
_POSEMBS = ("learned", "sincos2d")


@dataclass(frozen=True)
class TRecViTConfig:
    """Sizes and choices of a TRecViT; the defaults are TRecViT-B as in the paper (arXiv 2412.14294).

    Attributes:
        width: channels of a token. depth: number of blocks (time mixing, then a ViT block).
        mlp_dim: hidden channels of the MLP. num_heads: attention heads, and blocks of the LRU's gates.
        patch_size, image_size: (height, width) in pixels; an int means a square. Pixels at the right and
            lower edge that do not fill a patch are dropped.
        lru_width: channels of the recurrence; None means ``width``.
        conv1d_width: taps of the causal convolution over time; 0 leaves it out of the recurrent block.
        min_radius, max_radius: between which radii the LRU's decay starts.
        complex_lru: complex recurrence in merged halves.
        pool: "cls" (a token before the patches) or "mean" over the patches.
        posemb: "learned" or "sincos2d".
        head_width: channels of the pre-logits; 0 leaves that layer out (pooled tokens count as pre-logits).
        num_classes: 0 leaves the classifier out.
        frames_per_clip: a video of T frames counts as max(T // frames_per_clip, 1) clips; None: as one.
        dropout: probability inside the ViT blocks and before the classifier.
        temporal: what mixes over time, for ablations: "gated_lru" (TRecViT), "attention", "lstm", "conv1d" or "none";
            see ``modules.temporal``. What follows is for ablations too.
        lru_gates: False makes the LRU's decay a constant of each channel and leaves the input gate out.
        lru_normalizer: "sqrt" or "convex", as in ``ops.gated_lru``.
        temporal_skip: False leaves out the residual addition around the temporal module.
        temporal_window: frames that temporal attention sees; None: all before.

    Raises:
        TypeError: a field of the wrong type. ValueError: a value that does not fit.
    """

    width: int = 768
    depth: int = 12
    mlp_dim: int = 3072
    num_heads: int = 12
    patch_size: tuple[int, int] = (16, 16)
    image_size: tuple[int, int] = (224, 224)
    lru_width: int = None  # type: ignore[assignment]  # None means width; resolved in __post_init__
    conv1d_width: int = 4
    min_radius: float = 0.6
    complex_lru: bool = False
    pool: str = "cls"
    posemb: str = "learned"
    head_width: int = 3072
    num_classes: int = 400
    frames_per_clip: int | None = None
    dropout: float = 0.0
    temporal: str = temporal.DEFAULT
    max_radius: float = MAX_RADIUS
    lru_gates: bool = True
    lru_normalizer: str = "sqrt"
    temporal_skip: bool = True
    temporal_window: int | None = None

    def __post_init__(self) -> None:
        if self.lru_width is None:
            object.__setattr__(self, "lru_width", self.width)
        for name in ("patch_size", "image_size"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        for name in ("width", "depth", "mlp_dim", "num_heads", "lru_width"):
            _check_int(name, getattr(self, name), 1)
        for name in ("head_width", "num_classes", "conv1d_width"):
            _check_int(name, getattr(self, name), 0)
        for name in ("frames_per_clip", "temporal_window"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 1)
        for name in ("min_radius", "max_radius", "dropout"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, (int, float)):
                raise TypeError(f"TRecViTConfig: {name} must be a float, got {type(value).__name__}")
        for name in ("complex_lru", "lru_gates", "temporal_skip"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"TRecViTConfig: {name} must be a bool, got {type(value).__name__}")
        for name in ("pool", "posemb", "temporal", "lru_normalizer"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"TRecViTConfig: {name} must be a str, got {type(value).__name__}")
        if self.width % self.num_heads:
            _refuse("width", f"a multiple of num_heads = {self.num_heads}", self.width)
        heads = self.num_heads * (2 if self.complex_lru else 1)
        if self.lru_width % heads:
            halves = "2 * num_heads" if self.complex_lru else "num_heads"
            _refuse("lru_width", f"a multiple of {halves} = {heads}", self.lru_width)
        if not 0.0 < self.max_radius < 1.0:
            _refuse("max_radius", "between 0 and 1", self.max_radius)
        if not 0.0 < self.min_radius < self.max_radius:
            _refuse("min_radius", f"between 0 and {self.max_radius}", self.min_radius)
        if not 0.0 <= self.dropout < 1.0:
            _refuse("dropout", "in [0, 1)", self.dropout)
        if self.pool not in _POOLS:
            _refuse("pool", f"one of {', '.join(_POOLS)}", repr(self.pool))
        if self.posemb not in _POSEMBS:
            _refuse("posemb", f"one of {', '.join(_POSEMBS)}", repr(self.posemb))
        self._check_temporal()
        if self.posemb == "sincos2d" and (self.width % 4 or self.width < 8):
            _refuse("width", "a multiple of 4 and at least 8 with posemb='sincos2d'", self.width)
        if min(self.grid) < 1:
            _refuse("image_size", f"at least one patch of {self.patch_size}", self.image_size)

    def _check_temporal(self) -> None:
        if self.temporal not in temporal.CHOICES:
            _refuse("temporal", f"one of {', '.join(temporal.CHOICES)}", repr(self.temporal))
        if self.lru_normalizer not in NORMALIZERS:
            _refuse("lru_normalizer", f"one of {', '.join(NORMALIZERS)}", repr(self.lru_normalizer))
        # A switch that would change nothing is a mistake in an ablation.
        only_of = {
            "complex_lru": (False, "gated_lru"),
            "lru_gates": (True, "gated_lru"),
            "lru_normalizer": ("sqrt", "gated_lru"),
            "temporal_window": (None, "attention"),
        }
        for name, (default, owner) in only_of.items():
            if getattr(self, name) != default and self.temporal != owner:
                _refuse(name, f"{default!r} unless temporal = {owner!r}", repr(getattr(self, name)))
        if self.conv1d_width == 0 and self.temporal != "gated_lru":
            _refuse("conv1d_width", "at least 1 unless temporal = 'gated_lru'", 0)
        if self.temporal == "none" and not self.temporal_skip:
            _refuse("temporal_skip", "True with temporal = 'none'", self.temporal_skip)
        if self.temporal == "attention" and self.width % (2 * self.num_heads):
            expected = f"a multiple of 2 * num_heads = {2 * self.num_heads} with temporal = 'attention'"
            _refuse("width", expected, self.width)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across) in a frame."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def tokens(self) -> int:
        """Tokens of a frame, counting the cls token."""
        return self.grid[0] * self.grid[1] + (self.pool == "cls")

    @property
    def feature_width(self) -> int:
        """Channels of the pre-logits."""
        return self.head_width or self.width

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values, as config.json holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TRecViTConfig:
        """The inverse of ``to_dict``; TypeError if ``fields`` is no mapping, ValueError names unknown fields."""
        if not isinstance(fields, Mapping):
            raise TypeError(f"TRecViTConfig: fields must be a mapping by name, got {type(fields).__name__}")
        check_fields("TRecViTConfig", fields)
        return cls(**fields)

    def replace(self, where: str = "TRecViTConfig", **overrides: Any) -> TRecViTConfig:
        """A copy with other values; ValueError names unknown fields."""
        check_fields(where, overrides)
        return dataclasses.replace(self, **overrides)


def check_fields(where: str, fields: Mapping[str, Any]) -> None:
    """ValueError naming what is no field of the configuration."""
    known = [field.name for field in dataclasses.fields(TRecViTConfig)]
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(known)}")


def _refuse(name: str, expected: str, got: object) -> None:
    raise ValueError(f"TRecViTConfig: {name} must be {expected}, got {got}")


def _check_int(name: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"TRecViTConfig: {name} must be an int, got {type(value).__name__}")
    if value < at_least:
        _refuse(name, f"at least {at_least}", value)


def _pair(name: str, value: object) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)):
        raise TypeError(f"TRecViTConfig: {name} must be (height, width), got {type(value).__name__}")
    if len(pair) != 2:
        _refuse(name, "(height, width)", value)
    for part in pair:
        _check_int(name, part, 1)
    return pair[0], pair[1]


def _size(width: int, depth: int, mlp_dim: int, num_heads: int) -> TRecViTConfig:
    return TRecViTConfig(width=width, depth=depth, mlp_dim=mlp_dim, num_heads=num_heads)


# Widths of ViT (arXiv 2106.04560, table 2). As in the paper: LRU width = width, radius from 0.6.
# trecvit_base_k400 is the released Kinetics-400 model: LRU width doubled, radius from 0.5, 32 frames.
SIZES: dict[str, TRecViTConfig] = {
    "trecvit_tiny": _size(192, 12, 768, 3),
    "trecvit_small": _size(384, 12, 1536, 6),
    "trecvit_base": _size(768, 12, 3072, 12),
    "trecvit_large": _size(1024, 24, 4096, 16),
    "trecvit_base_k400": _size(768, 12, 3072, 12).replace(lru_width=1536, min_radius=0.5, frames_per_clip=32),
}
