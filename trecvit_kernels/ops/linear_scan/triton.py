"""Triton backend: allocates, chooses tiles and launches ``_triton_kernels``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
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
    strides,
    strides_of,
    variant_of,
)
from trecvit_kernels.ops._triton_kernels import scan_carries
from trecvit_kernels.ops._views import dense, readable
from trecvit_kernels.ops.linear_scan._triton_kernels import (
    backward_kernel,
    forward_kernel,
    summarise_backward_kernel,
)


def tile(dtype: torch.dtype, direction: str) -> Tile:
    """Launch parameters, from registers and spills of ahead-of-time builds (docs/kernels.md); not measured."""
    if interpreting():
        return Tile(32, 16 if direction == "backward" else 4, 1)
    wide = torch.empty(0, dtype=dtype).element_size() >= 8
    if direction == "forward":
        return Tile(2, 2, 2) if wide else Tile(4, 4, 2)
    return Tile(1, 16, 2) if wide else Tile(2, 16, 2)


def _walk(tensors: tuple[Tensor, ...], direction: str) -> Walk:
    a = tensors[0]
    lanes = a[0, 0].numel()
    # Rows that follow each other in memory in every tensor are one long row.
    joins = all(strides(t)[2] == t.shape[-1] for t in tensors)
    return Walk(a, lanes, lanes if joins else a.shape[-1], tile(a.dtype, direction))


def _with_lanes(x: Tensor) -> Tensor:
    """Readable, conjugates resolved, (B, T) as (B, T, 1)."""
    x = x.resolve_conj().resolve_neg()
    return readable(x.unsqueeze(-1) if x.ndim == 2 else x)


def _real(x: Tensor | None) -> Tensor | None:
    return torch.view_as_real(x) if x is not None and x.is_complex() else x


def linear_scan_forward(
    a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h, h_last and the saved states (B, saved, *lanes)."""
    dtype = state_dtype(b.dtype)
    h = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    h_last = torch.empty((b.shape[0], *b.shape[2:]), dtype=dtype, device=b.device)
    saved = _schedule.saved_states(b.shape[1]) if save_states else 0
    states = torch.empty((b.shape[0], saved, *b.shape[2:]), dtype=dtype, device=b.device)
    if not h.numel():
        return h, h_last, states
    a, b, h0 = _with_lanes(a), _with_lanes(b), _real(dense(h0, dtype))
    walk = _walk((a, b), "forward")
    parts = 2 if a.is_complex() else 1
    shared: dict[str, Any] = {
        "a_ptr": _real(a),
        "b_ptr": _real(b),
        "REVERSE": reverse,
        "COMPLEX": a.is_complex(),
    }
    shared |= strides_of(a=a, b=b) | {"FRAMES_PER_STATE": FRAMES_PER_STATE}
    with on_device_of(a):
        start = h0
        if walk.segments > 1:
            ends, products = walk.summaries(h_last, parts)
            summary = {"h_ptr": None, "h_last_ptr": ends, "states_ptr": None, "product_ptr": products}
            walk.launch(forward_kernel, {**shared, **summary, "start_ptr": None, "SUMMARY": True})
            scan_carries(ends, products, h0, channels=1, is_complex=a.is_complex(), resets=False)
            start = ends
        results = {
            "h_ptr": _real(h),
            "h_last_ptr": _real(h_last),
            "states_ptr": _real(states) if saved else None,
            "product_ptr": None,
        }
        walk.launch(forward_kernel, {**shared, **results, "start_ptr": start, "SUMMARY": False})
    return h, h_last, states


def linear_scan_backward(
    dh: Tensor, dh_last: Tensor, a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0."""
    da, db = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (a, b))
    dh0 = torch.empty(dh_last.shape, dtype=dh_last.dtype, device=dh_last.device)
    if not da.numel():
        return da, db, dh0
    dh, a, b = _with_lanes(dh), _with_lanes(a), _with_lanes(b)
    h0, carry = _real(dense(h0, dh_last.dtype)), _real(dense(dh_last, dh_last.dtype))
    walk = _walk((a, b, dh), "backward")
    shared: dict[str, Any] = {
        "dh_ptr": _real(dh),
        "a_ptr": _real(a),
        "REVERSE": reverse,
        "COMPLEX": a.is_complex(),
    }
    shared |= strides_of(dh=dh, a=a)
    with on_device_of(a):
        if walk.segments > 1:
            ends, products = walk.summaries(dh0, 2 if a.is_complex() else 1)
            walk.launch(summarise_backward_kernel, {**shared, "end_ptr": ends, "product_ptr": products})
            scan_carries(ends, products, carry, channels=1, is_complex=a.is_complex(), resets=False)
            carry = ends
        more = {
            "b_ptr": _real(b),
            "h0_ptr": h0,
            "states_ptr": _real(states),
            "carry_ptr": carry,
            "da_ptr": _real(da),
            "db_ptr": _real(db),
            "dh0_ptr": _real(dh0),
            "FRAMES_PER_STATE": FRAMES_PER_STATE,
        }
        walk.launch(backward_kernel, {**shared, **more, **strides_of(b=b)})
    return da, db, dh0


def variants(arch: str) -> Iterator[Variant]:
    """The kernels that ``tile`` can select on an architecture: dtypes x schedules, forward and backward."""
    for dtype in (torch.bfloat16, torch.float32, torch.complex64):
        for schedule in _schedule.SCHEDULES:
            with recording(arch) as launches, _schedule.force(schedule):
                a, state = (
                    torch.empty(s, dtype=t, device="meta")
                    for s, t in (((2, 64, 16, 64), dtype), ((2, 16, 64), state_dtype(dtype)))
                )
                *_, states = linear_scan_forward(a, a, state, False, True)
                linear_scan_backward(a, state, a, a, state, False, states)
            for recorded in launches:
                name = f"{recorded.kernel.__name__}-{str(dtype).removeprefix('torch.')}-{schedule}"
                yield variant_of(name, recorded)
