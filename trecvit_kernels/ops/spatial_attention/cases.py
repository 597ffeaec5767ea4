"""Shapes, inputs and traffic of ``spatial_attention``, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._layouts import arrange


@dataclass(frozen=True)
class Case:
    """One call on (*lead, tokens, 3 heads head_dim). spread: standard deviation of the inputs."""

    name: str
    lead: tuple[int, ...]
    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    scale: float | None = None
    layout: str = "contiguous"
    spread: float = 1.0


def make_inputs(case: Case, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Arguments of ``spatial_attention`` by name, random by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*case.lead, case.tokens, 3 * case.heads * case.head_dim)
    qkv = case.spread * torch.randn(shape, generator=generator, dtype=state_dtype(case.dtype))
    return {
        "qkv": arrange(qkv.to(device, case.dtype), case.layout),
        "num_heads": case.heads,
        "scale": case.scale,
    }


def bytes_moved(case: Case, direction: str) -> int:
    """Least traffic: forward reads q, k, v, writes o; backward reads q, k, v, o, do, writes dq, dk, dv."""
    size = torch.empty(0, dtype=case.dtype).element_size()
    elements = torch.Size(case.lead).numel() * case.tokens * case.heads * case.head_dim
    return elements * size * {"forward": 4, "backward": 8}[direction]


def _cases() -> list[Case]:
    cases = []
    for label, dtype in (
        ("f32", torch.float32),
        ("bf16", torch.bfloat16),
        ("f16", torch.float16),
        ("f64", torch.float64),
    ):
        cases += [
            Case(f"video-{label}", (2, 3), 17, 2, 16, dtype),
            Case(f"scaled-{label}", (2, 1), 33, 3, 8, dtype, scale=0.7),
        ]
    cases += [
        Case("patches-196", (1, 2), 196, 2, 64),
        Case("patches-and-cls", (1, 1), 197, 3, 64, torch.bfloat16),
        Case("peaked", (1, 2), 20, 2, 16, spread=8.0),
        Case("no-frames-dim", (), 12, 2, 8),
        Case("one-token", (2, 3), 1, 2, 8),
        Case("one-frame", (1, 1), 9, 1, 8),
        Case("odd", (3, 1), 7, 3, 5),
        Case("deep-lead", (2, 1, 3), 6, 2, 4),
        Case("empty-batch", (0, 3), 9, 2, 8),
        Case("no-tokens", (2, 3), 0, 2, 8),
        Case("no-tokens-bf16", (2, 3), 0, 2, 8, torch.bfloat16),
    ]
    for layout in (
        "sliced",
        "shifted",
        "gapped",
        "time_first",
        "time_last",
        "swapped",
        "expanded_batch",
        "expanded_time",
    ):
        cases.append(Case(layout, (2, 3), 10, 2, 8, layout=layout))
    return cases


CASES = _cases()
BENCHMARK_CASES = [
    Case("base-8f", (1, 8), 196, 12, 64),
    Case("base-8f-cls", (1, 8), 197, 12, 64),
    Case("base-8f-bf16", (1, 8), 196, 12, 64, torch.bfloat16),
]
