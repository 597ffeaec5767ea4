"""Block-diagonal linear layer of the RG-LRU's gates (RecurrentGemma's BlockDiagonalLinear).

Not part of the public list: ``modules.GatedLRU`` uses it. Written with einsum, the batched product comes out
head-major and has to be copied back into the tokens' layout; here the heads are strided views of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_like, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops.block_diagonal import reference

NAME = "block_diagonal"
BACKENDS = ("reference", "native")


def block_diagonal(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Each head multiplies its slice of the channels: y = x W + b with a block-diagonal W.

    Args:
        x: (..., C), float32, bfloat16, float16 or float64.
        weight: (H, C/H, D/H), any real floating dtype; cast to the dtype of x.
        bias: (H, D/H), likewise.
        backend: ``"reference"``, ``"native"`` or None (see ``trecvit_kernels.backends``).

    Returns:
        (..., D) in the dtype of x. Under autocast x is cast to the autocast dtype.

    Raises:
        TypeError: not a tensor, or a dtype that does not fit.
        ValueError: a shape or device that does not fit, or an unknown backend.
        RuntimeError: the backend asked for cannot run here.
    """
    check_tensor(NAME, "x", x, ndim_at_least=1)
    check_dtype(NAME, "x", x, REAL)
    check_tensor(NAME, "weight", weight, ndim_at_least=3)
    heads, _, width = weight.shape
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(
            f"{NAME}: weight must have a number of heads that divides {x.shape[-1]}, got {heads}"
        )
    shape = (heads, x.shape[-1] // heads, width)
    check_like(NAME, "weight", weight, shape=shape, dtypes=REAL, device=x.device)
    check_like(NAME, "bias", bias, shape=(heads, width), dtypes=REAL, device=x.device)
    (x,) = _registration.autocast(x.device.type, x)
    if backend is None and x.device.type != "cpu":
        backend = "reference"
    backend = backends.select(NAME, backend, x.device.type, BACKENDS)
    if backend == "reference":
        return reference.block_diagonal(x, weight, bias)
    if _registration.needs_autograd(x, weight, bias):
        return _BlockDiagonal.apply(x, weight, bias, backend)
    return _forward(x, weight, bias, backend)


def _fake_forward(x, weight, bias, backend):
    return x.new_empty((*x.shape[:-1], weight.shape[0] * weight.shape[2]))


def _fake_backward(dy, x, weight, backend):
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty((weight.shape[0], weight.shape[2])),
    )


def _flops_forward(x_shape, weight_shape, *args, **kwargs) -> int:
    return 2 * torch.Size(x_shape).numel() * weight_shape[2]


def _flops_backward(dy_shape, x_shape, weight_shape, *args, **kwargs) -> int:
    return 2 * _flops_forward(x_shape, weight_shape)


_forward = _registration.define(
    "block_diagonal_forward",
    "(Tensor x, Tensor weight, Tensor bias, str backend) -> Tensor",
    room=__package__,
    fake=_fake_forward,
    flops=_flops_forward,
)
_backward = _registration.define(
    "block_diagonal_backward",
    "(Tensor dy, Tensor x, Tensor weight, str backend) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    room=__package__,
    fake=_fake_backward,
    flops=_flops_backward,
)


class _BlockDiagonal(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, backend):
        return _forward(x, weight, bias, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, backend = inputs
        ctx.save_for_backward(x, weight)
        ctx.settings = (backend, bias.dtype)

    @staticmethod
    @_registration.first_derivatives_only
    def backward(ctx: Any, dy: Tensor):
        x, weight = ctx.saved_tensors
        backend, bias_dtype = ctx.settings
        dx, dweight, dbias = _backward(dy, x, weight, backend)
        return dx, dweight, dbias.to(bias_dtype), None
