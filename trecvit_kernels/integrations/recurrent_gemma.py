"""RecurrentGemma of ``transformers`` with ``ops.gated_lru`` as its recurrence.

A patched RG-LRU keeps its parameters, its state and its place in the model; only its class changes, to a subclass
with another ``forward``. Its attributes stay as they were, so there is nothing to clean up, and code that looks for
instances of the original class still finds them.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from typing import Any, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn

from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._registration import without_autocast
from trecvit_kernels.ops.block_diagonal.op import block_diagonal
from trecvit_kernels.ops.gated_lru.op import gated_lru

_MODULE = "transformers.models.recurrent_gemma.modeling_recurrent_gemma"
_CLASS = "RecurrentGemmaRglru"
_FORWARD = ("activations", "position_ids")
_PARAMETERS = (
    "recurrent_param",
    "input_gate_weight",
    "input_gate_bias",
    "recurrent_gate_weight",
    "recurrent_gate_bias",
)
_ATTRIBUTES = (*_PARAMETERS, "recurrent_states")

Model = TypeVar("Model", bound=nn.Module)


def patch_recurrent_gemma(model: Model) -> Model:
    """Let every RG-LRU of a RecurrentGemma compute gates, normaliser and recurrence by ``ops.gated_lru``.

    In place, and undone by ``unpatch``. Parameters, state dict, cached states (``recurrent_states``, float32) and
    the dtype of the output are those of the original, and so is what ``pickle`` and ``save_pretrained`` write.
    Modules that are patched already stay so; ``copy.deepcopy`` of a patched model is patched.

    Args:
        model: RecurrentGemmaForCausalLM, RecurrentGemmaModel, or any module that is or holds a RecurrentGemmaRglru.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: not a module.
        ImportError: transformers is not installed.
        ValueError: there is no RG-LRU in the model, or one whose ``forward`` is not the original one.
        RuntimeError: this version of transformers has another RG-LRU than the one that is replaced here.
    """
    _check_module("patch_recurrent_gemma", model)
    original = _original_class()
    found = [module for module in model.modules() if isinstance(module, original)]
    if not found:
        raise ValueError(
            "patch_recurrent_gemma: model must be a RecurrentGemmaForCausalLM, a RecurrentGemmaModel or a module that "
            f"holds a {_CLASS}; {type(model).__name__} holds none"
        )
    fresh = [module for module in found if not isinstance(module, _FusedRecurrence)]
    for module in fresh:
        _check_layer(module, original)
    for module in fresh:
        _change_class(module, _fused(type(module)))  # type: ignore[arg-type]  # mypy takes the class for unhashable
    return model


def unpatch(model: Model) -> Model:
    """Undo ``patch_recurrent_gemma``: every RG-LRU computes as the original class does. Returns ``model`` itself.

    A model that is not patched stays as it is.

    Raises:
        TypeError: not a module.
        ValueError: another library has replaced the patched ``forward`` (or class) since.
    """
    _check_module("unpatch", model)
    patched = [module for module in model.modules() if isinstance(module, _FusedRecurrence)]
    for module in patched:
        if not _has_forward_of_class(module) or "_unpatched" not in vars(type(module)):
            raise ValueError(
                f"unpatch: a {type(module).__name__} was changed after it was patched (accelerate's offloading does "
                "so); undo that first"
            )
    for module in patched:
        _change_class(module, vars(type(module))["_unpatched"])
    return model


class _FusedRecurrence(nn.Module):
    """What a patched RG-LRU does differently; mixed into the class that it had."""

    _unpatched: type[nn.Module]
    recurrent_param: Tensor  # (C)
    input_gate_weight: Tensor  # (H, C/H, C/H)
    input_gate_bias: Tensor  # (H, C/H)
    recurrent_gate_weight: Tensor
    recurrent_gate_bias: Tensor
    recurrent_states: Tensor | None  # (B, C)

    def forward(self, activations: Tensor, position_ids: Tensor) -> Tensor:
        """(B, T, C), (1 or B, T) -> (B, T, C). Goes on from ``recurrent_states`` and leaves the new state there."""
        x = activations.contiguous()  # the convolution hands over its (B, C, T) transposed; three ops read it
        # Under autocast the products are in 16 bits, but x keeps its dtype, as in the original.
        gate_x = _gate(x, self.input_gate_weight, self.input_gate_bias).to(x.dtype)
        gate_a = _gate(x, self.recurrent_gate_weight, self.recurrent_gate_bias).to(x.dtype)
        reset = (position_ids == 0).expand(x.shape[:2])
        h0 = self.recurrent_states
        if h0 is not None:
            h0 = h0.to(x.device, state_dtype(x.dtype))
        with without_autocast(x.device.type):
            y, self.recurrent_states = gated_lru(x, gate_x, gate_a, self.recurrent_param, h0=h0, reset=reset)
        return y

    def extra_repr(self) -> str:
        return ", ".join(part for part in (super().extra_repr(), "recurrence=trecvit_kernels") if part)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """As an instance of the original class, so that the file can be read without this package."""
        # Protocol 0 rebuilds any class it is given; the later ones insist on the class of the object.
        reduced: Any = super().__reduce_ex__(0)
        rebuild, (_, *arguments), *state = reduced
        return rebuild, (self._unpatched, *arguments), *state


@functools.cache
def _fused(original: type[nn.Module]) -> type[nn.Module]:
    """Subclass of ``original`` under the same name, which policies of other libraries may go by."""
    return type(
        original.__name__, (_FusedRecurrence, original), {"__module__": __name__, "_unpatched": original}
    )


def _gate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Pre-activation of a gate: (B, T, C), (H, C/H, C/H), (H, C/H) -> (B, T, C)."""
    if x.shape[1] > 1:
        return block_diagonal(x, weight, bias)  # written in the layout of x
    # A decoding step waits for the weights; this has the least overhead, and the copy is of one frame.
    heads, width, _ = weight.shape
    product = torch.baddbmm(bias[:, None], x.view(-1, heads, width).transpose(0, 1), weight)
    return product.transpose(0, 1).reshape(x.shape)


def _original_class() -> type[nn.Module]:
    try:
        module = importlib.import_module(_MODULE)
    except ImportError as error:
        raise ImportError(f"patch_recurrent_gemma needs transformers with {_MODULE}: {error}") from error
    found = getattr(module, _CLASS, None)
    if found is None:
        raise RuntimeError(f"patch_recurrent_gemma: {_transformers()} has no {_MODULE}.{_CLASS}")
    return found


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")


def _check_layer(module: nn.Module, original: type[nn.Module]) -> None:
    if not _has_forward_of_class(module) or type(module).forward is not original.forward:
        raise ValueError(
            f"patch_recurrent_gemma: the forward of a {type(module).__name__} was replaced by something else "
            "(accelerate's offloading does so); patch the model before that"
        )
    missing = [name for name in _ATTRIBUTES if not hasattr(module, name)]
    if missing:
        raise RuntimeError(
            f"patch_recurrent_gemma: {_CLASS} of {_transformers()} has no attribute {', '.join(missing)}, "
            "which this version of trecvit_kernels needs"
        )
    takes = tuple(inspect.signature(original.forward).parameters)[1:]
    if takes != _FORWARD:
        raise RuntimeError(
            f"patch_recurrent_gemma: {_CLASS}.forward of {_transformers()} takes ({', '.join(takes)}), "
            f"expected ({', '.join(_FORWARD)})"
        )


def _has_forward_of_class(module: nn.Module) -> bool:
    """Also true of the class's own ``forward`` kept on the instance, as accelerate leaves it when its hooks go."""
    return "forward" not in vars(module) or getattr(module.forward, "__func__", None) is type(module).forward


def _change_class(module: nn.Module, to: type[nn.Module]) -> None:
    vars(module).pop("forward", None)
    module.__class__ = to


def _transformers() -> str:
    return f"transformers {importlib.import_module('transformers').__version__}"
