"""Native CPU backend: allocates, describes the tensors and calls csrc/linear_scan/cpu.cpp."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trecvit_kernels import _native
from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._native import DTYPE_CODES, View, dense, empty, pointer, readable, threads, view


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
    a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, states: Tensor | None
) -> tuple[Any, ...]:
    batch, frames, lanes = a.shape[0], a.shape[1], a.shape[-1]
    rows = a[0, 0].numel() // lanes
    workers = threads(a.numel())
    return (
        DTYPE_CODES[a.dtype],
        batch,
        frames,
        rows,
        lanes,
        _schedule.FRAMES_PER_STATE,
        _schedule.segments(batch, rows * lanes, frames, workers),
        workers,
        _walked(a, reverse),
        _walked(b, reverse),
        pointer(h0),
        pointer(states),
    )


def linear_scan_forward(
    a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h, h_last and the saved states (B, saved, *lanes)."""
    dtype = state_dtype(b.dtype)
    h = empty(b.shape, dtype=b.dtype)
    h_last = empty((b.shape[0], *b.shape[2:]), dtype=dtype)
    saved = _schedule.saved_states(b.shape[1]) if save_states else 0
    states = empty((b.shape[0], saved, *b.shape[2:]), dtype=dtype)
    if h.numel():
        a, b, h0 = readable(_with_lanes(a)), readable(_with_lanes(b)), dense(h0, dtype)
        args = _launch_arguments(a, b, h0, reverse, states if saved else None)
        _native.linear_scan_forward(*args, _walked(_with_lanes(h), reverse), pointer(h_last))
    return h, h_last, states


def linear_scan_backward(
    dh: Tensor, dh_last: Tensor, a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool, states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0."""
    da, db = empty(a.shape, dtype=a.dtype), empty(b.shape, dtype=b.dtype)
    dh0 = empty(dh_last.shape, dtype=dh_last.dtype)
    if da.numel():
        dh, a, b = (readable(_with_lanes(t)) for t in (dh, a, b))
        h0, dh_last = dense(h0, dh_last.dtype), dh_last.resolve_conj().contiguous()
        _native.linear_scan_backward(
            *_launch_arguments(a, b, h0, reverse, states),
            _walked(dh, reverse),
            _walked(_with_lanes(da), reverse),
            _walked(_with_lanes(db), reverse),
            pointer(dh_last),
            pointer(dh0),
        )
    return da, db, dh0
