"""``nn.Linear`` on the products that are fastest here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops._recipe import Recipe
from trecvit_kernels.ops._registration import autocasts
from trecvit_kernels.ops.linear import native
from trecvit_kernels.ops.linear.op import BACKENDS, NAME, linear_unchecked


class _Packed(NamedTuple):
    copy: Tensor
    weight: Tensor
    version: int  # of the weight when it was copied

    def is_current(self, weight: Tensor) -> bool:
        return weight is self.weight and weight._version == self.version


_PACKED: ContextVar[Mapping[nn.Module, _Packed] | None] = ContextVar("packed_weights", default=None)


class Linear(nn.Linear):
    """``nn.Linear`` (same parameters, names and initialisation) computed by ``ops/linear``: (..., in) -> (..., out)."""

    def forward(self, input: Tensor, recipe: Recipe | None = None) -> Tensor:
        """``recipe``: how to make the input again, so that the backward pass need not keep it."""
        if not torch.compiler.is_compiling() and (known := _PACKED.get()) is not None:
            packed = known.get(self)
            if packed is not None and packed.is_current(self.weight) and input.dtype == packed.weight.dtype:
                rows = input.reshape(-1, self.in_features)
                y = native.linear_forward(rows, packed.copy, self.bias)
                return y.view(*input.shape[:-1], self.out_features)
        if recipe is not None and recipe.value is not input:  # a hook has put something in its place
            recipe = None
        return linear_unchecked(input, self.weight, self.bias, recipe=recipe)


def call_linear(layer: nn.Module, x: Tensor, recipe: Recipe | None) -> Tensor:
    """``layer(x)``, with the recipe for x if the layer is one of ours: others may have taken its place."""
    if recipe is None or not isinstance(layer, Linear):
        return layer(x)
    return layer(x, recipe)


def check_weights(where: str, x: Tensor, layer: nn.Module, *, layer_norm: bool = False) -> None:
    """TypeError unless a block takes an x of this dtype, ``layer`` being its first linear layer.

    That is the dtype of its weights or, on the CPU, 16 bits on float32 weights. Autocast makes the products of all but
    float64 fit; not the ``layer_norm`` of a block that has one, on the CPU.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or x.dtype == weight.dtype or weight.dtype not in REAL:
        return  # a layer of another kind (quantised, say) knows best
    on_cpu, allowed = x.device.type == "cpu", [weight.dtype]
    if on_cpu and weight.dtype == torch.float32:
        allowed += [torch.bfloat16, torch.float16]
    if not (layer_norm and on_cpu) and autocasts(x.device.type):
        allowed += [dtype for dtype in REAL if dtype not in (*allowed, torch.float64)]
    if x.dtype not in allowed:
        check_dtype(f"{where} with weights in {str(weight.dtype).removeprefix('torch.')}", "x", x, allowed)


class PackedWeights:
    """Copies of a model's linear weights as the CPU's matrix products want them, for many calls of ``rows`` rows.

    They take the place of the weights inside ``with packed.used():``, without gradients and with the same results,
    unless a weight has changed since, autocast is on or the native backend is not the one in use. There are none on
    other devices, and only of 16-bit weights: in float32 they gain too little for their memory.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        self._copies: dict[nn.Module, _Packed] = {}
        for module in model.modules():
            if not isinstance(module, Linear):
                continue
            weight = module.weight
            if weight.device.type == "cpu" and weight.dtype.itemsize == 2 and not weight.is_inference():
                copy = native.pack(weight, rows)
                if copy is not None:
                    self._copies[module] = _Packed(copy, weight, weight._version)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        usable = self._copies and not torch.is_autocast_enabled("cpu")
        if not usable or backends.select(NAME, None, "cpu", BACKENDS) != "native":
            yield
            return
        token = _PACKED.set(self._copies)
        try:
            yield
        finally:
            _PACKED.reset(token)
