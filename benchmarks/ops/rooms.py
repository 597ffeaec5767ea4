"""Every public op with its backends and benchmark cases, found in the ops' own folders: nothing is listed here.

Shared by the suite ``ops`` and the micro-benchmarks of test_ops.py.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import trecvit_kernels as tk
from benchmarks.ops.calls import first
from trecvit_kernels import backends

# What a case has, and how much of it a test of the suite itself keeps.
_SMALL = {"batch": 1, "frames": 8, "channels": 64, "heads": 2, "tokens": 16, "head_dim": 16}
_SMALL_DIMS = {"lanes": (4, 64), "lead": (1, 2)}
_USUAL_CACHE = 2**25  # bytes, where the system does not tell
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20}


@dataclass(frozen=True)
class Room:
    """One op.

    Attributes:
        cases: its module of shapes, inputs and traffic.
        backends: those that it offers, available or not.
        loop: its reference, in plain PyTorch.
    """

    name: str
    cases: ModuleType
    backends: tuple[str, ...]
    loop: Callable[..., Any]

    def available(self, device: str) -> list[str]:
        """Backends whose time on tensors of this device means something, the reference among them."""
        return [name for name in self.backends if not self.why_not(name, device)]

    def why_not(self, backend: str, device: str) -> str:
        """Empty if a backend runs at its own speed on tensors of this device, else why not."""
        try:
            backends.select(self.name, backend, device, self.backends)
        except RuntimeError as error:
            return str(error)
        if device == "cpu" and backend in ("triton", "cuda"):
            return f"{self.name}: backend {backend!r} is interpreted or simulated here, which takes for ever"
        return ""

    def function(self, backend: str) -> Callable[..., Tensor]:
        """The public op on this backend, its first result; arguments by name, as ``cases.make_inputs`` makes them."""

        def run(**arguments: Any) -> Tensor:
            return first(getattr(tk.ops, self.name)(**arguments, backend=backend))

        return run

    def reference(self, **arguments: Any) -> Tensor:
        """The loop that is the op's definition, without the op around it: a compiler can look into it."""
        return first(self.loop(**arguments))

    def nbytes(self, case: Any, direction: str) -> int:
        """Least traffic of "forward", "backward" or "forward + backward"."""
        return sum(self.cases.bytes_moved(case, part) for part in direction.split(" + "))

    def sized(self, dtypes: Sequence[torch.dtype], tiny: bool = False, more: Sequence[Any] = ()) -> list[Any]:
        """BENCHMARK_CASES and ``more`` in each of ``dtypes``, each once; a complex dtype counts as its float32.

        They start at t = 0 (no h0): few peers can continue a sequence. The recurrent mixer's state stays.
        """
        found: dict[Any, Any] = {}
        for case in (*self.cases.BENCHMARK_CASES, *more):
            if hasattr(case, "h0"):
                case = dataclasses.replace(case, h0=False)
            if tiny:
                case = shrunk(case)
            if case.dtype.is_complex:
                wanted = [case.dtype] if torch.float32 in dtypes or case.dtype in dtypes else []
            else:
                wanted = [dtype for dtype in dtypes if not dtype.is_complex]
            for dtype in wanted:
                new = dataclasses.replace(case, dtype=dtype)
                found.setdefault(dataclasses.replace(new, name=""), new)
        return list(found.values())


def rooms() -> list[Room]:
    """All public ops."""
    found = []
    for name in tk.ops.__all__:
        cases, op, reference = (
            importlib.import_module(f"trecvit_kernels.ops.{name}.{part}")
            for part in ("cases", "op", "reference")
        )
        found.append(Room(name, cases, op.BACKENDS, getattr(reference, name)))
    return found


def shrunk(case: Any) -> Any:
    """The same kind of case, small enough for a test of the suite itself."""
    smaller: dict[str, Any] = {
        name: min(getattr(case, name), most) for name, most in _SMALL.items() if hasattr(case, name)
    }
    for name, dims in _SMALL_DIMS.items():
        if hasattr(case, name):
            smaller[name] = dims[: len(getattr(case, name))]
    return dataclasses.replace(case, **smaller)


def last_level_cache() -> int:
    """Bytes of the CPU's largest cache."""
    sizes = [
        (path / "size").read_text().strip() for path in _CACHES.glob("index*") if (path / "size").exists()
    ]
    found = [int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size[-1:] in _UNITS]
    return max(found, default=_USUAL_CACHE)


def input_sets(nbytes: int, device: str, tiny: bool = False) -> int:
    """How many sets of inputs calls take in turn, so that none finds its own in the cache.

    As many as hold twice the last-level cache, at most 64; two in a test. On a GPU one: its clock empties the L2 cache
    before every call.
    """
    if device != "cpu":
        return 1
    return 2 if tiny else max(1, min(64, math.ceil(2 * last_level_cache() / max(nbytes, 1))))


class Turns:
    """Calls that take the next set of inputs each time, whoever calls: ours never warms what its peer reads."""

    def __init__(self) -> None:
        self.calls = 0

    def over(self, works: Sequence[Callable[[], object]]) -> Callable[[], object]:
        """One piece of work out of the same work on several sets."""

        def run() -> object:
            self.calls += 1
            return works[self.calls % len(works)]()

        return run if len(works) > 1 else works[0]


def takes_only(arguments: Mapping[str, Any], **usual: Any) -> bool:
    """Whether these arguments, where they are given at all, have their usual values."""
    return all(arguments.get(name, value) == value for name, value in usual.items())
