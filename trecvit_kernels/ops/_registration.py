"""The only file that knows torch.library: how an op becomes visible to PyTorch's dispatcher and compiler.

Each op is registered raw (forward and backward as two functions without autograd) under
``torch.ops.trecvit_kernels``; the public function in ``op.py`` puts an ``autograd.Function`` around it and
enters it only when a gradient is needed. That costs a third of ``torch.library.custom_op``'s overhead.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "trecvit_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_CAST = (torch.float32, torch.bfloat16, torch.float16)  # by autocast


def define(
    name: str,
    schema: str,
    *,
    room: str,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    flops_of_tensors: bool = False,
) -> Callable[..., Any]:
    """Register ``name`` with ``schema``, whose last argument must be ``str backend``.

    room: package that holds one module per backend, each with a function called ``name`` (taking the schema's
    arguments but ``backend``). fake: shapes and dtypes of the results, same arguments as the schema.
    flops: 2 per multiply-add (docs/benchmarks.md), from shapes, as ``torch.utils.flop_counter`` passes them, or from
    the tensors themselves if ``flops_of_tensors``.
    """
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))

    def run(*args: Any) -> Any:
        *arguments, backend = args
        function = getattr(importlib.import_module(f"{room}.{backend}"), name)
        with without_autocast(arguments[0].device.type):  # dtypes are settled
            return function(*arguments)

    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", _vmap_by_loop(packet.default), lib=_LIBRARY)
    register_flop_formula(packet, get_raw=flops_of_tensors)(flops)
    return packet.default


def needs_autograd(*tensors: Tensor | None) -> bool:
    """Whether a call must be recorded: a gradient is wanted, or a functorch transform is looking."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


_ONCE = (
    "trecvit_kernels: second derivatives are not implemented by this backend; backend='reference' has them"
)


def first_derivatives_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward pass of an op: differentiating it again raises, instead of leaving out the op's share.

    ``torch.autograd.function.once_differentiable`` looks only at the gradients that come in; the second derivative
    also runs through the saved inputs. Under ``torch.func``, where every pass is recorded, a second level of
    ``grad`` raises at once.
    """

    @functools.wraps(backward)
    def guarded(ctx: Any, *gradients: Tensor) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        if torch._C._are_functorch_transforms_active():
            levels = [level.key() for level in retrieve_all_functorch_interpreters()]
            if levels.count(torch._C._functorch.TransformType.Grad) > 1:
                raise RuntimeError(_ONCE)
            return backward(ctx, *gradients)
        with torch.no_grad():
            results = backward(ctx, *gradients)
        sources = [t for t in (*gradients, *ctx.saved_tensors) if t is not None and t.requires_grad]
        if not sources:
            return results
        wanted = [result for result in results if result is not None]
        refusing = iter(_Once.apply(len(wanted), *wanted, *sources))
        return tuple(None if result is None else next(refusing) for result in results)

    return guarded


class _Once(torch.autograd.Function):
    """The first ``count`` tensors, as functions of all: differentiating them raises."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(_ONCE)


def autocasts(device: str) -> bool:
    """Whether ``torch.autocast`` is on for tensors of this device type. It knows no ``meta`` and raises for it."""
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """For what autocast must leave alone: it would round products that are meant to be float32."""
    return torch.autocast(device, enabled=False) if autocasts(device) else contextlib.nullcontext()


def dtypes_beside(dtype: torch.dtype, device: str) -> tuple[torch.dtype, ...]:
    """What an activation beside one of ``dtype`` may have: the same or, under autocast, what is cast to the same."""
    return (dtype,) if dtype == torch.float64 or not autocasts(device) else _CAST


def autocast(device: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Under ``torch.autocast`` the activations of an op take the autocast dtype (its state stays float32)."""
    if not autocasts(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _vmap_by_loop(op: Callable[..., Any]) -> Callable[..., Any]:
    """Batching rule: one call per example, results stacked. Right for every op, parameters batched or not."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        per_example = []
        for index in range(info.batch_size):
            selected = [
                arg if dim is None else arg.select(dim, index) for arg, dim in zip(args, in_dims, strict=True)
            ]
            per_example.append(op(*selected))
        if isinstance(per_example[0], Tensor):
            return torch.stack(per_example), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*per_example, strict=True))
        return stacked, (0,) * len(stacked)

    return rule
