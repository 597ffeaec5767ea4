"""Shapes, inputs and traffic of ``linear_scan``, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._layouts import arrange


@dataclass(frozen=True)
class Case:
    """One call. decay: "mixed" (|a| in (0, 1)), "near_one" (1 - |a| to 1e-4), "growing" (|a| up to 1.05)."""

    name: str
    batch: int
    frames: int
    lanes: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    h0: bool = True
    reverse: bool = False
    decay: str = "mixed"
    layout: str = "contiguous"


def make_inputs(case: Case, seed: int = 0, device: str = "cpu") -> dict[str, Tensor | bool | None]:
    """Arguments of ``linear_scan`` by name, random by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.frames, *case.lanes)
    state = state_dtype(case.dtype)
    if case.decay == "near_one":
        magnitude = 1 - 10 ** (-4 * torch.rand(shape, generator=generator, dtype=torch.float64))
    elif case.decay == "growing":
        magnitude = 1.05 * torch.rand(shape, generator=generator, dtype=torch.float64).sqrt()
    else:
        magnitude = torch.rand(shape, generator=generator, dtype=torch.float64)
    if case.dtype.is_complex:
        phase = torch.randn(shape, generator=generator, dtype=torch.float64)
        a = torch.polar(magnitude, phase)
    else:
        sign = torch.where(torch.rand(shape, generator=generator) < 0.9, 1.0, -1.0)
        a = magnitude * sign
    b = torch.randn(shape, generator=generator, dtype=state)
    h0 = torch.randn((case.batch, *case.lanes), generator=generator, dtype=state)
    return {
        "a": arrange(a.to(device, case.dtype), case.layout),
        "b": arrange(b.to(device, case.dtype), case.layout),
        "h0": h0.to(device) if case.h0 else None,
        "reverse": case.reverse,
    }


def bytes_moved(case: Case, direction: str) -> int:
    """Least traffic: forward reads a, b and writes h; backward reads a, b, dh and writes da, db."""
    size = torch.empty(0, dtype=case.dtype).element_size()
    elements = case.batch * case.frames * torch.Size(case.lanes).numel()
    return elements * size * {"forward": 3, "backward": 5}[direction]


_DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f64": torch.float64,
    "c64": torch.complex64,
    "c128": torch.complex128,
}


def _cases() -> list[Case]:
    cases = []
    for label, dtype in _DTYPES.items():
        cases.append(Case(f"video-{label}", 2, 20, (5, 24), dtype))
        cases.append(Case(f"start-reverse-{label}", 2, 33, (3, 16), dtype, h0=False, reverse=True))
        cases.append(Case(f"long-{label}", 1, 300, (2, 8), dtype, decay="near_one"))
    f32, c64, bf16 = torch.float32, torch.complex64, torch.bfloat16
    cases += [
        Case("one-frame", 3, 1, (4, 8)),
        Case("one-lane", 1, 70, (1,)),
        Case("no-lanes", 2, 40, ()),
        Case("deep-lanes", 2, 18, (3, 2, 2, 5)),
        Case("odd", 3, 17, (7, 13), reverse=True),
        Case("chunk-edge-16", 1, 16, (2, 8)),
        Case("chunk-edge-32", 2, 32, (2, 8), reverse=True),
        Case("growing", 1, 90, (2, 9), decay="growing"),
        Case("growing-complex", 1, 90, (2, 9), c64, decay="growing", reverse=True),
        Case("long-reverse", 1, 260, (4,), f32, decay="near_one", reverse=True),
        Case("long-reverse-complex", 1, 260, (4,), c64, decay="near_one", reverse=True),
        Case("empty-batch", 0, 9, (3, 8)),
        Case("empty-lanes", 2, 9, (0, 8)),
        Case("wide", 1, 34, (700,)),
    ]
    for index, layout in enumerate(
        (
            "sliced",
            "shifted",
            "gapped",
            "time_first",
            "time_last",
            "swapped",
            "expanded_batch",
            "expanded_time",
        )
    ):
        dtype = (f32, bf16, c64)[index % 3]
        cases.append(Case(f"{layout}", 2, 19, (3, 10), dtype, layout=layout, reverse=index % 2 == 1))
    return cases


CASES = _cases()
BENCHMARK_CASES = [
    Case("video-T32", 1, 32, (196, 768)),
    Case("video-T32-complex", 1, 32, (196, 384), torch.complex64),
    Case("long-T4096", 1, 4096, (1, 256)),
    Case("long-T4096-complex", 1, 4096, (1, 128), torch.complex64),
]
