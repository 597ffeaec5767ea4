"""Micro-benchmarks of every op, backend and direction: ``pytest benchmarks --benchmark-only``.

These give plain times of one thing each; ratios come from ``python -m benchmarks``, which interleaves.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.ops.calls import backward_of, inference_of
from benchmarks.ops.rooms import Room, rooms
from benchmarks.timing import Work

_SLOW_LOOP = 512  # frames from which the reference's loop over time is left out


def _parameters() -> list[Any]:
    found = []
    for room in rooms():
        for case in room.cases.BENCHMARK_CASES:
            for backend in room.backends:
                if backend == "reference" and getattr(case, "frames", 0) > _SLOW_LOOP:
                    continue
                for direction in ("forward", "backward"):
                    label = f"{room.name}-{case.name}-{backend}-{direction}"
                    found.append(pytest.param(room, case, backend, direction, id=label))
    return found


def _until_done(work: Work) -> Work:
    def run() -> None:
        work()
        torch.cuda.synchronize()

    return run


@pytest.mark.parametrize(("room", "case", "backend", "direction"), _parameters())
def test_op(benchmark: Any, room: Room, case: Any, backend: str, direction: str) -> None:
    reason = device = ""
    for device in ("cpu", "cuda"):
        if not (reason := room.why_not(backend, device)):
            break
    if reason:
        pytest.skip(reason)
    op, arguments = room.function(backend), room.cases.make_inputs(case, device=device)
    with torch.no_grad():
        result = op(**arguments)
    assert result.isfinite().all()
    if direction == "forward":
        work = inference_of(op, arguments)
    else:
        work = backward_of(op, arguments, torch.randn_like(result))
    if device == "cuda":
        work = _until_done(work)
    benchmark.pedantic(work, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:  # --benchmark-disable: one call, no time
        benchmark.extra_info["GB/s"] = round(
            room.nbytes(case, direction) / benchmark.stats.stats.median / 1e9, 2
        )
