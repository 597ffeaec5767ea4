"""Allocates, describes the tensors and calls the launchers of csrc/linear_scan/: cpu.cpp or the CUDA kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._compiled import DTYPE_CODES, Machine, View, dense, empty, pointer, readable, view
from trecvit_kernels.ops._dtypes import state_dtype


def _with_lanes(x: Tensor) -> Tensor:
    """(B, T) as (B, T, 1), resolved conjugates; everything else as it is."""
    x = x.resolve_conj().resolve_neg()
    return x.unsqueeze(-1) if x.ndim == 2 else x


def _walked(x: Tensor, reverse: bool) -> View:
    """The view of ``x``; of its frames from last to first if ``reverse``."""
    address, batch_stride, frame_stride, row_stride = view(x)
    if reverse:
        address += (x.shape[1] - 1) * frame_stride * x.element_size()
        frame_stride = -frame_stride
    return address, batch_stride, frame_stride, row_stride


def _launch_arguments(
    machine: Machine, a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, states: Tensor | None
) -> tuple[Any, ...]:
    batch, frames, lanes = a.shape[0], a.shape[1], a.shape[-1]
    rows = a[0, 0].numel() // lanes
    return (
        DTYPE_CODES[a.dtype],
        batch,
        frames,
        rows,
        lanes,
        *machine.schedule(a, rows * lanes),
        _walked(a, reverse),
        _walked(b, reverse),
        pointer(h0),
        pointer(states),
    )


def forward(
    machine: Machine, a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h, h_last and the saved states (B, saved, *lanes)."""
    dtype = state_dtype(b.dtype)
    h = empty(b.shape, b.dtype, b.device)
    h_last = empty((b.shape[0], *b.shape[2:]), dtype, b.device)
    saved = _schedule.saved_states(b.shape[1]) if save_states else 0
    states = empty((b.shape[0], saved, *b.shape[2:]), dtype, b.device)
    if h.numel():
        a, b, h0 = readable(_with_lanes(a)), readable(_with_lanes(b)), dense(h0, dtype)
        args = _launch_arguments(machine, a, b, h0, reverse, states if saved else None)
        machine.run("linear_scan_forward", a.device, *args, _walked(_with_lanes(h), reverse), pointer(h_last))
    return h, h_last, states


def backward(
    machine: Machine,
    dh: Tensor,
    dh_last: Tensor,
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    reverse: bool,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0."""
    da, db = empty(a.shape, a.dtype, a.device), empty(b.shape, b.dtype, b.device)
    dh0 = empty(dh_last.shape, dh_last.dtype, a.device)
    if da.numel():
        dh, a, b = (readable(_with_lanes(t)) for t in (dh, a, b))
        h0, dh_last = dense(h0, dh_last.dtype), dh_last.resolve_conj().contiguous()
        machine.run(
            "linear_scan_backward",
            a.device,
            *_launch_arguments(machine, a, b, h0, reverse, states),
            _walked(dh, reverse),
            _walked(_with_lanes(da), reverse),
            _walked(_with_lanes(db), reverse),
            pointer(dh_last),
            pointer(dh0),
        )
    return da, db, dh0
