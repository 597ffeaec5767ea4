"""The peak of a GPU's caching allocator in one step, to be held against what is tracked under fake tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from trecvit_kernels import accounting


class Counter(Protocol):
    """An allocator's own counters, in bytes."""

    def held(self) -> int: ...

    def peak(self) -> int:
        """Most that was held since ``reset``."""
        ...

    def reset(self) -> None: ...


class Cuda:
    """Those of PyTorch's caching allocator on the current GPU; they are exact as soon as a call is enqueued."""

    def held(self) -> int:
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()


def peak(
    build: Callable[[], nn.Module],
    video: Callable[[], Tensor],
    counter: Counter,
    *,
    training: bool = True,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
) -> dict[str, int]:
    """Bytes at the peak of one step of ``accounting.training_step``, as ``accounting.memory`` means it.

    The step runs twice and counts the second time: what PyTorch allocates once and keeps, such as the workspace of
    matrix products, is there then and belongs to no tensor. It is taken off, and so is what was held before.

    Args:
        build, video: make the model, in the mode in which it shall run, and its input on the counted device.
        counter: of that device's allocator.
        training, optimizer: as in ``accounting.memory``, the optimizer still to be made of the parameters; its states
            are those of the second step.

    Returns:
        "allocator": the peak. "workspace": what was taken off.
    """
    gc.collect()
    before = counter.held()
    model, clip = build(), video()
    stepper = optimizer(model.parameters()) if optimizer is not None else None
    made = counter.held()
    accounting.training_step(model, clip, training=training, optimizer=stepper)
    model.zero_grad(set_to_none=True)
    gc.collect()
    states = _states(stepper, clip.device)
    workspace = counter.held() - made - states
    counter.reset()
    accounting.training_step(model, clip, training=training, optimizer=stepper)
    return {"allocator": counter.peak() - before - workspace, "workspace": workspace}


def _states(optimizer: torch.optim.Optimizer | None, device: torch.device) -> int:
    """Bytes of an optimizer's states on the device, rounded as by a GPU's allocator."""
    if optimizer is None:
        return 0
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(-(-t.untyped_storage().nbytes() // 512) * 512 for t in tensors if t.device == device)
