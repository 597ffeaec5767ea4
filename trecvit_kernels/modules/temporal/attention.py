"""Factorised self-attention over time: every token attends to its own past."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels.modules import _init
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.modules.temporal.base import TemporalBlock, TemporalState

_BASE = 10_000.0


class TemporalAttention(TemporalBlock):
    r"""x + out(attention(norm(x))) along time: causal, multi-headed, each lane on its own.

    Order is told by rotary embeddings of the frame's number (RoFormer, arXiv 2104.09864, base 10,000), which depend on
    differences only and so have no longest clip.

    Args:
        width: channels. num_heads: attention heads; width / num_heads must be even.
        window: how many frames a frame sees, itself included; None means all before it.
        out_variance: variance of out's initial weights times its fan-in.
        skip: False leaves the residual addition out.

    The state is (keys, values), each (B, S, \*lanes, width), oldest first, before the rotation: **it grows with every
    frame**, and so does the time per frame, up to S = window - 1; without a window it grows for ever. ``reset`` is
    refused, since rows of the batch would have to keep different numbers of frames.

    Raises:
        ValueError: heads that do not divide the width into even parts, or a window below 1.
    """

    state_names = ("keys", "values")
    first_linear = "qkv"

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        window: int | None = None,
        out_variance: float = 1.0,
        skip: bool = True,
    ) -> None:
        super().__init__(width, skip=skip)
        if num_heads < 1 or width % (2 * num_heads):
            raise ValueError(
                f"TemporalAttention: width must be a multiple of 2 * num_heads = {2 * num_heads}, got {width}"
            )
        if window is not None and window < 1:
            raise ValueError(f"TemporalAttention: window must be None or at least 1, got {window}")
        self.num_heads, self.window, self.out_variance = num_heads, window, out_variance
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform q, k and v, each on its own, as in ``SpatialBlock``; out N(0, out_variance / width)."""
        _init.xavier_uniform_(self.qkv.weight, self.width, self.width)
        _init.normal_(self.out.weight, self.width, self.out_variance)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def init_state(self, *lead: int, dtype: torch.dtype | None = None) -> TemporalState:
        r"""An empty cache for inputs (lead[0], T, \*lead[1:], width)."""
        batch, *lanes = lead
        weight = self.out.weight
        keys = weight.new_zeros((batch, 0, *lanes, self.width), dtype=dtype or weight.dtype)
        return keys, keys.clone()

    def state_shape(self, fresh: Tensor, got: Tensor) -> tuple[int, ...]:
        return fresh.shape[0], got.shape[1], *fresh.shape[2:]

    def branch(
        self, y: Tensor, state: TemporalState | None, reset: Tensor | None
    ) -> tuple[Tensor, TemporalState]:
        q, k, v = self.qkv(y).chunk(3, dim=-1)
        if state is not None:
            k, v = (torch.cat([old.to(new.dtype), new], 1) for old, new in zip(state, (k, v), strict=True))
        frames, seen = q.shape[1], k.shape[1]
        cached = kept_frames(seen, self.window)
        # Fresh memory: a view would keep all three of q, k and v, or frames that have left the window.
        new_state = (k[:, seen - cached :].contiguous(), v[:, seen - cached :].contiguous())
        at = torch.arange(seen, device=y.device)
        distance = at[seen - frames :, None] - at
        visible = distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        q, k, v = self._per_tube(q), self._per_tube(k), self._per_tube(v)
        z = F.scaled_dot_product_attention(_rotate(q, at[seen - frames :]), _rotate(k, at), v, visible)
        z = z.movedim(-2, 1).flatten(-2)  # (B, *lanes, heads, T, D) -> (B, T, *lanes, width)
        return self.out(z), new_state

    def _per_tube(self, x: Tensor) -> Tensor:
        """(B, T, *lanes, width) -> (B, *lanes, heads, T, width / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).movedim(1, -2)


def kept_frames(frames: int, window: int | None) -> int:
    """How many of ``frames`` frames the cache keeps for the next one."""
    return frames if window is None else min(frames, window - 1)


def _rotate(x: Tensor, at: Tensor) -> Tensor:
    """Rotary embedding of x (..., T, D) at positions ``at`` (T,): pairs (d, d + D/2) turn by at / base^(2d / D)."""
    half = x.shape[-1] // 2
    speed = _BASE ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = at.to(torch.float64)[:, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
