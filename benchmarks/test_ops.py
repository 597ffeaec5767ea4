"""Micro-benchmarks of every op, backend and direction: ``pytest benchmarks --benchmark-only``.

These give plain times of one thing each; ratios come from ``python -m benchmarks``, which interleaves.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import trecvit_kernels as tk

OPS = ("linear_scan", "gated_lru", "recurrent_mixer", "spatial_attention")
_SLOW_LOOP = 512  # frames from which the reference's loop over time is left out


def _parameters() -> list[Any]:
    found = []
    for name in OPS:
        cases = importlib.import_module(f"trecvit_kernels.ops.{name}.cases")
        op = importlib.import_module(f"trecvit_kernels.ops.{name}.op")
        for case in cases.BENCHMARK_CASES:
            for backend in op.BACKENDS:
                if backend == "reference" and getattr(case, "frames", 0) > _SLOW_LOOP:
                    continue
                for direction in ("forward", "backward"):
                    label = f"{name}-{case.name}-{backend}-{direction}"
                    found.append(pytest.param(name, cases, case, backend, direction, id=label))
    return found


def _leaves(value: Any) -> Any:
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return value.detach().requires_grad_()
    return tuple(_leaves(part) for part in value) if isinstance(value, tuple) else value


def _first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


@pytest.mark.parametrize(("name", "cases", "case", "backend", "direction"), _parameters())
def test_op(benchmark: Any, name: str, cases: Any, case: Any, backend: str, direction: str) -> None:
    status = tk.backends.available()[backend]
    if not status.available:
        pytest.skip(f"{backend}: {status.reason}")
    op, arguments = getattr(tk.ops, name), cases.make_inputs(case)
    if direction == "forward":
        result = _first(op(**arguments, backend=backend))
        benchmark.pedantic(lambda: op(**arguments, backend=backend), rounds=5, warmup_rounds=1)
    else:
        arguments = {key: _leaves(value) for key, value in arguments.items()}
        leaves = [
            t for t in torch.utils._pytree.tree_leaves(arguments) if isinstance(t, Tensor) and t.requires_grad
        ]
        result = _first(op(**arguments, backend=backend))
        dy = torch.randn_like(result)

        def backward() -> None:
            torch.autograd.grad(result, leaves, dy, retain_graph=True, allow_unused=True)

        benchmark.pedantic(backward, rounds=5, warmup_rounds=1)
    assert result.isfinite().all()
    moved = cases.bytes_moved(case, direction)
    benchmark.extra_info["GB/s"] = round(moved / benchmark.stats.stats.median / 1e9, 2)
