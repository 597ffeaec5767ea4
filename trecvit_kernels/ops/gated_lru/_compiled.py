"""Allocates, describes the tensors and calls the launchers of csrc/gated_lru/: cpu.cpp or the CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._compiled import DTYPE_CODES, Machine, dense, empty, pointer, readable, view
from trecvit_kernels.ops._dtypes import state_dtype


def launch_arguments(
    machine: Machine,
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    v: Tensor | None,
    parameters: Sequence[Tensor | None],
    h0: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    normalizer: str,
    states: Tensor | None,
) -> tuple[Any, ...]:
    """The leading arguments of both launchers. ``parameters``: a_param, a_imag and the gates' biases, in the state
    dtype; tensors are ``readable``, states and parameters dense."""
    batch, frames, channels = x.shape[0], x.shape[1], gate_x.shape[-1]
    rows = gate_x[0, 0].numel() // channels
    schedule = machine.schedule(gate_x, rows * channels)
    return (
        DTYPE_CODES[x.dtype],
        parameters[1] is not None,
        normalizer == "convex",
        batch,
        frames,
        rows,
        channels,
        *schedule,
        view(x),
        view(gate_x),
        view(gate_a),
        None if v is None else view(v),
        *(pointer(p) for p in parameters),
        pointer(h0),
        pointer(reset),
        starts,
        pointer(states),
    )


def forward(
    machine: Machine,
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
    y = empty(x.shape, x.dtype, x.device)
    h_last = empty((x.shape[0], *x.shape[2:]), dtype, x.device)
    saved = _schedule.saved_states(x.shape[1]) if save_states else 0
    states = empty((x.shape[0], saved, *x.shape[2:]), dtype, x.device)
    if y.numel() == 0:
        return y, h_last, states
    x, gate_x, gate_a = readable(x), readable(gate_x), readable(gate_a)
    parameters = (dense(a_param, dtype), dense(a_imag, dtype), None, None)
    h0, reset = dense(h0, dtype), dense(reset, torch.bool)
    args = launch_arguments(
        machine,
        x,
        gate_x,
        gate_a,
        None,
        parameters,
        h0,
        reset,
        starts,
        normalizer,
        states if saved else None,
    )
    machine.run("gated_lru_forward", x.device, *args, view(y), pointer(h_last))
    return y, h_last, states


def backward(
    machine: Machine,
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
    dx, dgate_x, dgate_a = (empty(t.shape, x.dtype, x.device) for t in (x, gate_x, gate_a))
    da_param = torch.zeros(a_param.shape, dtype=dtype, device=x.device)
    da_imag = torch.zeros(0 if a_imag is None else a_imag.shape, dtype=dtype, device=x.device)
    dh0 = empty((x.shape[0], *x.shape[2:]), dtype, x.device)
    if x.numel() == 0:
        return dx, dgate_x, dgate_a, da_param, da_imag, dh0
    dy, x, gate_x, gate_a = readable(dy), readable(x), readable(gate_x), readable(gate_a)
    parameters = (dense(a_param, dtype), dense(a_imag, dtype), None, None)
    h0, reset, dh_last = dense(h0, dtype), dense(reset, torch.bool), dh_last.contiguous()
    args = launch_arguments(
        machine,
        x,
        gate_x,
        gate_a,
        None,
        parameters,
        h0,
        reset,
        starts,
        normalizer,
        states,
    )
    machine.run(
        "gated_lru_backward",
        x.device,
        *args,
        view(dy),
        view(dx),
        view(dgate_x),
        view(dgate_a),
        None,
        pointer(dh_last),
        pointer(dh0),
        pointer(da_param),
        0 if a_imag is None else pointer(da_imag),
        0,
        0,
    )
    return dx, dgate_x, dgate_a, da_param, da_imag, dh0
