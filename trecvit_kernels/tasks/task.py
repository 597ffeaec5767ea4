"""What the training program has to know of a task."""

from __future__ import annotations

import abc
from collections.abc import Iterable

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Task(abc.ABC):
    """A model, its loss on a batch, and its measures.

    A task is a frozen dataclass whose fields are the options of the configuration file; ``__post_init__`` refuses
    impossible ones by name. A batch holds ``video`` (B, T, 3, H, W), uint8 or floating in [0, 1], and what else the
    task names in ``needs``.
    """

    needs: tuple[str, ...] = ("video",)

    @property
    def classes(self) -> int | None:
        """How many classes labels can name; None: the task has no use for labels."""
        return None

    def check_clips(self, prefix: str, frames: int, size: tuple[int, int], *, training: bool) -> None:
        """ValueError unless clips of ``frames`` frames of ``size`` (height, width) fit the task's model.

        Args:
            prefix: of the keys in the configuration, "data." or "data.validation_", for the message.
            training: whether these are clips to train on or to be evaluated.
        """
        return None

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """A new model with random weights; the caller has seeded PyTorch."""

    @abc.abstractmethod
    def loss(
        self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to be minimised, and detached scalars to be logged.

        Args:
            generator: for what the task draws at random (masks), so that a resumed run draws the same.
        """

    @abc.abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Measures over all batches, model in evaluation mode and without gradients."""


def check_image_size(prefix: str, expected: tuple[int, int], size: tuple[int, int]) -> None:
    """ValueError unless frames have the (height, width) of the model's configuration."""
    if tuple(size) != tuple(expected):
        raise ValueError(f"{prefix}size must be the model's image_size {tuple(expected)}, got {tuple(size)}")
