"""GELU in its tanh approximation, the activation of TRecViT's MLP.

Not part of the public list: PyTorch has this op. On the CPU its kernel takes several times as long as ours and
shows in a bfloat16 forward pass of TRecViT-B; on other devices PyTorch's is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops.gelu import reference

NAME = "gelu_tanh"
BACKENDS = ("reference", "native")


def gelu_tanh(x: Tensor, *, backend: str | None = None) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), element by element.

    Args:
        x: any shape, float32, bfloat16, float16 or float64.
        backend: ``"reference"``, ``"native"`` or None (see ``trecvit_kernels.backends``).

    Returns:
        The shape and dtype of x, contiguous with the native backend. Saves x for the backward pass.

    Raises:
        TypeError: not a tensor, or not a real floating one.
        ValueError, RuntimeError: a backend that is unknown or cannot run here.
    """
    check_tensor(NAME, "x", x)
    check_dtype(NAME, "x", x, REAL)
    if choose(x.device.type, backend) == "reference":
        return reference.gelu_tanh(x)
    if _registration.needs_autograd(x):
        return _Gelu.apply(x, "native")
    return _forward(x, "native")


def choose(device: str, backend: str | None = None) -> str:
    """Name of the backend of a call on tensors of this device type that asks for ``backend``."""
    if backend is None and device != "cpu":
        backend = "reference"
    return backends.select(NAME, backend, device, BACKENDS)


def _fake_forward(x, backend):
    return x.new_empty(x.shape)


def _fake_backward(dy, x, backend):
    return x.new_empty(x.shape)


def _no_flops(*args, **kwargs) -> int:
    return 0  # as torch.utils.flop_counter counts PyTorch's own elementwise ops


_forward = _registration.define(
    "gelu_forward",
    "(Tensor x, str backend) -> Tensor",
    room=__package__,
    fake=_fake_forward,
    flops=_no_flops,
)
_backward = _registration.define(
    "gelu_backward",
    "(Tensor dy, Tensor x, str backend) -> Tensor",
    room=__package__,
    fake=_fake_backward,
    flops=_no_flops,
)


class _Gelu(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, backend: str) -> Tensor:
        return _forward(x, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, backend = inputs
        ctx.save_for_backward(x)
        ctx.backend = backend

    @staticmethod
    @_registration.first_derivatives_only
    def backward(ctx: Any, dy: Tensor):
        (x,) = ctx.saved_tensors
        return _backward(dy, x, ctx.backend), None
