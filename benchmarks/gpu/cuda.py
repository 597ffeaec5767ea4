"""Rows of the CUDA kernels, beside the Triton kernels and copies of the floors; under ``backends.use("cuda")``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import trecvit_kernels as tk
from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu.rows import Setting
from benchmarks.ops.calls import backward_of, inference_of, row_label
from benchmarks.ops.checks import check_attention, check_gated_lru, check_linear_scan
from benchmarks.rows import Comparison, Peer
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
    inputs: Sequence[Tensor | None]
    dy: Tensor
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
        for direction, make in (
            ("forward", inference_of),
            ("backward", functools.partial(backward_of, dy=call.dy)),
        ):
            yield Comparison(
                "ops",
                label(direction),
                make(call.function, call.inputs),
                [Peer("the Triton kernel", make(triton, call.inputs))],
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
    for case in gpu_rows.GATED_LRU:
        case = at.sized(case, batch=1, frames=min(case.frames, 64), lanes=(2,), channels=64)
        made = gated_lru_cases.make_inputs(case, device=at.device)
        inputs = [made[name] for name in ("x", "gate_x", "gate_a", "a_param", "a_imag")]
        check = functools.cache(functools.partial(check_gated_lru, inputs))
        label = functools.partial(row_label, "gated_lru", case)
        dy = torch.randn_like(inputs[0])
        yield _Call(label, gated_lru_cases, case, _gated_lru, inputs, dy, check, (0.85, 0.80))
    for case in (*gpu_rows.LINEAR_SCAN, LONG_SCAN):
        target = 0.85 if case is LONG_SCAN else None
        case = at.sized(case, batch=1, frames=64, lanes=(4,))
        made = linear_scan_cases.make_inputs(case, device=at.device)
        a, b = made["a"], made["b"]
        check = functools.cache(functools.partial(check_linear_scan, a, b))
        label = functools.partial(row_label, "linear_scan", case)
        yield _Call(
            label, linear_scan_cases, case, _linear_scan, [a, b], torch.randn_like(b), check, (target, None)
        )
    for case in gpu_rows.ATTENTION:
        case = at.sized(case, lead=(1, 2), heads=2)
        qkv = attention_cases.make_inputs(case, device=at.device)["qkv"]
        heads = case.heads
        check = functools.cache(functools.partial(check_attention, qkv, heads))
        dout = torch.randn(*qkv.shape[:-1], qkv.shape[-1] // 3, dtype=qkv.dtype, device=qkv.device)
        label = functools.partial(row_label, "spatial_attention", case)
        function = functools.partial(_attention, heads=heads)
        yield _Call(label, attention_cases, case, function, [qkv], dout, check, (0.75, None))
    for case in gpu_rows.MIXER:
        case = at.sized(case, batch=1, frames=18, lanes=(3,), channels=64, heads=2)
        made = mixer_cases.make_inputs(case, device=at.device)
        inputs = [made[name] for name in gpu_rows.MIXER_INPUTS]
        check = functools.cache(functools.partial(gpu_rows.check_mixer, inputs))
        label = functools.partial(row_label, "recurrent_mixer", case)
        yield _Call(label, mixer_cases, case, _mixer, inputs, torch.randn_like(inputs[0]), check)


def _steps(at: Setting) -> Iterator[Comparison]:
    """One streamed frame at batch 1: latency."""
    for case in _STEPS:
        case = at.sized(case, lanes=(3,), channels=64, heads=2)
        made = mixer_cases.make_inputs(case, device=at.device)
        inputs, state = [made[name] for name in gpu_rows.MIXER_INPUTS], made["state"]
        step = functools.partial(_mixer, state=state)
        yield Comparison(
            "ops",
            f"CUDA {row_label('recurrent_mixer', case, 'step')}",
            inference_of(step, inputs),
            [Peer("the Triton kernel", inference_of(functools.partial(step, backend="triton"), inputs))],
            functools.cache(functools.partial(gpu_rows.check_mixer, inputs)),
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
