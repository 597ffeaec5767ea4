"""Triton backend: allocates, chooses tiles and launches ``_triton_kernels``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._schedule import FRAMES_PER_STATE
from trecvit_kernels.ops._triton import (
    Tile,
    Variant,
    Walk,
    interpreting,
    on_device_of,
    recording,
    strides_of,
    variant_of,
)
from trecvit_kernels.ops._triton_kernels import scan_carries, sum_rows
from trecvit_kernels.ops._views import dense, readable
from trecvit_kernels.ops.gated_lru._triton_backward import backward_kernel, summarise_backward_kernel
from trecvit_kernels.ops.gated_lru._triton_kernels import forward_kernel

# Before 3.7 the rows of a tile of 8 frames do not become registers: kilobytes a thread are spilled. The summary of
# segments with resets spills 16 bytes with 2 frames.
_OLD_TRITON = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)


def tile(dtype: torch.dtype, is_complex: bool, kernel: str, frames: int, resets: bool = False) -> Tile:
    """Launch parameters, from registers and spills of ahead-of-time builds (docs/kernels.md); not measured."""
    most = 1 << (frames - 1).bit_length()  # no more frames than there are
    if interpreting():
        return Tile(32, min(8, most), 1)
    narrow = dtype.itemsize == 2
    if kernel == "backward" and _OLD_TRITON:
        return Tile(1, min(2 if is_complex else 4, most), 2)
    if kernel == "forward summary" and _OLD_TRITON and narrow and not is_complex and resets:
        return Tile(4, 1, 2)
    if kernel == "backward":
        return Tile(2 if narrow and not is_complex and not resets else 1, min(8, most), 2)
    return Tile(2 if is_complex else 4, min(2, most), 2)


def _setting(
    x: Tensor,
    gate_x: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    kernel: str,
) -> tuple[Walk, dict[str, Any]]:
    """How to walk, and what all kernels are told about the parameters and resets."""
    assert not (starts and reset is not None)
    chosen = tile(x.dtype, a_imag is not None, kernel, x.shape[1], reset is not None)
    walk = Walk(x, gate_x[0, 0].numel(), gate_x.shape[-1], chosen)
    return walk, {
        "a_param_ptr": a_param.contiguous(),
        "a_imag_ptr": None if a_imag is None else a_imag.contiguous(),
        "reset_ptr": None if reset is None else reset.contiguous().view(torch.uint8),
        "STARTS": starts,
    }


def _launch(walk: Walk, kernel: Any, arguments: dict[str, Any], own: Tile | None = None) -> None:
    """Adds how a thread's lanes lie in memory, and whether a row may lie too far for 32-bit offsets."""
    chosen = own or walk.tile
    rows = walk.lanes // walk.channels
    farthest = max(step for name, step in arguments.items() if name.endswith("_stride_r"))
    flags = {
        "MASKED": walk.masked(chosen),
        "VECTOR": chosen.vector if walk.channels % 16 == 0 else 0,
        "WIDE": rows * max(farthest, 2 * walk.channels) >= 2**31,
    }
    walk.launch(kernel, arguments | flags, chosen)


def gated_lru_forward(
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    normalizer: str,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_last and the saved states (B, saved, *lanes, C)."""
    dtype = state_dtype(x.dtype)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h_last = torch.empty((x.shape[0], *x.shape[2:]), dtype=dtype, device=x.device)
    saved = _schedule.saved_states(x.shape[1]) if save_states else 0
    states = torch.empty((x.shape[0], saved, *x.shape[2:]), dtype=dtype, device=x.device)
    if y.numel() == 0:
        return y, h_last, states
    x, gate_x, gate_a, h0 = readable(x), readable(gate_x), readable(gate_a), dense(h0, dtype)
    walk, shared = _setting(x, gate_x, a_param, a_imag, reset, starts, "forward")
    shared |= {"x_ptr": x, "gate_x_ptr": gate_x, "gate_a_ptr": gate_a, "CONVEX": normalizer == "convex"}
    shared |= strides_of(x=x, gate_x=gate_x, gate_a=gate_a) | {"FRAMES_PER_STATE": FRAMES_PER_STATE}
    is_complex = a_imag is not None
    with on_device_of(x):
        start = h0
        if walk.segments > 1:
            ends, products = walk.summaries(h_last, 2 if is_complex else 1)
            summary = {"y_ptr": None, "h_last_ptr": ends, "states_ptr": None, "product_ptr": products}
            _launch(
                walk,
                forward_kernel,
                {**shared, **summary, "start_ptr": None, "SUMMARY": True},
                tile(x.dtype, is_complex, "forward summary", walk.frames, reset is not None),
            )
            scan_carries(ends, products, h0, channels=walk.channels, is_complex=is_complex, resets=True)
            start = ends
        results = {
            "y_ptr": y,
            "h_last_ptr": h_last,
            "states_ptr": states if saved else None,
            "product_ptr": None,
        }
        _launch(walk, forward_kernel, {**shared, **results, "start_ptr": start, "SUMMARY": False})
    return y, h_last, states


def gated_lru_backward(
    dy: Tensor,
    dh_last: Tensor,
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    normalizer: str,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate_x, gate_a, a_param, a_imag (empty if real) and h0."""
    dtype = state_dtype(x.dtype)
    dx, dgate_x, dgate_a = (torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in (x, gate_x, gate_a))
    da_param = torch.zeros(a_param.shape, dtype=dtype, device=x.device)
    da_imag = torch.zeros(0 if a_imag is None else a_imag.shape, dtype=dtype, device=x.device)
    dh0 = torch.empty((x.shape[0], *x.shape[2:]), dtype=dtype, device=x.device)
    if x.numel() == 0:
        return dx, dgate_x, dgate_a, da_param, da_imag, dh0
    dy, x, gate_x, gate_a = readable(dy), readable(x), readable(gate_x), readable(gate_a)
    walk, shared = _setting(x, gate_x, a_param, a_imag, reset, starts, "backward")
    shared |= {"dy_ptr": dy, "gate_a_ptr": gate_a, **strides_of(dy=dy, gate_a=gate_a)}
    is_complex = a_imag is not None
    carry: Tensor = dh_last.contiguous()
    sums = torch.empty(
        (2 if is_complex else 1, x.shape[0] * walk.segments * walk.lanes // walk.channels, walk.channels),
        dtype=dtype,
        device=x.device,
    )
    with on_device_of(x):
        if walk.segments > 1:
            ends, products = walk.summaries(dh0, 2 if is_complex else 1)
            summary = {"end_ptr": ends, "product_ptr": products}
            _launch(
                walk,
                summarise_backward_kernel,
                {**shared, **summary},
                tile(x.dtype, is_complex, "summary", walk.frames),
            )
            scan_carries(ends, products, carry, channels=walk.channels, is_complex=is_complex, resets=True)
            carry = ends
        more = {
            "x_ptr": x,
            "gate_x_ptr": gate_x,
            "h0_ptr": dense(h0, dtype),
            "states_ptr": states,
            "carry_ptr": carry,
            "dx_ptr": dx,
            "dgate_x_ptr": dgate_x,
            "dgate_a_ptr": dgate_a,
            "dh0_ptr": dh0,
            "sums_ptr": sums,
            "CONVEX": normalizer == "convex",
            "FRAMES_PER_STATE": FRAMES_PER_STATE,
        }
        _launch(walk, backward_kernel, {**shared, **more, **strides_of(x=x, gate_x=gate_x)})
        sum_rows(sums, (da_param, da_imag) if is_complex else (da_param,), a_param.contiguous())
    return dx, dgate_x, dgate_a, da_param, da_imag, dh0


def variants(arch: str) -> Iterator[Variant]:
    """The kernels that ``tile`` can select on an architecture: dtypes, real and complex, both schedules."""
    for dtype in (torch.bfloat16, torch.float32):
        for kind, gates in (("real", 64), ("complex", 32)):
            for schedule in _schedule.SCHEDULES:
                with recording(arch) as launches, _schedule.force(schedule):
                    _launch_all(dtype, gates, reset=schedule == "chunked")
                for recorded in launches:
                    name = f"{recorded.kernel.__name__}-{kind}-{str(dtype).removeprefix('torch.')}-{schedule}"
                    yield variant_of(name, recorded)


def _launch_all(dtype: torch.dtype, gates: int, reset: bool) -> None:
    """Forward and backward on meta tensors; without a mask of resets the first frame resets."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, gate = empty(2, 64, 16, 64, dtype=dtype), empty(2, 64, 16, gates, dtype=dtype)
    state, parameter = empty(2, 16, 64, dtype=state_dtype(dtype)), empty(gates, dtype=torch.float32)
    inputs = (x, gate, gate, parameter, parameter if gates < 64 else None, state if reset else None)
    settings = (empty(2, 64, dtype=torch.bool) if reset else None, not reset, "sqrt")
    *_, states = gated_lru_forward(*inputs, *settings, True)
    gated_lru_backward(x, state, *inputs, *settings, states)
