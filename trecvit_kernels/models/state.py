"""What a streaming TRecViT carries from frame to frame.

Its size does not depend on the number of frames, unless ``temporal="attention"``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from trecvit_kernels._checks import check_device, check_dtype, check_shape, check_tensor
from trecvit_kernels.models.config import TRecViTConfig
from trecvit_kernels.modules import temporal
from trecvit_kernels.ops._dtypes import REAL

LayerState = tuple[Tensor, Tensor]  # of the recurrent block; other temporal modules may have another number
AnyLayerState = tuple[Tensor, ...]
_OF_ACTIVATIONS = ("tail", "keys", "values")


@dataclass(frozen=True)
class TRecViTState:
    """State of ``TRecViT.step``; never changed in place by the model.

    Attributes:
        config: of the model that it belongs to.
        layers: per block (h, tail): h (B, N, lru_width) in float32 (float64 for a float64 model), tail
            (B, conv1d_width - 1, N, lru_width), the last inputs of the convolution, oldest first. Other temporal
            modules have what ``modules.temporal.CHOICES`` says; that of attention grows with every frame.
        mean: (B, head_width), running temporal mean of the pre-logits, float32 or float64.
        frames: how many frames went in; at 0 the tensors hold zeros and the next frame starts a sequence.
    """

    config: TRecViTConfig
    layers: tuple[AnyLayerState, ...]
    mean: Tensor
    frames: int = 0

    @property
    def batch_size(self) -> int:
        return self.mean.shape[0]

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as ``from_tensors`` and a safetensors file take them."""
        named = {"mean": self.mean}
        parts = temporal.CHOICES[self.config.temporal].state_names
        for i, layer in enumerate(self.layers):
            named |= {f"layers.{i}.{part}": tensor for part, tensor in zip(parts, layer, strict=True)}
        return named

    @classmethod
    def from_tensors(cls, config: TRecViTConfig, tensors: dict[str, Tensor], frames: int) -> TRecViTState:
        """The inverse of ``tensors``; ValueError names missing and unexpected ones."""
        parts = temporal.CHOICES[config.temporal].state_names
        names = {f"layers.{i}.{part}" for i in range(config.depth) for part in parts} | {"mean"}
        if missing := sorted(names - set(tensors)):
            raise ValueError(f"TRecViTState: tensors must have {', '.join(missing)}, got none of that name")
        if unexpected := sorted(set(tensors) - names):
            raise ValueError(f"TRecViTState: tensors must not have {', '.join(unexpected)}")
        layers = tuple(tuple(tensors[f"layers.{i}.{part}"] for part in parts) for i in range(config.depth))
        return cls(config, layers, tensors["mean"], frames)

    def to(self, device: torch.device | str) -> TRecViTState:
        """The state on another device. Dtypes stay: h must not lose bits."""
        return self._map(lambda tensor: tensor.to(device))

    def detach(self) -> TRecViTState:
        """The state cut from the autograd graph, for truncated backpropagation through time."""
        return self._map(Tensor.detach)

    def clone(self) -> TRecViTState:
        """A copy with its own memory."""
        return self._map(Tensor.clone)

    def _map(self, function: Callable[[Tensor], Tensor]) -> TRecViTState:
        layers = tuple(tuple(function(tensor) for tensor in layer) for layer in self.layers)
        return dataclasses.replace(self, layers=layers, mean=function(self.mean))

    def check(self, where: str, like: StateLike, batch_size: int, device: torch.device) -> None:
        """ValueError unless the state belongs to such a model, batch size and device; TypeError for what is no state.

        It runs at every frame: sizes, dtypes and devices are looked at, no value is read and no tensor made.
        """
        if self.config is not like.config and self.config != like.config:
            ours, theirs = like.config.to_dict(), self.config.to_dict()
            different = ", ".join(
                f"{k} = {ours[k]} (state: {theirs[k]})" for k in ours if ours[k] != theirs[k]
            )
            raise ValueError(f"{where}: state must come from a model with {different}")
        if isinstance(self.frames, bool) or not isinstance(self.frames, (int, torch.SymInt)):
            raise TypeError(f"{where}: state frames must be an int, got {type(self.frames).__name__}")
        if self.frames < 0:
            raise ValueError(f"{where}: state frames must be at least 0, got {self.frames}")
        if len(self.layers) != like.config.depth:
            raise ValueError(f"{where}: state must have {like.config.depth} layers, got {len(self.layers)}")
        check_tensor(where, "state mean", self.mean, ndim_at_least=1)
        if self.batch_size != batch_size:
            raise ValueError(f"{where}: state must have batch size {batch_size}, got {self.batch_size}")
        of_mean, of_layer = like.tensors(batch_size, self.frames)
        _check(where, "mean", self.mean, of_mean, device)
        for i, layer in enumerate(self.layers):
            if len(layer) != len(of_layer):
                raise ValueError(
                    f"{where}: state layers.{i} must have {len(of_layer)} tensors, got {len(layer)}"
                )
            for tensor, expected in zip(layer, of_layer):
                # Written out, as a call with a name costs more than all that it looks at.
                if (
                    not isinstance(tensor, Tensor)
                    or tensor.shape != expected[1]
                    or tensor.dtype not in expected[2]
                    or tensor.device != device
                ):
                    _check(where, f"layers.{i}.{expected[0]}", tensor, expected, device)


_Expected = tuple[str, tuple[int, ...], tuple[torch.dtype, ...]]  # name, shape, dtypes


class StateLike(NamedTuple):
    """What states of a model look like, whatever their batch size: shapes and dtypes without the tensors.

    Attributes:
        config: of the model. weights: their dtype.
        mean: shape and dtypes of one stream's mean. layer: name, shape and dtypes of what one stream keeps per block.
    """

    config: TRecViTConfig
    weights: torch.dtype
    mean: _Expected
    layer: tuple[_Expected, ...]

    @classmethod
    def of(cls, fresh: TRecViTState, weights: torch.dtype) -> StateLike:
        """From a state at its start."""
        parts = zip(temporal.CHOICES[fresh.config.temporal].state_names, fresh.layers[0], strict=True)
        # What the activations leave has their dtype: under autocast not that of the weights.
        layer = tuple(
            (name, tuple(part.shape[1:]), REAL if name in _OF_ACTIVATIONS else (part.dtype,))
            for name, part in parts
        )
        mean = ("mean", tuple(fresh.mean.shape[1:]), (fresh.mean.dtype,))
        return cls(fresh.config, weights, mean, layer)

    def tensors(self, batch_size: int, frames: int) -> tuple[_Expected, tuple[_Expected, ...]]:
        """Mean and layer of a state of so many streams after so many frames."""
        layer = self.layer
        if self.config.temporal == "attention":
            kept = temporal.kept_frames(frames, self.config.temporal_window)
            layer = tuple((name, (kept, *shape[1:]), dtypes) for name, shape, dtypes in layer)
        mean, *parts = (
            (name, torch.Size((batch_size, *shape)), dtypes) for name, shape, dtypes in (self.mean, *layer)
        )
        return mean, tuple(parts)


def _check(where: str, name: str, tensor: object, expected: _Expected, device: torch.device) -> None:
    """TypeError or ValueError unless this is such a tensor of a state."""
    name, (_, shape, dtypes) = f"state {name}", expected
    check_tensor(where, name, tensor)
    assert isinstance(tensor, Tensor)
    check_device(where, name, tensor, device)
    check_shape(where, name, tensor, shape)
    try:
        check_dtype(where, name, tensor, dtypes)
    except TypeError as error:  # the state is of the right type, but of another model
        raise ValueError(str(error)) from None


def _flatten(state: TRecViTState) -> tuple[list[Any], Any]:
    return [state.layers, state.mean], (state.config, state.frames)


def _unflatten(children: Any, context: Any) -> TRecViTState:
    layers, mean = children
    return TRecViTState(context[0], layers, mean, context[1])


# So that tree_map, torch.compile and torch.utils.checkpoint see the tensors inside.
_pytree.register_pytree_node(
    TRecViTState, _flatten, _unflatten, serialized_type_name="trecvit_kernels.TRecViTState"
)
