"""The walk through a model's blocks, the same for every model made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trecvit_kernels.modules._residual import Residual
from trecvit_kernels.ops.residual_norm.op import is_fused


def encode(
    blocks: nn.ModuleList,
    norm: nn.LayerNorm,
    x: Tensor,
    layers: Sequence[Any] | None = None,
    new_layers: list[Any] | None = None,
    *,
    kept: dict[str, Tensor] | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """All blocks and the last norm: tokens (B, T, N, C) to tokens.

    Args:
        blocks: each makes (x after mixing over time, x after it, its new state) of x and a state; its ``mix`` does the
            same to a residual stream.
        layers: the blocks' states; None: from the start of a sequence.
        new_layers: takes the new states, if there is such a list.
        kept: takes those of the intermediates "blocks.i.time" and "blocks.i.space" that are its keys.
        checkpointing: keep only each block's input, and run the block again in the backward pass.
    """
    states = [None] * len(blocks) if layers is None else layers
    if not kept and is_fused(x):  # nobody asks for what is between the blocks
        stream = Residual(x)
        for block, state in zip(blocks, states, strict=True):
            stream, new_state = cast(Any, block).mix(stream, state)
            if new_layers is not None:
                new_layers.append(new_state)
        return stream.normed(norm)[1]
    for i, (block, state) in enumerate(zip(blocks, states, strict=True)):
        if checkpointing and torch.is_grad_enabled():
            after_time, x, new_state = checkpoint(block, x, state, use_reentrant=False)
        else:
            after_time, x, new_state = block(x, state)
        if new_layers is not None:
            new_layers.append(new_state)
        keep(kept, f"blocks.{i}.time", after_time)
        keep(kept, f"blocks.{i}.space", x)
    return norm(x)


def keep(kept: dict[str, Tensor] | None, name: str, value: Tensor) -> None:
    """Put ``value`` where somebody wants it."""
    if kept is not None and name in kept:
        kept[name] = value
