"""Which bytes a Triton kernel reads and writes: every load and store of the interpreter, by the memory it touches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Memory:
    """One allocation that kernels were given. loads, stores: how often each element was read and written."""

    storage: torch.UntypedStorage
    itemsize: int
    arguments: set[str] = field(default_factory=set)
    loads: np.ndarray = field(init=False)
    stores: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.loads, self.stores = (np.zeros(len(self.storage) // self.itemsize, np.int64) for _ in range(2))

    @property
    def size(self) -> int:
        """Bytes of the allocation."""
        return len(self.storage)

    @property
    def read(self) -> int:
        """Bytes read, an element as often as it was read."""
        return int(self.loads.sum()) * self.itemsize

    @property
    def written(self) -> int:
        return int(self.stores.sum()) * self.itemsize

    @property
    def touched(self) -> int:
        """Bytes that were read at all, plus bytes that were written at all: what passes through ideal caches."""
        return int((self.loads > 0).sum() + (self.stores > 0).sum()) * self.itemsize

    def of(self, tensor: Tensor) -> bool:
        """Whether the tensor lies here."""
        return tensor.untyped_storage().data_ptr() == self.storage.data_ptr()


class Traffic:
    """What the launches of a ``counted`` block read and wrote."""

    def __init__(self) -> None:
        self.memories: dict[int, Memory] = {}
        self.launches = 0
        self._bases = np.empty(0, np.uint64)

    def of(self, tensor: Tensor) -> Memory:
        return next(memory for memory in self.memories.values() if memory.of(tensor))

    def add(self, arguments: dict[str, Any]) -> None:
        self.launches += 1
        for name, value in arguments.items():
            if not isinstance(value, Tensor) or value.numel() == 0:
                continue
            storage = value.untyped_storage()  # kept: no later tensor gets this address
            memory = self.memories.setdefault(storage.data_ptr(), Memory(storage, value.element_size()))
            memory.arguments.add(name)
            assert memory.itemsize == value.element_size(), f"{name}: one memory seen in two sizes"
        self._bases = np.array(sorted(self.memories), np.uint64)

    def count(self, pointers: np.ndarray, mask: np.ndarray, what: str) -> None:
        addresses = pointers[mask].ravel()
        owners = np.searchsorted(self._bases, addresses, side="right") - 1
        assert (owners >= 0).all(), "an access in front of all tensors"
        for owner in np.unique(owners):
            memory = self.memories[int(self._bases[owner])]
            offsets = addresses[owners == owner] - self._bases[owner]
            elements = (offsets // memory.itemsize).astype(np.int64)
            assert not (offsets % memory.itemsize).any(), f"{memory.arguments}: an access across elements"
            assert elements.max() < len(memory.loads), f"{memory.arguments}: an access behind the tensor"
            np.add.at(getattr(memory, what), elements, 1)


class _Counting:
    """Stands in for the interpreter's own loads and stores."""

    def __init__(self, real: Any, traffic: Traffic) -> None:
        self._real, self._traffic = real, traffic

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: Any) -> np.ndarray:
        self._traffic.count(pointers, mask, "loads")
        return self._real.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> Any:
        self._traffic.count(pointers, mask, "stores")
        return self._real.store(pointers, value, mask)

    def __getattr__(self, name: str) -> Any:
        assert not name.startswith("atomic"), f"{name}: sums must not depend on the order of programs"
        return getattr(self._real, name)


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Count what the kernels launched in the block read and write. Only under TRITON_INTERPRET=1, on the CPU."""
    from triton.runtime import interpreter

    traffic = Traffic()
    real, run = interpreter._interpreter, interpreter.InterpretedFunction.run

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        traffic.add({**dict(zip(self.arg_names, args)), **kwargs})
        return run(self, *args, **kwargs)

    interpreter._interpreter = _Counting(real, traffic)
    interpreter.InterpretedFunction.run = recorded
    try:
        yield traffic
    finally:
        interpreter._interpreter = real
        interpreter.InterpretedFunction.run = run
