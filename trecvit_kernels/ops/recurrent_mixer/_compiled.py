"""Convolution and recurrence by the launchers of csrc/, the gates' matrix products by PyTorch.

The gates' pre-activations are the only temporaries besides the convolution's output: the biases are added and the
output gate is applied inside the recurrence, and the backward pass writes the gates' gradients over them. That makes
all three anew, or takes over those of ``again``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._compiled import DTYPE_CODES, Machine, View, dense, empty, pointer, readable, view
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops.block_diagonal.native import add_input_gradient, product, weight_gradient
from trecvit_kernels.ops.gated_lru._compiled import launch_arguments


def forward(
    machine: Machine,
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    tail: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, h_last and the saved states (B, saved, *lanes, C)."""
    dtype = state_dtype(u.dtype)
    z = empty(u.shape, u.dtype, u.device)
    h_last = empty((u.shape[0], *u.shape[2:]), dtype, u.device)
    saved = _schedule.saved_states(u.shape[1]) if save_states else 0
    states = empty((u.shape[0], saved, *u.shape[2:]), dtype, u.device)
    if z.numel() == 0:
        return z, h_last, states
    gates = _gates(machine, u, conv_weight, conv_bias, gate_x_weight, gate_a_weight, tail, reset)
    parameters = (a_param, a_imag, gate_x_bias, gate_a_bias)
    _recurrence(machine, gates, v, parameters, h0, reset, starts, states if saved else None, z, h_last)
    return z, h_last, states


def again(
    machine: Machine,
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    tail: Tensor | None,
    reset: Tensor | None,
    starts: bool,
) -> tuple[Tensor, ...]:
    """z of ``forward``, bit for bit, and what ``backward_from`` takes over: x and the gates' pre-activations."""
    z = empty(u.shape, u.dtype, u.device)
    h_last = empty((u.shape[0], *u.shape[2:]), state_dtype(u.dtype), u.device)
    gates = _gates(machine, u, conv_weight, conv_bias, gate_x_weight, gate_a_weight, tail, reset)
    if z.numel() != 0:
        parameters = (a_param, a_imag, gate_x_bias, gate_a_bias)
        _recurrence(machine, gates, v, parameters, h0, reset, starts, None, z, h_last)
    return z, *gates


def backward(machine: Machine, *inputs: Any) -> tuple[Tensor, ...]:
    """Gradients of u, v, the parameters (state dtype; a_imag's empty if real), h0 and tail."""
    _, _, u, _, conv_weight, conv_bias, gate_x_weight, _, gate_a_weight, *_, tail, reset, _, _ = inputs
    gates = _gates(machine, u, conv_weight, conv_bias, gate_x_weight, gate_a_weight, tail, reset)
    everything: tuple[Any, ...] = (*inputs, *gates)
    return backward_from(machine, *everything)


def backward_from(
    machine: Machine,
    dz: Tensor,
    dh_last: Tensor,
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    tail: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    states: Tensor,
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
) -> tuple[Tensor, ...]:
    """``backward`` with x, gate_x and gate_a of ``again``; the latter two are overwritten."""
    dtype = state_dtype(u.dtype)
    du, dv, dh0 = (
        empty(u.shape, u.dtype, u.device),
        empty(v.shape, v.dtype, u.device),
        empty(dh_last.shape, dtype, u.device),
    )
    dtail = torch.zeros((u.shape[0], conv_weight.shape[0] - 1, *u.shape[2:]), dtype=u.dtype, device=u.device)
    dconv_weight, dconv_bias, dgate_x_bias, dgate_a_bias, da_param = (
        torch.zeros(p.shape, dtype=dtype, device=u.device)
        for p in (conv_weight, conv_bias, gate_x_bias, gate_a_bias, a_param)
    )
    da_imag = torch.zeros(0 if a_imag is None else a_imag.shape, dtype=dtype, device=u.device)
    if u.numel() == 0:
        dgate_x_weight, dgate_a_weight = (
            torch.zeros(w.shape, dtype=dtype, device=u.device) for w in (gate_x_weight, gate_a_weight)
        )
    else:
        dz, u, v, reset = readable(dz), readable(u), readable(v), dense(reset, torch.bool)
        parameters = tuple(dense(p, dtype) for p in (a_param, a_imag, gate_x_bias, gate_a_bias))
        h0, dh_last = dense(h0, dtype), dh_last.contiguous()
        dx = torch.empty_like(x)
        machine.run(
            "gated_lru_backward",
            u.device,
            *launch_arguments(machine, x, gate_x, gate_a, v, parameters, h0, reset, starts, "sqrt", states),
            view(dz),
            view(dx),
            view(gate_x),  # the gates' gradients take the place of their pre-activations
            view(gate_a),
            view(dv),
            pointer(dh_last),
            pointer(dh0),
            pointer(da_param),
            0 if a_imag is None else pointer(da_imag),
            pointer(dgate_x_bias),
            pointer(dgate_a_bias),
        )
        add_input_gradient(gate_x, gate_x_weight, dx)
        add_input_gradient(gate_a, gate_a_weight, dx)
        heads = gate_x_weight.shape[0]
        dgate_x_weight = weight_gradient(x, gate_x, heads).to(dtype)
        dgate_a_weight = weight_gradient(x, gate_a, heads).to(dtype)
        conv = _conv_arguments(machine, u, tail, conv_weight, conv_bias, reset)
        machine.run(
            "causal_conv_backward",
            u.device,
            *conv.values,
            view(dx),
            view(du),
            None if tail is None or dtail.numel() == 0 else view(dtail),
            pointer(dconv_weight),
            pointer(dconv_bias),
        )
    return (
        du,
        dv,
        dconv_weight,
        dconv_bias,
        dgate_x_weight,
        dgate_x_bias,
        dgate_a_weight,
        dgate_a_bias,
        da_param,
        da_imag,
        dh0,
        dtail,
    )


def _gates(
    machine: Machine,
    u: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_a_weight: Tensor,
    tail: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x, the convolution's output, and the pre-activations of both gates without their biases."""
    x = _conv(machine, readable(u), tail, conv_weight, conv_bias, dense(reset, torch.bool))
    return x, product(x, gate_x_weight), product(x, gate_a_weight)


def _recurrence(
    machine: Machine,
    gates: tuple[Tensor, Tensor, Tensor],
    v: Tensor,
    parameters: Sequence[Tensor | None],
    h0: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    states: Tensor | None,
    z: Tensor,
    h_last: Tensor,
) -> None:
    """Gated LRU and output gate into z, h_last and, if given, states. parameters: a_param, a_imag, gates' biases."""
    v, reset, h0 = readable(v), dense(reset, torch.bool), dense(h0, h_last.dtype)
    parameters = tuple(dense(p, h_last.dtype) for p in parameters)
    args = launch_arguments(machine, *gates, v, parameters, h0, reset, starts, "sqrt", states)
    machine.run("gated_lru_forward", z.device, *args, view(z), pointer(h_last))


class _ConvArguments(NamedTuple):
    """Arguments for a launcher, and the tensors that must live as long as it runs."""

    values: tuple[int | View | None, ...]
    kept: tuple[Tensor | None, ...]


def _conv(
    machine: Machine, u: Tensor, tail: Tensor | None, weight: Tensor, bias: Tensor, reset: Tensor | None
) -> Tensor:
    y = empty(u.shape, u.dtype, u.device)
    if u.numel() == 0:
        return y
    arguments = _conv_arguments(machine, u, tail, weight, bias, reset)
    machine.run("causal_conv_forward", u.device, *arguments.values, view(y))
    return y


def _conv_arguments(
    machine: Machine, u: Tensor, tail: Tensor | None, weight: Tensor, bias: Tensor, reset: Tensor | None
) -> _ConvArguments:
    """The leading arguments of the convolution's launchers."""
    dtype = state_dtype(u.dtype)
    weight, bias = weight.to(dtype).contiguous(), bias.to(dtype).contiguous()
    tail = None if tail is None or tail.numel() == 0 else readable(tail)
    channels = u.shape[-1]
    return _ConvArguments(
        (
            DTYPE_CODES[u.dtype],
            u.shape[0],
            u.shape[1],
            u[0, 0].numel() // channels,
            channels,
            weight.shape[0],
            machine.threads(u.numel()),
            view(u),
            None if tail is None else view(tail),
            pointer(weight),
            pointer(bias),
            pointer(reset),
        ),
        (weight, bias, tail),
    )
