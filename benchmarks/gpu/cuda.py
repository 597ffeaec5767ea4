"""Rows of the CUDA kernels, beside the Triton kernels and copies of the floors; under ``backends.use("cuda")``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import trecvit_kernels as tk
from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu.once import Once, lazily
from benchmarks.gpu.rows import Setting
from benchmarks.ops.calls import inference_of, row_label
from benchmarks.ops.checks import check_attention, check_gated_lru, check_linear_scan
from benchmarks.rows import Comparison, Peer
from benchmarks.timing import Work
from trecvit_kernels.ops.gated_lru import cases as gated_lru_cases
from trecvit_kernels.ops.linear_scan import cases as linear_scan_cases
from trecvit_kernels.ops.recurrent_mixer import cases as mixer_cases
from trecvit_kernels.ops.spatial_attention import cases as attention_cases

LONG_SCAN = linear_scan_cases.Case("long-wide", 8, 65_536, (1536,), h0=False)
_STEPS = [
    mixer_cases.Case("step", 1, 1, (196,), 768, 12, dtype=torch.bfloat16, state=True, layout="halves"),
    mixer_cases.Case("step-wide", 1, 1, (196,), 1536, 12, dtype=torch.bfloat16, state=True, layout="halves"),
]
# The default keeps a backend's place where it is at most 5 % slower than the other.
_AS_FAST = 0.95


@dataclass(frozen=True)
class _Call:
    """An op at one size. shares: of the copy's bandwidth to be reached, forward and backward; None: no target."""

    label: Callable[[str], str]
    cases: Any
    case: Any
    function: Callable[..., Tensor]  # takes backend=, too
    inputs: gpu_rows.Inputs
    dy: gpu_rows.Gradient
    check: Callable[[], str]
    shares: tuple[float | None, float | None] = (None, None)


def cuda(at: Setting) -> Iterator[Comparison]:
    """Forward and backward of all ops, and the one-launch streaming step."""
    for call in _calls(at):
        label = functools.partial(_cuda_label, call.label)
        yield from gpu_rows.versus_copy(
            at, label, call.cases, call.case, call.function, call.inputs, call.dy, call.check, call.shares
        )
        triton = functools.partial(call.function, backend="triton")
        for direction in ("forward", "backward"):
            ours, theirs = (
                gpu_rows.work_of(direction, function, call.inputs, call.dy)
                for function in (call.function, triton)
            )
            yield Comparison(
                "ops",
                label(direction),
                ours,
                [Peer("the Triton kernel", theirs)],
                call.check,
                limit=_AS_FAST,
                nbytes=call.cases.bytes_moved(call.case, direction),
                budget=at.budget,
                tolerance=gpu_rows.ROUNDED,
            )
    yield from _steps(at)


def _cuda_label(label: Callable[[str], str], direction: str) -> str:
    return f"CUDA {label(direction)}"


def _calls(at: Setting) -> Iterator[_Call]:
    for gated in gpu_rows.GATED_LRU:
        small = {"batch": 1, "frames": min(gated.frames, 64), "lanes": (2,), "channels": 64}
        yield _gated_lru_call(at, at.sized(gated, **small))
    for scan in (*gpu_rows.LINEAR_SCAN, LONG_SCAN):
        target = 0.85 if scan is LONG_SCAN else None
        yield _linear_scan_call(at, at.sized(scan, batch=1, frames=64, lanes=(4,)), target)
    for attention in gpu_rows.ATTENTION:
        yield _attention_call(at, at.sized(attention, lead=(1, 2), heads=2))
    for mixer in gpu_rows.MIXER:
        yield _mixer_call(at, at.sized(mixer, batch=1, frames=18, lanes=(3,), channels=64, heads=2))


def _gated_lru_call(at: Setting, case: gated_lru_cases.Case) -> _Call:
    inputs = at.inputs(gated_lru_cases, case, "x", "gate_x", "gate_a", "a_param", "a_imag")
    check = Once(lambda: check_gated_lru(inputs()))
    label = functools.partial(row_label, "gated_lru", case)
    dy = gpu_rows.like(inputs)
    return _Call(label, gated_lru_cases, case, _gated_lru, inputs, dy, check, (0.85, 0.80))


def _linear_scan_call(at: Setting, case: linear_scan_cases.Case, target: float | None) -> _Call:
    inputs = at.inputs(linear_scan_cases, case, "a", "b")
    check = Once(lambda: check_linear_scan(*inputs()))
    label = functools.partial(row_label, "linear_scan", case)
    dy = gpu_rows.like(inputs, 1)
    return _Call(label, linear_scan_cases, case, _linear_scan, inputs, dy, check, (target, None))


def _attention_call(at: Setting, case: attention_cases.Case) -> _Call:
    inputs = at.inputs(attention_cases, case, "qkv")
    check = Once(lambda: check_attention(inputs()[0], case.heads))
    label = functools.partial(row_label, "spatial_attention", case)
    function, dout = functools.partial(_attention, heads=case.heads), gpu_rows.thirds_like(inputs)
    return _Call(label, attention_cases, case, function, inputs, dout, check, (0.75, None))


def _mixer_call(at: Setting, case: mixer_cases.Case) -> _Call:
    inputs = at.inputs(mixer_cases, case, *gpu_rows.MIXER_INPUTS)
    check = Once(lambda: gpu_rows.check_mixer(inputs()))
    label = functools.partial(row_label, "recurrent_mixer", case)
    return _Call(label, mixer_cases, case, _mixer, inputs, gpu_rows.like(inputs), check)


def _steps(at: Setting) -> Iterator[Comparison]:
    """One streamed frame at batch 1: latency."""
    for case in _STEPS:
        yield _step(at, at.sized(case, lanes=(3,), channels=64, heads=2))


def _step(at: Setting, case: mixer_cases.Case) -> Comparison:
    made = at.inputs(mixer_cases, case, *gpu_rows.MIXER_INPUTS, "state")

    def work(**backend: str) -> Work:
        return inference_of(functools.partial(_mixer, state=made()[-1], **backend), made()[:-1])

    return Comparison(
        "ops",
        f"CUDA {row_label('recurrent_mixer', case, 'step')}",
        lazily(work),
        [Peer("the Triton kernel", lazily(functools.partial(work, backend="triton")))],
        Once(lambda: gpu_rows.check_mixer(made()[:-1])),
        limit=_AS_FAST,
        budget=at.budget,
        tolerance=gpu_rows.ROUNDED,
    )


def _gated_lru(*tensors: Tensor | None, backend: str = "cuda") -> Tensor:
    return tk.ops.gated_lru(*tensors, backend=backend)[0]  # type: ignore[arg-type]


def _linear_scan(a: Tensor, b: Tensor, backend: str = "cuda") -> Tensor:
    return tk.ops.linear_scan(a, b, backend=backend)[0]


def _attention(qkv: Tensor, heads: int, backend: str = "cuda") -> Tensor:
    return tk.ops.spatial_attention(qkv, heads, backend=backend)


def _mixer(*tensors: Tensor, backend: str = "cuda", **more: Any) -> Tensor:
    return tk.ops.recurrent_mixer(*tensors, **more, backend=backend)[0]
