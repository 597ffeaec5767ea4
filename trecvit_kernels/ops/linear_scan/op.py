"""First-order linear recurrence along dim 1, the bare scan under every linear RNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_frames, check_like, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import COMPLEX, REAL, state_dtype
from trecvit_kernels.ops._schedule import saved_states
from trecvit_kernels.ops.linear_scan import reference

NAME = "linear_scan"
BACKENDS = ("reference", "native", "triton", "cuda")


def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""h_t = a_t h_{t-1} + b_t along dim 1 (``reverse=True``: h_t = a_t h_{t+1} + b_t, from the last frame).

    Args:
        a, b: (B, T, \*lanes), one dtype: float32, bfloat16, float16, float64, complex64 or complex128.
        h0: (B, \*lanes), the state before the first frame walked (zeros if None), in the state dtype: float32 for
            16- and 32-bit inputs, the dtype of ``a`` for float64 and complex inputs.
        reverse: walk time backwards.
        backend: ``"reference"``, ``"native"``, ``"triton"``, ``"cuda"`` or None (see ``trecvit_kernels.backends``).

    Returns:
        h like ``b`` (contiguous) and h_last (B, \*lanes), the state after the last frame walked, in the state dtype.
        Both are differentiable with respect to a, b and h0. The backward pass recomputes the states from one
        saved state every few frames.

    Tensors are read in place if their lanes collapse to one contiguous run (up to one outer stride); others are
    copied first. Autocast leaves the op alone: a decay in 16 bits cannot come closer to 1 than 2^-8.

    Raises:
        TypeError: not a tensor, a dtype that does not fit, or ``reverse`` is no bool.
        ValueError: a shape, device or ``backend`` that does not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    check_tensor(NAME, "a", a, ndim_at_least=2)
    check_dtype(NAME, "a", a, (*REAL, *COMPLEX))
    check_frames(NAME, "a", a)
    check_like(NAME, "b", b, shape=tuple(a.shape), dtypes=(a.dtype,), device=a.device)
    if h0 is not None:
        state_shape = (a.shape[0], *a.shape[2:])
        check_like(NAME, "h0", h0, shape=state_shape, dtypes=(state_dtype(a.dtype),), device=a.device)
    if not isinstance(reverse, bool):
        raise TypeError(f"{NAME}: reverse must be a bool, got {type(reverse).__name__}")
    backend = backends.select(NAME, backend, a.device.type, BACKENDS)
    if backend == "reference":
        return reference.linear_scan(a, b, h0, reverse=reverse)
    if _registration.needs_autograd(a, b, h0):
        h, h_last, _ = _LinearScan.apply(a, b, h0, reverse, backend)
    else:
        h, h_last, _ = _forward(a, b, h0, reverse, False, backend)
    return h, h_last


def _fake_forward(a, b, h0, reverse, save_states, backend):
    state = b.new_empty((b.shape[0], *b.shape[2:]), dtype=state_dtype(b.dtype))
    saved = saved_states(b.shape[1]) if save_states else 0
    return b.new_empty(b.shape), state, state.new_empty((b.shape[0], saved, *b.shape[2:]))


def _fake_backward(dh, dh_last, a, b, h0, reverse, states, backend):
    return a.new_empty(a.shape), b.new_empty(b.shape), dh_last.new_empty(dh_last.shape)


def _flops_forward(a, *args, **kwargs) -> int:
    # A multiply-add per element: 2 if real, 8 if complex.
    return (8 if a.is_complex() else 2) * a.numel()


def _flops_backward(dh, *args, **kwargs) -> int:
    # States again (2; complex 8), the adjoint recurrence (2; 8) and da = conj(h_{t-1}) G (1; 6).
    return (22 if dh.is_complex() else 5) * dh.numel()


_forward = _registration.define(
    "linear_scan_forward",
    "(Tensor a, Tensor b, Tensor? h0, bool reverse, bool save_states, str backend)"
    " -> (Tensor h, Tensor h_last, Tensor states)",
    room=__package__,
    fake=_fake_forward,
    flops=_flops_forward,
    flops_of_tensors=True,
)
_backward = _registration.define(
    "linear_scan_backward",
    "(Tensor dh, Tensor dh_last, Tensor a, Tensor b, Tensor? h0, bool reverse, Tensor states, str backend)"
    " -> (Tensor da, Tensor db, Tensor dh0)",
    room=__package__,
    fake=_fake_backward,
    flops=_flops_backward,
    flops_of_tensors=True,
)


class _LinearScan(torch.autograd.Function):
    """Adjoint: G_t = dh_t + conj(a_{t+1}) G_{t+1}; db_t = G_t; da_t = conj(h_{t-1}) G_t; dh0 = conj(a_0) G_0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a, b, h0, reverse, backend):
        return _forward(a, b, h0, reverse, True, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        a, b, h0, reverse, backend = inputs
        states = output[-1]
        ctx.mark_non_differentiable(states)
        ctx.save_for_backward(a, b, h0, states)
        ctx.settings = (reverse, backend)

    @staticmethod
    @_registration.first_derivatives_only
    def backward(ctx: Any, dh: Tensor, dh_last: Tensor, _: Tensor):
        a, b, h0, states = ctx.saved_tensors
        reverse, backend = ctx.settings
        da, db, dh0 = _backward(dh, dh_last, a, b, h0, reverse, states, backend)
        return da, db, None if h0 is None else dh0, None, None
