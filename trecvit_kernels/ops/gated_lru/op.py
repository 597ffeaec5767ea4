"""Gated linear recurrent unit (RG-LRU of Griffin, arXiv 2402.19427, as used in TRecViT, arXiv 2412.14294)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_frames, check_like, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import REAL, state_dtype
from trecvit_kernels.ops._schedule import saved_states
from trecvit_kernels.ops.gated_lru import reference

NAME = "gated_lru"
BACKENDS = ("reference", "native", "triton", "cuda")
NORMALIZERS = ("sqrt", "convex")


def gated_lru(
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None = None,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    normalizer: str = "sqrt",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Gated linear recurrence along dim 1, gates and normaliser computed on the fly.

    Per channel, with c = 8 and :math:`\Lambda` = ``a_param``, :math:`\theta` = ``a_imag``::

        i_t = sigmoid(gate_x_t)               r_t = sigmoid(gate_a_t)
        l_t = -c r_t softplus(Lambda)         a_t = exp(l_t + i theta r_t)        (real: theta = 0)
        beta_t = sqrt(1 - |a_t|^2)            ("convex": beta_t = 1 - |a_t|)
        h_t = a_t h_{t-1} + beta_t i_t x_t

    At a reset a_t = 0 and beta_t = 1. The slope of the square root is bounded by 1000 in the backward pass,
    as in RecurrentGemma. The state is float32 whatever the dtype of ``x`` (float64 for float64 ``x``); the
    backward pass recomputes gates and states from the inputs and one saved state every few frames.

    Args:
        x: (B, T, \*lanes, C), float32, bfloat16, float16 or float64. Complex: C = [real half | imaginary half].
        gate_x, gate_a: gate pre-activations, dtype of ``x`` (under autocast any but float64); shape of ``x``, or half
            its channels if complex.
        a_param: (C), or (C/2) if complex; any real floating dtype.
        a_imag: (C/2) phase parameter; its presence makes the recurrence complex.
        h0: (B, \*lanes, C) state before the first frame, state dtype.
        reset: bool (B, T). None: a call without ``h0`` resets at t = 0 (it starts a sequence), a call with
            ``h0`` does not. A given ``reset`` is used as it stands; ``h0=None`` then means zeros.
        normalizer: ``"sqrt"`` or ``"convex"``.
        backend: ``"reference"``, ``"native"``, ``"triton"``, ``"cuda"`` or None (see ``trecvit_kernels.backends``).

    Returns:
        y like ``x`` (contiguous) and h_last (B, \*lanes, C) in the state dtype. Both are differentiable
        with respect to x, gate_x, gate_a, a_param, a_imag and h0.

    Under autocast x and the gates are cast to the autocast dtype. Tensors are read in place if C is contiguous
    and the dimensions of ``lanes`` collapse to one stride; others are copied first.

    Raises:
        TypeError: not a tensor, or a dtype that does not fit.
        ValueError: a shape, device, ``normalizer`` or ``backend`` that does not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    _check(x, gate_x, gate_a, a_param, a_imag, h0, reset, normalizer)
    x, gate_x, gate_a = _registration.autocast(x.device.type, x, gate_x, gate_a)
    backend = backends.select(NAME, backend, x.device.type, BACKENDS)
    if backend == "reference":
        return reference.gated_lru(
            x, gate_x, gate_a, a_param, a_imag, h0=h0, reset=reset, normalizer=normalizer
        )
    starts = reference.first_step_resets(reset, h0)
    args = (x, gate_x, gate_a, a_param, a_imag, h0, reset, starts, normalizer)
    if _registration.needs_autograd(x, gate_x, gate_a, a_param, a_imag, h0):
        y, h_last, _ = _GatedLRU.apply(*args, backend)
    else:
        y, h_last, _ = _forward(*args, False, backend)
    return y, h_last


def _check(
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    reset: Tensor | None,
    normalizer: str,
) -> None:
    check_tensor(NAME, "x", x, ndim_at_least=3)
    check_dtype(NAME, "x", x, REAL)
    channels = x.shape[-1]
    check_frames(NAME, "x", x)
    if a_imag is not None:
        if channels % 2:
            raise ValueError(
                f"{NAME}: x must have an even number of channels when a_imag is given, got {channels}"
            )
        channels //= 2
    gate_shape = (*x.shape[:-1], channels)
    dtypes = _registration.dtypes_beside(x.dtype, x.device.type)
    for name, gate in (("gate_x", gate_x), ("gate_a", gate_a)):
        check_like(NAME, name, gate, shape=gate_shape, dtypes=dtypes, device=x.device)
    check_like(NAME, "a_param", a_param, shape=(channels,), dtypes=REAL, device=x.device)
    if a_imag is not None:
        check_like(NAME, "a_imag", a_imag, shape=(channels,), dtypes=REAL, device=x.device)
    if h0 is not None:
        state_shape = (x.shape[0], *x.shape[2:])
        check_like(NAME, "h0", h0, shape=state_shape, dtypes=(state_dtype(x.dtype),), device=x.device)
    if reset is not None:
        check_like(NAME, "reset", reset, shape=tuple(x.shape[:2]), dtypes=(torch.bool,), device=x.device)
    if normalizer not in NORMALIZERS:
        raise ValueError(f"{NAME}: normalizer must be one of {', '.join(NORMALIZERS)}, got {normalizer!r}")


_INPUTS = (
    "Tensor x, Tensor gate_x, Tensor gate_a, Tensor a_param, Tensor? a_imag, Tensor? h0, Tensor? reset, "
    "bool starts, str normalizer"
)


def _fake_forward(x, gate_x, gate_a, a_param, a_imag, h0, reset, starts, normalizer, save_states, backend):
    state = x.new_empty((x.shape[0], *x.shape[2:]), dtype=state_dtype(x.dtype))
    saved = saved_states(x.shape[1]) if save_states else 0
    states = state.new_empty((x.shape[0], saved, *x.shape[2:]))
    return x.new_empty(x.shape), state, states


def _fake_backward(
    dy, dh_last, x, gate_x, gate_a, a_param, a_imag, h0, reset, starts, normalizer, states, backend
):
    dtype = state_dtype(x.dtype)
    return (
        x.new_empty(x.shape),
        gate_x.new_empty(gate_x.shape),
        gate_a.new_empty(gate_a.shape),
        a_param.new_empty(a_param.shape, dtype=dtype),
        a_param.new_empty(a_param.shape if a_imag is not None else (0,), dtype=dtype),
        dh_last.new_empty(dh_last.shape),
    )


# FLOPs per gate element, an elementary function counted as one: 2 sigmoids (3 each), decay and exp (2), beta (3),
# scaled input (2 real, 3 complex), recurrence (2 real; 8 + cos, sin and 2 products complex). The backward pass
# recomputes the forward and does about twice its work.
FLOPS_REAL, FLOPS_COMPLEX = 15, 26


def _flops_forward(x_shape, gate_x_shape, *args, **kwargs) -> int:
    per_element = FLOPS_REAL if x_shape == gate_x_shape else FLOPS_COMPLEX
    return per_element * torch.Size(gate_x_shape).numel()


def _flops_backward(dy_shape, dh_last_shape, x_shape, gate_x_shape, *args, **kwargs) -> int:
    return 3 * _flops_forward(x_shape, gate_x_shape)


_forward = _registration.define(
    "gated_lru_forward",
    f"({_INPUTS}, bool save_states, str backend) -> (Tensor y, Tensor h_last, Tensor states)",
    room=__package__,
    fake=_fake_forward,
    flops=_flops_forward,
)
_backward = _registration.define(
    "gated_lru_backward",
    f"(Tensor dy, Tensor dh_last, {_INPUTS}, Tensor states, str backend)"
    " -> (Tensor dx, Tensor dgate_x, Tensor dgate_a, Tensor da_param, Tensor da_imag, Tensor dh0)",
    room=__package__,
    fake=_fake_backward,
    flops=_flops_backward,
)


class _GatedLRU(torch.autograd.Function):
    """Forward saves its inputs and one state every ``_schedule.FRAMES_PER_STATE`` frames."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, gate_x, gate_a, a_param, a_imag, h0, reset, starts, normalizer, backend):
        return _forward(x, gate_x, gate_a, a_param, a_imag, h0, reset, starts, normalizer, True, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, starts, normalizer, backend = inputs
        states = output[-1]
        ctx.mark_non_differentiable(states)
        ctx.save_for_backward(*tensors, states)
        ctx.settings = (starts, normalizer, backend)

    @staticmethod
    @_registration.first_derivatives_only
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor, _: Tensor):
        *tensors, states = ctx.saved_tensors
        starts, normalizer, backend = ctx.settings
        dx, dgate_x, dgate_a, da_param, da_imag, dh0 = _backward(
            dy, dh_last, *tensors, starts, normalizer, states, backend
        )
        a_param, a_imag, h0 = tensors[3:6]
        return (
            dx,
            dgate_x,
            dgate_a,
            da_param.to(a_param.dtype),
            None if a_imag is None else da_imag.to(a_imag.dtype),
            None if h0 is None else dh0,
            None,
            None,
            None,
            None,
        )
