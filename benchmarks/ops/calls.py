"""Calls of an op as work to be timed, with and without gradients, and the names of their rows.

``values`` are the op's arguments, by position (a sequence) or by name (a mapping). Gradients are those of all floating
tensors among them, tuples looked into.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.timing import Work

Values = Sequence[Any] | Mapping[str, Any]


def first(result: Any) -> Tensor:
    """The result, or the first of several: an op's output without its state."""
    return result if isinstance(result, Tensor) else result[0]


def leaves(values: Any) -> Any:
    """The same values, floating tensors as leaves that require grad."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return value.detach().requires_grad_()
        return value

    return tree_map(leaf, values)


def apply(function: Callable[..., Any], values: Values) -> Any:
    """function(*values), or function(**values)."""
    return function(**values) if isinstance(values, Mapping) else function(*values)


def inference_of(function: Callable[..., Tensor], values: Values) -> Work:
    """Forward, nothing recorded."""
    return torch.no_grad()(functools.partial(apply, function, values))


def training_of(function: Callable[..., Tensor], values: Values, dy: Tensor) -> Work:
    """Forward, and gradients of all floating tensors."""
    inputs = leaves(values)
    wanted = _wanted(inputs)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(apply(function, inputs), wanted, dy, materialize_grads=True)

    return run


def backward_of(function: Callable[..., Tensor], values: Values, dy: Tensor) -> Work:
    """Gradients of all floating tensors, the forward pass done once outside."""
    inputs = leaves(values)
    wanted, y = _wanted(inputs), apply(function, inputs)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True, materialize_grads=True)


def value_and_gradients(function: Callable[..., Tensor], values: Values, dy: Tensor) -> list[Tensor]:
    """The result and the gradients, in the order of the values."""
    inputs = leaves(values)
    y = apply(function, inputs)
    return [y.detach(), *torch.autograd.grad(y, _wanted(inputs), dy, materialize_grads=True)]


def row_label(op: str, case: Any, direction: str) -> str:
    """For example "complex gated_lru forward, float32, (1, 16, 196, 768)"; the shape is that of the activations."""
    dtype = str(case.dtype).removeprefix("torch.")
    if hasattr(case, "tokens"):
        shape = (*case.lead, case.tokens, 3 * case.heads * case.head_dim)
        return f"{op} {direction}, {dtype}, {shape}, D = {case.head_dim}"
    if not hasattr(case, "lanes"):
        return f"{op} {direction}, {dtype}, {case.name}"
    shape = (case.batch, case.frames, *case.lanes, *([case.channels] if hasattr(case, "channels") else []))
    kind = "complex " if getattr(case, "complex", case.dtype.is_complex) else ""
    return f"{kind}{op} {direction}, {dtype}, {shape}"


def _wanted(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor) and t.requires_grad]
