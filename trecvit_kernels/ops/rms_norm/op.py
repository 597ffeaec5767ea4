"""Root-mean-square norm with a scale stored minus one (RecurrentGemma).

Not part of the public list: PyTorch has this op. On the CPU it is several there, which keep intermediates for the
backward pass; on other devices PyTorch's is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_like, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import REAL, state_dtype
from trecvit_kernels.ops.rms_norm import reference

NAME = "rms_norm"
BACKENDS = ("reference", "native")


def rms_norm(x: Tensor, scale: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (scale + 1) over the last dimension.

    Args:
        x: (..., C), float32, bfloat16, float16 or float64. scale: (C), any of these.
        eps: added to the mean. backend: ``"reference"``, ``"native"`` or None (see ``trecvit_kernels.backends``).

    Returns:
        The shape and dtype of x. Saves x for the backward pass.

    Raises:
        TypeError: not a tensor, or a dtype that does not fit.
        ValueError: a shape or device that does not fit, or an unknown backend.
        RuntimeError: the backend asked for cannot run here.
    """
    check_tensor(NAME, "x", x, ndim_at_least=1)
    check_dtype(NAME, "x", x, REAL)
    check_like(NAME, "scale", scale, shape=x.shape[-1:], dtypes=REAL, device=x.device)
    if choose(x.device.type, backend) == "reference":
        return reference.rms_norm(x, scale, eps)
    if _registration.needs_autograd(x, scale):
        return _RMSNorm.apply(x, scale, eps, "native")
    return _forward(x, scale, eps, "native")


def choose(device: str, backend: str | None = None) -> str:
    """Name of the backend of a call on tensors of this device type that asks for ``backend``."""
    if backend is None and device != "cpu":
        backend = "reference"
    return backends.select(NAME, backend, device, BACKENDS)


def _fake_forward(x, scale, eps, backend):
    return x.new_empty(x.shape)


def _fake_backward(dy, x, scale, eps, backend):
    return x.new_empty(x.shape), scale.new_empty(scale.shape, dtype=state_dtype(x.dtype))


def _no_flops(*args, **kwargs) -> int:
    return 0  # as torch.utils.flop_counter counts PyTorch's own norms


_forward = _registration.define(
    "rms_norm_forward",
    "(Tensor x, Tensor scale, float eps, str backend) -> Tensor",
    room=__package__,
    fake=_fake_forward,
    flops=_no_flops,
)
_backward = _registration.define(
    "rms_norm_backward",
    "(Tensor dy, Tensor x, Tensor scale, float eps, str backend) -> (Tensor dx, Tensor dscale)",
    room=__package__,
    fake=_fake_backward,
    flops=_no_flops,
)


class _RMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, eps: float, backend: str) -> Tensor:
        return _forward(x, scale, eps, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, eps, backend = inputs
        ctx.save_for_backward(x, scale)
        ctx.settings = (eps, backend)

    @staticmethod
    @_registration.first_derivatives_only
    def backward(ctx: Any, dy: Tensor):
        x, scale = ctx.saved_tensors
        dx, dscale = _backward(dy, x, scale, *ctx.settings)
        return dx, dscale.to(scale.dtype), None, None
