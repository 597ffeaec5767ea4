"""What mixes over time, as a choice for ablations: the one registry of temporal modules.

TRecViT's own is ``RecurrentBlock``, in one fused piece; the others stand in its place with the same interface. All are
causal and act along each tube of tokens; all stream frame by frame with the numbers of the whole clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from trecvit_kernels.modules.recurrent_block import RecurrentBlock
from trecvit_kernels.modules.temporal.attention import TemporalAttention, kept_frames
from trecvit_kernels.modules.temporal.base import TemporalBlock, TemporalModule, TemporalState
from trecvit_kernels.modules.temporal.recurrent import AblatedRecurrentBlock, LSTMBlock, PlainLRU
from trecvit_kernels.modules.temporal.simple import Conv1dBlock, NoTemporal

__all__ = [
    "CHOICES",
    "DEFAULT",
    "AblatedRecurrentBlock",
    "Choice",
    "Conv1dBlock",
    "LSTMBlock",
    "NoTemporal",
    "PlainLRU",
    "TemporalAttention",
    "TemporalBlock",
    "TemporalModule",
    "TemporalState",
    "create",
    "is_default",
    "kept_frames",
]

DEFAULT = "gated_lru"


class Choice(NamedTuple):
    """A kind of temporal module.

    Attributes:
        build: makes one from (width, lru_width, num_heads) and the options of ``create``, of which it takes its own.
        state_names: what its state holds, in this order.
        cuda_graph: whether a step has the same shapes at every frame and only kernels that a CUDA graph can hold.
    """

    build: Callable[..., TemporalModule]
    state_names: tuple[str, ...]
    cuda_graph: bool


def is_default(name: str, conv1d_width: int, gates: bool, normalizer: str, skip: bool) -> bool:
    """Whether these options mean ``RecurrentBlock``."""
    return name == DEFAULT and conv1d_width > 0 and gates and normalizer == "sqrt" and skip


def create(name: str, width: int, lru_width: int, num_heads: int, **options: Any) -> TemporalModule:
    """The temporal module called ``name``.

    Args:
        name: a key of ``CHOICES``.
        width: channels of the tokens. lru_width: hidden channels of the recurrence, LSTM or convolution.
        num_heads: blocks of the LRU's gates, or attention heads.
        options: conv1d_width, complex_lru, min_radius, max_radius, gates, normalizer, skip, window, out_variance, as in
            the classes; those that do not concern this module are left aside.

    Raises:
        ValueError: an unknown name, or sizes that do not fit.
    """
    if name not in CHOICES:
        raise ValueError(f"temporal.create: name must be one of {', '.join(CHOICES)}, got {name!r}")
    return CHOICES[name].build(width, lru_width, num_heads, **options)


_LRU = ("conv1d_width", "complex_lru", "min_radius", "max_radius", "out_variance")


def _some(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _gated_lru(width: int, lru_width: int, num_heads: int, **options: Any) -> TemporalModule:
    switches = {
        "gates": True,
        "normalizer": "sqrt",
        "skip": True,
        **_some(options, "gates", "normalizer", "skip"),
    }
    if is_default(DEFAULT, options.get("conv1d_width", 4), **switches):
        return RecurrentBlock(width, lru_width, num_heads, **_some(options, *_LRU))
    return AblatedRecurrentBlock(width, lru_width, num_heads, **_some(options, *_LRU), **switches)


def _attention(width: int, lru_width: int, num_heads: int, **options: Any) -> TemporalModule:
    return TemporalAttention(width, num_heads, **_some(options, "window", "out_variance", "skip"))


def _lstm(width: int, lru_width: int, num_heads: int, **options: Any) -> TemporalModule:
    return LSTMBlock(width, lru_width, **_some(options, "out_variance", "skip"))


def _conv1d(width: int, lru_width: int, num_heads: int, **options: Any) -> TemporalModule:
    return Conv1dBlock(width, lru_width, **_some(options, "conv1d_width", "out_variance", "skip"))


def _none(width: int, lru_width: int, num_heads: int, **options: Any) -> TemporalModule:
    return NoTemporal(width)


CHOICES: dict[str, Choice] = {
    "gated_lru": Choice(_gated_lru, AblatedRecurrentBlock.state_names, cuda_graph=True),
    "attention": Choice(_attention, TemporalAttention.state_names, cuda_graph=False),
    # cuDNN keeps state of its own between calls; not tried inside a graph.
    "lstm": Choice(_lstm, LSTMBlock.state_names, cuda_graph=False),
    "conv1d": Choice(_conv1d, Conv1dBlock.state_names, cuda_graph=True),
    "none": Choice(_none, NoTemporal.state_names, cuda_graph=True),
}
