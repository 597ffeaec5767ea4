"""Everything between the linear layers of TRecViT's recurrent block, as one op."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_frames, check_like, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import REAL, state_dtype
from trecvit_kernels.ops._recipe import Recipe
from trecvit_kernels.ops._schedule import FRAMES_PER_STATE, saved_states
from trecvit_kernels.ops.gated_lru.op import FLOPS_COMPLEX, FLOPS_REAL
from trecvit_kernels.ops.gated_lru.reference import first_step_resets
from trecvit_kernels.ops.recurrent_mixer import reference

NAME = "recurrent_mixer"
BACKENDS = ("reference", "native", "triton", "cuda")
# Those that materialise the convolution's output and the gates, so that the backward pass can take them over.
_HAND_OVER = ("native", "cuda")


def recurrent_mixer(
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None = None,
    *,
    state: tuple[Tensor, Tensor] | None = None,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""Causal convolution, block-diagonal gates, gated LRU and output gate of a recurrent block (Griffin, TRecViT)::

        x = causal_conv1d(u)                                  depthwise, over time
        y = gated_lru(x, x W_x + b_x, x W_a + b_a, ...)       W block-diagonal, one block per head
        z = y * gelu_tanh(v)

    Args:
        u, v: (B, T, \*lanes, C), one dtype: float32, bfloat16, float16 or float64. In TRecViT lanes = N tokens.
        conv_weight: (K, C), last tap = current frame. conv_bias: (C).
        gate_x_weight, gate_a_weight: (H, C/H, C/H); complex: (H, C/H, C/2/H), each head reads a contiguous
            slice of the merged vector. gate_x_bias, gate_a_bias: (H, C/H) or (H, C/2/H).
        a_param, a_imag: as in ``gated_lru``.
        state: (h, tail) from a former call: h (B, \*lanes, C) in the state dtype, tail (B, K-1, \*lanes, C), the last
            frames of u, oldest first. None starts a sequence, unless ``reset`` is given.
        reset: bool (B, T), as in ``gated_lru``; the convolution does not read across a reset either.
        backend: ``"reference"``, ``"native"``, ``"triton"``, ``"cuda"`` or None (see ``trecvit_kernels.backends``).

    Returns:
        z like ``u`` and the state after the last frame. In the tail, frames before the last reset are zero. All
        floating inputs, the state too, have gradients through both.

    Parameters may have another floating dtype than u: the gate weights are cast to the dtype of u for the matrix
    products, all else is used in the state dtype. Under autocast u and v are cast to the autocast dtype.
    u and v are read in place if C is contiguous and lanes collapse to one stride; others are copied first.

    Raises:
        TypeError: not a tensor, or a dtype that does not fit.
        ValueError: a shape, device or ``backend`` that does not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    parameters = (
        conv_weight,
        conv_bias,
        gate_x_weight,
        gate_x_bias,
        gate_a_weight,
        gate_a_bias,
        a_param,
        a_imag,
    )
    _check(u, v, *parameters, state, reset)
    u, v = _registration.autocast(u.device.type, u, v)
    backend = backends.select(NAME, backend, u.device.type, BACKENDS)
    if backend == "reference":
        return reference.recurrent_mixer(u, v, *parameters, state=state, reset=reset)
    h0, tail = (None, None) if state is None else state
    if tail is not None:
        tail = tail.to(u.dtype)
    tensors = (u, v, *parameters, h0, tail, reset)
    recorded = _registration.needs_autograd(*tensors)
    if backend == "cuda" and u.shape[1] == 1 and not recorded:
        z, h_last, new_tail = _step(*tensors, first_step_resets(reset, h0), backend)
        return z, (h_last, new_tail)
    z, h_last = _mix(tensors, first_step_resets(reset, h0), recorded, backend)
    return z, (h_last, _new_tail(u, tail, reset, conv_weight.shape[0]))


def recipe(z: Tensor, *tensors: Tensor | None) -> Recipe | None:
    """How to make z, the output of a call that was recorded, again from its inputs.

    Args:
        tensors: u, v, the eight parameters, h and tail (None and None without a state) and reset of that call.
    """
    backend = backends.select(NAME, None, z.device.type, BACKENDS)
    if backend == "reference":  # keeps what it computes on the way, z too
        return None
    return Recipe(z, partial(_mixed_again, backend=backend, node=z.grad_fn), tensors)


def _mixed_again(*tensors: Any, backend: str, node: Any) -> Tensor:
    """z without the checks and the new state. What its own backward pass, the next to run, would make anew too, it
    leaves with ``node``, the call in autograd's graph."""
    u, v, *parameters, h0, tail, reset = tensors
    u, v = _registration.autocast(u.device.type, u, v)
    tensors = (u, v, *parameters, h0, None if tail is None else tail.to(u.dtype), reset)
    starts, recorded = first_step_resets(reset, h0), _registration.needs_autograd(*tensors)
    if recorded or backend not in _HAND_OVER or u.shape[1] == 1 or not hasattr(node, "handed_over"):
        return _mix(tensors, starts, recorded, backend)[0]
    z, *node.handed_over = _again(*tensors, starts, backend)
    return z


def _mix(tensors: tuple[Any, ...], starts: bool, recorded: bool, backend: str) -> tuple[Tensor, Tensor]:
    """(z, state after the last frame) of u, v, parameters, h0, tail and reset."""
    if recorded:
        z, h_last, _ = _RecurrentMixer.apply(*tensors, starts, backend)
    else:
        z, h_last, _ = _forward(*tensors, starts, False, backend)
    return z, h_last


def _new_tail(u: Tensor, tail: Tensor | None, reset: Tensor | None, taps: int) -> Tensor:
    """The last taps - 1 frames of [tail, u], frames before the last reset zeroed."""
    frames, wanted = u.shape[1], taps - 1
    if frames >= wanted:
        parts = [u[:, frames - wanted :]]
    else:
        if tail is None:
            tail = u.new_zeros(u.shape[0], wanted, *u.shape[2:])
        parts = [tail[:, frames:], u]
    new_tail = _joined(parts)
    if reset is None or wanted == 0:
        return new_tail
    segment = torch.nn.functional.pad(reset.long().cumsum(1), (wanted, 0))
    keep = segment[:, frames:] == segment[:, -1:]
    return torch.where(keep.reshape(*keep.shape, *[1] * (u.ndim - 2)), new_tail, 0)


def _joined(parts: list[Tensor]) -> Tensor:
    """The frames of ``parts`` one after the other, copied. A new tail for every streaming step is the largest
    allocation there: on the CPU it comes from the native backend's memory."""
    first = parts[0]
    plain = torch.compiler.is_compiling() or _registration.needs_autograd(*parts)
    if (
        plain
        or type(first) is not Tensor
        or first.device.type != "cpu"
        or not backends.available()["native"].available
    ):
        return torch.cat(parts, dim=1)
    from trecvit_kernels.ops._memory import empty

    joined = empty((first.shape[0], sum(part.shape[1] for part in parts), *first.shape[2:]), first.dtype)
    at = 0
    for part in parts:
        joined[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    return joined


def _check(
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
    state: tuple[Tensor, Tensor] | None,
    reset: Tensor | None,
) -> None:
    check_tensor(NAME, "u", u, ndim_at_least=3)
    check_dtype(NAME, "u", u, REAL)
    check_frames(NAME, "u", u)
    channels = u.shape[-1]
    dtypes = _registration.dtypes_beside(u.dtype, u.device.type)
    check_like(NAME, "v", v, shape=tuple(u.shape), dtypes=dtypes, device=u.device)
    check_tensor(NAME, "conv_weight", conv_weight, ndim_at_least=1)
    taps = conv_weight.shape[0]
    if taps < 1:
        raise ValueError(
            f"{NAME}: conv_weight must have at least one tap, got shape {tuple(conv_weight.shape)}"
        )
    check_tensor(NAME, "gate_x_weight", gate_x_weight, ndim_at_least=3)
    heads = gate_x_weight.shape[0]
    if heads < 1 or channels % heads:
        raise ValueError(
            f"{NAME}: gate_x_weight must have a number of heads that divides {channels}, got {heads}"
        )
    gates = channels
    if a_imag is not None:
        if channels % 2 or (channels // 2) % heads:
            raise ValueError(
                f"{NAME}: u must have an even number of channels whose half {heads} heads divide when a_imag"
                f" is given, got {channels}"
            )
        gates //= 2
    block, bias = (heads, channels // heads, gates // heads), (heads, gates // heads)
    expected: list[tuple[str, Any, tuple[int, ...]]] = [
        ("conv_weight", conv_weight, (taps, channels)),
        ("conv_bias", conv_bias, (channels,)),
        ("gate_x_weight", gate_x_weight, block),
        ("gate_x_bias", gate_x_bias, bias),
        ("gate_a_weight", gate_a_weight, block),
        ("gate_a_bias", gate_a_bias, bias),
        ("a_param", a_param, (gates,)),
    ]
    if a_imag is not None:
        expected.append(("a_imag", a_imag, (gates,)))
    for name, value, shape in expected:
        check_like(NAME, name, value, shape=shape, dtypes=REAL, device=u.device)
    if state is not None:
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{NAME}: state must be a pair (h, tail), got {type(state).__name__}")
        shape, tail_shape = (u.shape[0], *u.shape[2:]), (u.shape[0], taps - 1, *u.shape[2:])
        check_like(NAME, "state[0]", state[0], shape=shape, dtypes=(state_dtype(u.dtype),), device=u.device)
        check_like(NAME, "state[1]", state[1], shape=tail_shape, dtypes=REAL, device=u.device)
    if reset is not None:
        check_like(NAME, "reset", reset, shape=tuple(u.shape[:2]), dtypes=(torch.bool,), device=u.device)


_INPUTS = (
    "Tensor u, Tensor v, Tensor conv_weight, Tensor conv_bias, Tensor gate_x_weight, Tensor gate_x_bias, "
    "Tensor gate_a_weight, Tensor gate_a_bias, Tensor a_param, Tensor? a_imag, Tensor? h0, Tensor? tail, "
    "Tensor? reset, bool starts"
)
_GRADIENTS = (
    "(Tensor du, Tensor dv, Tensor dconv_weight, Tensor dconv_bias, Tensor dgate_x_weight, Tensor dgate_x_bias, "
    "Tensor dgate_a_weight, Tensor dgate_a_bias, Tensor da_param, Tensor da_imag, Tensor dh0, Tensor dtail)"
)


def frames_per_state(backend: str, is_complex: bool) -> int:
    """One state is saved for so many frames. Triton's backward unrolls them: more would not fit into registers."""
    if backend != "triton":
        return FRAMES_PER_STATE
    return 4 if is_complex else 8


def _fake_forward(u, v, *args):
    *_, a_imag, _h0, _tail, _reset, _starts, save_states, backend = args
    state = u.new_empty((u.shape[0], *u.shape[2:]), dtype=state_dtype(u.dtype))
    saved = saved_states(u.shape[1], frames_per_state(backend, a_imag is not None)) if save_states else 0
    return u.new_empty(u.shape), state, state.new_empty((u.shape[0], saved, *u.shape[2:]))


def _fake_step(u, v, conv_weight, *args):
    z, state, _ = _fake_forward(u, v, conv_weight, *args[:-1], False, args[-1])
    return z, state, u.new_empty((u.shape[0], conv_weight.shape[0] - 1, *u.shape[2:]))


def _fake_backward(dz, dh_last, u, v, conv_weight, *args):
    dtype = state_dtype(u.dtype)
    *parameters, a_imag, _h0, _tail, _reset, _starts, _states, _backend = args
    gradients = [p.new_empty(p.shape, dtype=dtype) for p in (conv_weight, *parameters)]
    da_imag = dh_last.new_empty(a_imag.shape if a_imag is not None else (0,))
    dtail = u.new_empty((u.shape[0], conv_weight.shape[0] - 1, *u.shape[2:]))
    return (
        u.new_empty(u.shape),
        v.new_empty(v.shape),
        *gradients,
        da_imag,
        dh_last.new_empty(dh_last.shape),
        dtail,
    )


def _fake_again(u, v, conv_weight, conv_bias, gate_x_weight, gate_x_bias, *args):
    gates = (*u.shape[:-1], gate_x_bias.numel())
    return u.new_empty(u.shape), u.new_empty(u.shape), u.new_empty(gates), u.new_empty(gates)


def _fake_backward_from(*args):
    *inputs, _x, _gate_x, _gate_a, backend = args
    return _fake_backward(*inputs, backend)


def _flops(u_shape, conv_weight_shape, gate_weight_shape) -> tuple[int, int, int]:
    """Of the gates' products, the convolution (2 per tap), and the gated LRU (as in its room) with GELU gate (8)."""
    heads, width, out = gate_weight_shape
    tokens, channels, lru = torch.Size(u_shape[:-1]).numel(), heads * width, heads * out
    lru *= FLOPS_REAL if width == out else FLOPS_COMPLEX
    return (
        4 * tokens * channels * out,
        2 * tokens * channels * conv_weight_shape[0],
        tokens * (lru + 8 * channels),
    )


def _flops_forward(u, v, conv_weight, conv_bias, gate_weight, *args, **kwargs) -> int:
    return sum(_flops(u, conv_weight, gate_weight))


def _flops_backward(dz, dh_last, u, v, conv_weight, conv_bias, gate_weight, *args, **kwargs) -> int:
    # Everything again, then the products for dx and dW.
    return 3 * sum(_flops(u, conv_weight, gate_weight))


def _flops_backward_from(dz, dh_last, u, v, conv_weight, conv_bias, gate_weight, *args, **kwargs) -> int:
    products, convolution, rest = _flops(u, conv_weight, gate_weight)
    return 2 * products + 2 * convolution + 3 * rest


_forward = _registration.define(
    "recurrent_mixer_forward",
    f"({_INPUTS}, bool save_states, str backend) -> (Tensor z, Tensor h_last, Tensor states)",
    room=__package__,
    fake=_fake_forward,
    flops=_flops_forward,
)
_step = _registration.define(  # one frame, with the tail behind it
    "recurrent_mixer_step",
    f"({_INPUTS}, str backend) -> (Tensor z, Tensor h_last, Tensor tail)",
    room=__package__,
    fake=_fake_step,
    flops=_flops_forward,
)
_backward = _registration.define(
    "recurrent_mixer_backward",
    f"(Tensor dz, Tensor dh_last, {_INPUTS}, Tensor states, str backend) -> {_GRADIENTS}",
    room=__package__,
    fake=_fake_backward,
    flops=_flops_backward,
)
_again = _registration.define(  # z once more, and what _backward_from takes over
    "recurrent_mixer_again",
    f"({_INPUTS}, str backend) -> (Tensor z, Tensor x, Tensor gate_x, Tensor gate_a)",
    room=__package__,
    fake=_fake_again,
    flops=_flops_forward,
)
_backward_from = _registration.define(
    "recurrent_mixer_backward_from",
    f"(Tensor dz, Tensor dh_last, {_INPUTS}, Tensor states, Tensor x, Tensor(a!) gate_x, Tensor(b!) gate_a,"
    f" str backend) -> {_GRADIENTS}",
    room=__package__,
    fake=_fake_backward_from,
    flops=_flops_backward_from,
)


class _RecurrentMixer(torch.autograd.Function):
    """Saves its inputs and one state every few frames; convolution, gates and states are recomputed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args):
        *inputs, backend = args
        return _forward(*inputs, True, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, starts, backend = inputs
        states = output[-1]
        ctx.mark_non_differentiable(states)
        ctx.save_for_backward(*tensors, states)
        ctx.settings = (starts, backend)
        ctx.handed_over = ()  # x and the gates' pre-activations, once ``_mixed_again`` has made them

    @staticmethod
    @_registration.first_derivatives_only
    def backward(ctx: Any, dz: Tensor, dh_last: Tensor, _: Tensor):
        *tensors, states = ctx.saved_tensors
        starts, backend = ctx.settings
        handed_over, ctx.handed_over = ctx.handed_over, ()
        run = _backward_from if handed_over else _backward
        gradients = run(dz, dh_last, *tensors, starts, states, *handed_over, backend)
        # Gradients come in the order of the tensors u, v, parameters, h0, tail; reset has none.
        matched = [
            None if tensor is None else gradient.to(tensor.dtype)
            for tensor, gradient in zip(tensors[:-1], gradients, strict=True)
        ]
        return *matched, None, None, None
