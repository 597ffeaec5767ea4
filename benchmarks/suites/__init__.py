"""What can be measured: a module a suite, each with ``rows(at)``, an iterator over what `benchmarks.rows` describes.

Every row is made when the iterator is asked for it, since its tensors may be large.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import PyTorch, which the command's --help does not need
    from benchmarks.rows import Comparison, Counted, Measurement
    from benchmarks.setting import Setting

# What is quick comes first, so that a mistake in the machine's setup shows early.
SUITES = {
    "flops": "FLOPs and parameters of TRecViT and of other video models",
    "memory": "peak memory and what it holds, over frames and resolution",
    "ops": "every op, backend and dtype against its peers and a copy of the same bytes",
    "model": "layer, forward and training step against other models and the floor",
    "streaming": "frames/s, latency per frame and memory of a long stream",
    "scaling": "time and memory as frames, tokens and batch grow",
    "integrations": "our kernels inside other people's models",
}


def rows(name: str) -> Callable[[Setting], Iterator[Comparison | Counted | Measurement]]:
    """The suite's generator of rows. ImportError if a package that it needs is missing (``error.name`` names it)."""
    return importlib.import_module(f"benchmarks.suites.{name}").rows
