"""Triton backend: allocates, chooses tiles and launches ``_triton_kernels``. Frames of up to 256 tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._triton import (
    INTERPRETER,
    Variant,
    architecture,
    launch,
    multiprocessors,
    on_device_of,
    recording,
    variant_of,
)
from trecvit_kernels.ops._views import framed
from trecvit_kernels.ops.spatial_attention._triton_kernels import backward_kernel, forward_kernel

_LOG2E = 1.4426950408889634
_SMALLEST = 2.0**-126  # a scale of zero as a normal number: masked scores stay -inf
# Keep a frame's rows in shared memory; the others have less of it or read matrix operands from registers.
_KEEPS_ROWS = ("sm_90", "sm_100")


class Tile(NamedTuple):
    """BLOCK, PIECES, RESIDENT and PREFETCH of the kernels; warps of a program."""

    block: int
    pieces: tuple[int, ...]
    resident: bool
    prefetch: bool
    warps: int


def pieces(tokens: int, most: int) -> tuple[int, ...]:
    """Descending powers of two from ``most`` to 16 that cover ``tokens``; none is a quarter empty but a last 16."""
    found, rest, size = [], tokens, most
    while rest > 0:
        while size > 16 and rest <= size * 3 // 4:
            size //= 2
        found.append(size)
        rest -= size
    return tuple(found)


def tile(direction: str, tokens: int, head_dim: int, dtype: torch.dtype, arch: str, walks: bool) -> Tile:
    """Launch parameters, from registers and spills of ahead-of-time builds (docs/kernels.md); not measured.

    walks: there are programs enough for each to walk all tiles of a frame and head.
    """
    wide = dtype in (torch.float32, torch.float64)
    forward = direction == "forward"
    if arch == INTERPRETER:  # few, large steps
        return (
            Tile(64, pieces(tokens, 128 if forward else 64), True, tokens > 64, 4)
            if walks
            else _loop(64, 64, 4)
        )
    if wide and arch.startswith("sm_"):
        if forward:
            return _loop(64, 32, 8)
        return _loop(64, 32, 8) if head_dim <= 64 else _loop(16, 32, 4)
    if wide or not walks or arch not in _KEEPS_ROWS:
        return _loop(64, 64 if head_dim <= 64 else 32, 4)
    if tokens <= 64:
        return Tile(64, (64,), True, False, 4)
    if forward:
        # 167 registers at 196 tokens, so that a multiprocessor takes three programs; 187 at 256 without prefetch.
        found = pieces(tokens, 128) if tokens <= 208 else (256,)
        return Tile(64, found, True, sum(found) <= 208 and head_dim <= 64, 4)
    if arch == "sm_100" and (head_dim > 64 or (head_dim > 32 and tokens > 208)):
        # The products with all pieces would take more than the 512 columns of tensor memory: Triton makes that a trap.
        return _loop(64, 64 if head_dim <= 64 else 32, 4)
    return Tile(64, pieces(tokens, 64 if head_dim <= 64 else 32), True, head_dim <= 64, 4)


def _loop(block: int, piece: int, warps: int) -> Tile:
    return Tile(block, (piece,), False, False, warps)


class _Frames:
    """The launch arguments that both kernels share."""

    def __init__(self, direction: str, qkv: Tensor, heads: int, scale: float) -> None:
        self.batch, self.frames, self.tokens, channels = qkv.shape
        self.heads, self.head_dim = heads, channels // (3 * heads)
        self.sequences = self.batch * self.frames * heads
        arch, exact = architecture(qkv), qkv.dtype == torch.float64
        walks = _schedule.gpu_walks_tiles(self.sequences, multiprocessors(qkv))
        self.tile = tile(direction, self.tokens, self.head_dim, qkv.dtype, arch, walks)
        scale_log2 = max(abs(scale) * _LOG2E, _SMALLEST)
        self.arguments: dict[str, Any] = {
            "qkv_ptr": qkv,
            "frames": self.frames,
            "heads": heads,
            **_strides_of("qkv", qkv),
            "scale_log2": scale_log2,
            "N": self.tokens,
            "D": self.head_dim,
            "BLOCK": self.tile.block,
            "PIECES": self.tile.pieces,
            "RESIDENT": self.tile.resident,
            "PREFETCH": self.tile.prefetch,
            "NEGATIVE": scale < 0,
            "EXACT": (scale, scale_log2) if exact else None,
            "PRECISION": _precision(qkv.dtype, arch),
        }

    @property
    def tiles(self) -> int:
        return 1 if self.tile.resident else -(-self.tokens // self.tile.block)


def _precision(dtype: torch.dtype, arch: str) -> str | None:
    """float32 products: exact to float32 by three tf32 ones on NVIDIA, directly on AMD."""
    if arch == INTERPRETER:
        return None
    return "tf32x3" if dtype == torch.float32 and arch.startswith("sm_") else "ieee"


def _strides_of(name: str, x: Tensor) -> dict[str, int]:
    return {f"{name}_stride_{dim}": stride for dim, stride in zip("btn", x.stride(), strict=False)}


def spatial_attention_forward(
    qkv: Tensor, num_heads: int, scale: float, save_lse: bool
) -> tuple[Tensor, Tensor]:
    """out (..., N, H D) and lse (..., H, N), base 2 and in the state dtype; (..., H, 0) unless ``save_lse``."""
    *lead, tokens, channels = qkv.shape
    dtype = state_dtype(qkv.dtype)
    out = torch.empty((*lead, tokens, channels // 3), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((*lead, num_heads, tokens if save_lse else 0), dtype=dtype, device=qkv.device)
    if out.numel() == 0:
        return out, lse
    call = _Frames("forward", framed(qkv), num_heads, scale)
    with on_device_of(qkv):
        launch(
            forward_kernel,
            (call.sequences * call.tiles,),
            {**call.arguments, "out_ptr": out, "lse_ptr": lse if save_lse else None},
            num_warps=call.tile.warps,
        )
    return out, lse


def spatial_attention_backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, scale: float
) -> Tensor:
    """dqkv (..., N, 3 H D), packed as qkv."""
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if dqkv.numel() == 0:
        return dqkv
    dout, out, lse = framed(dout), out.contiguous(), lse.contiguous()
    call = _Frames("backward", framed(qkv), num_heads, scale)
    single = call.tile.resident and call.tile.pieces == (call.tile.block,) and call.tokens <= call.tile.block
    rows = None
    if call.tile.resident and not single:
        rows = lse.new_empty(call.sequences, 2, sum(call.tile.pieces))
    with on_device_of(qkv):
        launch(
            backward_kernel,
            (call.sequences * (1 if single else 2 * call.tiles),),
            {
                **call.arguments,
                **_strides_of("dout", dout),
                "out_ptr": out,
                "dout_ptr": dout,
                "lse_ptr": lse,
                "rows_ptr": rows,
                "dqkv_ptr": dqkv,
                "scale": scale,
            },
            num_warps=call.tile.warps,
        )
    return dqkv


# The order matters: make test compiles the first of those that select the same tile (49 tokens are masked, 64 are not).
_TUNED_TOKENS = (256, 197, 196, 49, 64)
_TUNED_WIDTHS = (128, 64, 32)


def variants(arch: str) -> Iterator[Variant]:
    """The kernels that ``tile`` selects on an architecture: head widths, tokens and dtypes, both schedules.

    Where the tile depends neither on tokens nor on widths below 64 (chunked, float32), few stand for all.
    """
    shapes = [
        (tokens, width, torch.bfloat16, "serial") for tokens in _TUNED_TOKENS for width in _TUNED_WIDTHS
    ]
    shapes += [(196, 64, torch.bfloat16, "chunked"), (197, 128, torch.bfloat16, "chunked")]
    shapes += [(196, 64, torch.float32, "chunked"), (196, 128, torch.float32, "chunked")]
    for tokens, head_dim, dtype, schedule in shapes:
        with recording(arch) as launches, _schedule.force(schedule):
            qkv = torch.empty((2, 8, tokens, 3 * 8 * head_dim), dtype=dtype, device="meta")
            out, lse = spatial_attention_forward(qkv, 8, head_dim**-0.5, True)
            spatial_attention_backward(out, qkv, out, lse, 8, head_dim**-0.5)
        for recorded in launches:
            name = recorded.kernel.__name__.removesuffix("_kernel")
            kind = str(dtype).removeprefix("torch.")
            yield variant_of(f"{name}-{kind}-{tokens}x{head_dim}-{schedule}", recorded)
