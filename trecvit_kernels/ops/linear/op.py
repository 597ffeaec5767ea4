"""The linear layers around the kernels.

Not part of the public list: PyTorch has this op. On the CPU oneDNN's product is used also in float32, where PyTorch's
default is slower on some processors; on other devices PyTorch's own op runs.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_like, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops._recipe import Recipe
from trecvit_kernels.ops.linear import reference

NAME = "linear"
BACKENDS = ("reference", "native")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """x W^T + b over the last dimension.

    Args:
        x: (..., in), float32, bfloat16, float16 or float64. weight: (out, in) and bias: (out) in the same dtype.
        backend: ``"reference"``, ``"native"`` or None (see ``trecvit_kernels.backends``).

    Returns:
        (..., out) in the dtype of x. Under autocast all three are cast to the autocast dtype. Differentiable any number
        of times. Saves x and weight for the backward pass.

    Raises:
        TypeError: not a tensor, or a dtype that does not fit.
        ValueError: a shape or device that does not fit, or an unknown backend.
        RuntimeError: the backend asked for cannot run here.
    """
    check_tensor(NAME, "x", x, ndim_at_least=1)
    check_dtype(NAME, "x", x, REAL)
    check_tensor(NAME, "weight", weight, ndim_at_least=2)
    dtypes = REAL if _registration.autocasts(x.device.type) else (x.dtype,)
    shape = (weight.shape[0], x.shape[-1])
    check_like(NAME, "weight", weight, shape=shape, dtypes=dtypes, device=x.device)
    if bias is not None:
        check_like(NAME, "bias", bias, shape=(weight.shape[0],), dtypes=dtypes, device=x.device)
    return linear_unchecked(x, weight, bias, backend)


def linear_unchecked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    backend: str | None = None,
    *,
    recipe: Recipe | None = None,
) -> Tensor:
    """``linear`` for arguments known to fit: a streaming step calls it often enough for checks to show.

    With a ``recipe`` for x it is the recipe's tensors that are saved for the backward pass, and x is made again there.
    """
    autocast = None
    if _registration.autocasts(x.device.type):
        x, weight = _registration.autocast(x.device.type, x, weight)
        bias = None if bias is None else bias.to(x.dtype)
        autocast = torch.get_autocast_dtype(x.device.type)
    if backend is None and x.device.type != "cpu":
        backend = "reference"
    backend = backends.select(NAME, backend, x.device.type, BACKENDS)
    if recipe is not None:
        return _LinearByRecipe.apply(x, weight, bias, backend, recipe.make, autocast, *recipe.tensors)
    return _linear(x, weight, bias, backend)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    if backend == "reference":
        return reference.linear(x, weight, bias)
    if _registration.needs_autograd(x, weight, bias):
        return _Linear.apply(x, weight, bias, backend)
    return _product(x, weight, bias, backend)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    if backend == "reference":
        return reference.linear(x, weight, bias)
    return _forward(_rows(x), weight, bias, backend).view(*x.shape[:-1], weight.shape[0])


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _fake_forward(x, weight, bias, backend):
    return x.new_empty(x.shape[0], weight.shape[0])


def _flops_forward(x_shape, weight_shape, *args, **kwargs) -> int:
    return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]


_forward = _registration.define(
    "linear_forward",
    "(Tensor x, Tensor weight, Tensor? bias, str backend) -> Tensor",
    room=__package__,
    fake=_fake_forward,
    flops=_flops_forward,
)


class _Linear(torch.autograd.Function):
    """The backward products are the same op on transposed views, so they can be differentiated again.

    Results are detached because a view that is written over (``modules/_residual.py``) has its gradient copied three
    times.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, backend):
        return _product(x, weight, bias, backend).detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, backend = inputs
        ctx.save_for_backward(x, weight)
        ctx.settings = (backend, bias is not None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):
        x, weight = ctx.saved_tensors
        backend, has_bias = ctx.settings
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        dx = _no_view(_linear(dy, weight.t(), None, backend)) if wants_x else None
        dy = _rows(dy)
        dweight = _linear(dy.t(), _rows(x).t(), None, backend) if wants_weight else None
        return dx, dweight, dy.sum(0) if has_bias and wants_bias else None, None


class _LinearByRecipe(torch.autograd.Function):
    """``_Linear`` that keeps, instead of x, the tensors of its recipe. Their gradients come through x.

    Differentiating it again also runs through the x made anew, as far as the recipe can be differentiated.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, backend, make, autocast, *tensors):
        return _product(x, weight, bias, backend).detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, backend, make, autocast, *tensors = inputs
        ctx.save_for_backward(weight, *tensors)
        ctx.settings = (backend, bias is not None, make, x.dtype, autocast)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):
        weight, *tensors = ctx.saved_tensors
        backend, has_bias, make, dtype, autocast = ctx.settings
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        rows, dweight = _rows(dy), None
        if wants_weight:  # first, so that the x made anew and its gradient are not there at the same time
            with _autocast_as(dy.device.type, autocast):
                x = make(*tensors)
            dweight = _linear(rows.t(), _rows(x.to(dtype)).t(), None, backend)
            del x
        dx = _no_view(_linear(dy, weight.t(), None, backend)) if wants_x else None
        dbias = rows.sum(0) if has_bias and wants_bias else None
        return dx, dweight, dbias, None, None, None, *[None] * len(tensors)


def _no_view(t: Tensor) -> Tensor:
    return t if torch.is_grad_enabled() else t.detach()


def _autocast_as(device: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Autocast to ``dtype`` or, for None, no autocast, whatever is in force now."""
    if dtype is None and not _registration.autocasts(device):
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None, cache_enabled=False)
