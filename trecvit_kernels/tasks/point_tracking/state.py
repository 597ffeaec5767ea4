"""What a streaming point tracker carries from frame to frame: its size does not depend on the number of frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from trecvit_kernels._checks import check_device, check_shape
from trecvit_kernels.models.state import LayerState
from trecvit_kernels.tasks.point_tracking.config import PointTrackerConfig


@dataclass(frozen=True)
class PointTrackerState:
    """State of ``PointTracker.step``; never changed in place by the model.

    Attributes:
        config: of the model that it belongs to.
        layers: per block (h, tail): h (B, N, lru_width) in float32 (float64 for a float64 model), tail
            (B, conv1d_width - 1, N, lru_width), the last inputs of the convolution, oldest first. N counts the patches,
            row by row, then the queries.
        query_points: (B, Q, 3), (t, y, x) with t counted from the first frame of the stream.
        grid: patches (down, across) of the stream's frames.
        step: how many frames went in; at 0 the layers hold zeros and the next frame starts a sequence.
    """

    config: PointTrackerConfig
    layers: tuple[LayerState, ...]
    query_points: Tensor
    grid: tuple[int, int]
    step: int = 0

    @property
    def batch_size(self) -> int:
        return self.query_points.shape[0]

    @property
    def device(self) -> torch.device:
        return self.query_points.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        named = {"query_points": self.query_points}
        for i, (h, tail) in enumerate(self.layers):
            named[f"layers.{i}.h"], named[f"layers.{i}.tail"] = h, tail
        return named

    def to(self, device: torch.device | str) -> PointTrackerState:
        """The state on another device. Dtypes stay: h must not lose bits."""
        return self._map(lambda tensor: tensor.to(device))

    def detach(self) -> PointTrackerState:
        """The state cut from the autograd graph, for truncated backpropagation through time."""
        return self._map(Tensor.detach)

    def clone(self) -> PointTrackerState:
        """A copy with its own memory."""
        return self._map(Tensor.clone)

    def _map(self, function: Callable[[Tensor], Tensor]) -> PointTrackerState:
        layers = tuple((function(h), function(tail)) for h, tail in self.layers)
        return dataclasses.replace(self, layers=layers, query_points=function(self.query_points))

    def check(
        self, where: str, config: PointTrackerConfig, batch: int, grid: tuple[int, int], device: torch.device
    ) -> None:
        """ValueError unless the state belongs to such a model, batch, patch grid and device."""
        if self.config != config:
            ours, theirs = config.to_dict(), self.config.to_dict()
            different = ", ".join(
                f"{k} = {ours[k]} (state: {theirs[k]})" for k in ours if ours[k] != theirs[k]
            )
            raise ValueError(f"{where}: state must come from a model with {different}")
        if self.batch_size != batch:
            raise ValueError(f"{where}: state must have batch size {batch}, got {self.batch_size}")
        if self.grid != grid:
            raise ValueError(f"{where}: state must be of frames of {grid} patches, got {self.grid}")
        if len(self.layers) != config.depth:
            raise ValueError(f"{where}: state must have {config.depth} layers, got {len(self.layers)}")
        tokens = grid[0] * grid[1] + self.query_points.shape[1]
        for i, (h, tail) in enumerate(self.layers):
            check_shape(where, f"state layers.{i}.h", h, (batch, tokens, config.lru_width))
            lead = (batch, config.conv1d_width - 1)
            check_shape(where, f"state layers.{i}.tail", tail, (*lead, tokens, config.lru_width))
        for name, tensor in self.tensors().items():
            check_device(where, f"state {name}", tensor, device)


def _flatten(state: PointTrackerState) -> tuple[list[Any], Any]:
    return [state.layers, state.query_points], (state.config, state.grid, state.step)


def _unflatten(children: Any, context: Any) -> PointTrackerState:
    layers, query_points = children
    return PointTrackerState(context[0], layers, query_points, context[1], context[2])


# So that tree_map, torch.compile and torch.utils.checkpoint see the tensors inside.
_pytree.register_pytree_node(
    PointTrackerState,
    _flatten,
    _unflatten,
    serialized_type_name="trecvit_kernels.PointTrackerState",
)
