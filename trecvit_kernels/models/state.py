"""What a streaming TRecViT carries from frame to frame.

Its size does not depend on the number of frames, unless ``temporal="attention"``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from trecvit_kernels.models.config import TRecViTConfig
from trecvit_kernels.modules import temporal

LayerState = tuple[Tensor, Tensor]  # of the recurrent block; other temporal modules may have another number
AnyLayerState = tuple[Tensor, ...]


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

    def check(self, where: str, config: TRecViTConfig, batch_size: int, device: torch.device) -> None:
        """ValueError unless the state belongs to such a model, batch size and device."""
        if self.config != config:
            ours, theirs = config.to_dict(), self.config.to_dict()
            different = ", ".join(
                f"{k} = {ours[k]} (state: {theirs[k]})" for k in ours if ours[k] != theirs[k]
            )
            raise ValueError(f"{where}: state must come from a model with {different}")
        if len(self.layers) != config.depth:
            raise ValueError(f"{where}: state must have {config.depth} layers, got {len(self.layers)}")
        if self.batch_size != batch_size:
            raise ValueError(f"{where}: state must have batch size {batch_size}, got {self.batch_size}")
        for name, tensor in self.tensors().items():
            if tensor.device != device:
                raise ValueError(f"{where}: state {name} must be on device {device}, got {tensor.device}")


def _flatten(state: TRecViTState) -> tuple[list[Any], Any]:
    return [state.layers, state.mean], (state.config, state.frames)


def _unflatten(children: Any, context: Any) -> TRecViTState:
    layers, mean = children
    return TRecViTState(context[0], layers, mean, context[1])


# So that tree_map, torch.compile and torch.utils.checkpoint see the tensors inside.
_pytree.register_pytree_node(
    TRecViTState, _flatten, _unflatten, serialized_type_name="trecvit_kernels.TRecViTState"
)
