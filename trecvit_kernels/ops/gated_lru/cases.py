"""Shapes, inputs and traffic of ``gated_lru``, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._layouts import arrange

RESETS = ("none", "random", "first", "last", "chunks", "all")


@dataclass(frozen=True)
class Case:
    """One call. channels counts those of x: gates and parameters have half as many if complex.

    gates: "typical" (normal), "saturated" (to +-30). decay: "typical" (TRecViT's start: |a| = radius^(8 r),
    radius 0.6 to 0.999), "near_one" (1 - |a| down to 1e-7), "extreme" (a_param from -30 to 30).
    parameters: dtype of a_param and a_imag, None for the dtype of the state.
    """

    name: str
    batch: int
    frames: int
    lanes: tuple[int, ...]
    channels: int
    dtype: torch.dtype = torch.float32
    complex: bool = False
    h0: bool = True
    reset: str = "none"
    normalizer: str = "sqrt"
    gates: str = "typical"
    decay: str = "typical"
    layout: str = "contiguous"
    parameters: torch.dtype | None = None


def make_reset(kind: str, batch: int, frames: int, generator: torch.Generator) -> Tensor | None:
    """Reset mask (batch, frames) of a kind in ``RESETS``; None for "none"."""
    if kind == "none":
        return None
    reset = torch.zeros(batch, frames, dtype=torch.bool)
    if kind == "random":
        return torch.rand(batch, frames, generator=generator) < 0.2
    if kind == "first":
        reset[:, 0] = True
    elif kind == "last":
        reset[:, -1] = True
    elif kind == "chunks":  # where kernels cut time
        reset[:, ::16] = True
    elif kind == "all":
        reset[:] = True
    else:
        raise ValueError(f"make_reset: kind must be one of {', '.join(RESETS)}, got {kind!r}")
    return reset


def make_a_param(decay: str, channels: int, generator: torch.Generator) -> Tensor:
    """Lambda (channels), float64."""
    uniform = torch.rand(channels, generator=generator, dtype=torch.float64)
    if decay == "extreme":
        return -30 + 60 * uniform
    if decay == "near_one":
        softplus = 10 ** (-7 + 3 * uniform) / 8
    else:
        softplus = -0.5 * torch.log(uniform * (0.999**2 - 0.6**2) + 0.6**2)
    return torch.log(torch.expm1(softplus))


def make_inputs(case: Case, seed: int = 0, device: str = "cpu") -> dict[str, Tensor | str | None]:
    """Arguments of ``gated_lru`` by name, random by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    gates = case.channels // 2 if case.complex else case.channels
    state = state_dtype(case.dtype)
    parameters = case.parameters or state

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=state)

    lead = (case.batch, case.frames, *case.lanes)
    gate_scale = 10.0 if case.gates == "saturated" else 1.5
    x = normal(*lead, case.channels)
    gate_x, gate_a = gate_scale * normal(*lead, gates), gate_scale * normal(*lead, gates)
    a_param = make_a_param(case.decay, gates, generator)
    a_imag = torch.rand(gates, generator=generator, dtype=torch.float64) * 3.0 if case.complex else None
    h0 = normal(case.batch, *case.lanes, case.channels) if case.h0 else None
    reset = make_reset(case.reset, case.batch, case.frames, generator)
    return {
        "x": arrange(x.to(device, case.dtype), case.layout),
        "gate_x": arrange(gate_x.to(device, case.dtype), case.layout),
        "gate_a": arrange(gate_a.to(device, case.dtype), case.layout),
        "a_param": a_param.to(device, parameters),
        "a_imag": None if a_imag is None else a_imag.to(device, parameters),
        "h0": None if h0 is None else h0.to(device),
        "reset": None if reset is None else reset.to(device),
        "normalizer": case.normalizer,
    }


def bytes_moved(case: Case, direction: str) -> int:
    """Least traffic: forward reads x and gates, writes y; backward reads those and dy, writes 3 gradients."""
    size = torch.empty(0, dtype=case.dtype).element_size()
    rows = case.batch * case.frames * torch.Size(case.lanes).numel()
    gates = case.channels // 2 if case.complex else case.channels
    widths = {"forward": 2 * case.channels + 2 * gates, "backward": 3 * case.channels + 4 * gates}
    return rows * size * widths[direction]


_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}


def _cases() -> list[Case]:
    cases = []
    for label, dtype in _DTYPES.items():
        for kind, is_complex in (("real", False), ("complex", True)):
            name = f"{kind}-{label}"
            cases += [
                Case(f"video-{name}", 2, 20, (5,), 24, dtype, is_complex),
                Case(f"start-{name}", 2, 17, (3,), 32, dtype, is_complex, h0=False),
                Case(f"resets-{name}", 2, 40, (2,), 12, dtype, is_complex, reset="random"),
                Case(f"convex-{name}", 1, 35, (3,), 16, dtype, is_complex, normalizer="convex", h0=False),
                Case(f"near-one-{name}", 1, 130, (2,), 8, dtype, is_complex, decay="near_one"),
                Case(f"saturated-{name}", 1, 24, (4,), 16, dtype, is_complex, gates="saturated"),
            ]
    for kind, is_complex in (("real", False), ("complex", True)):
        c: dict[str, Any] = {"complex": is_complex}
        cases += [
            Case(f"one-frame-{kind}", 3, 1, (4,), 8, **c),
            Case(f"one-frame-start-{kind}", 3, 1, (4,), 8, h0=False, **c),
            Case(f"one-channel-{kind}", 1, 50, (), 1 + is_complex, **c),
            Case(f"one-token-{kind}", 2, 130, (1,), 16, **c),
            Case(f"deep-lanes-{kind}", 2, 18, (3, 2, 2), 10, **c),
            Case(f"odd-{kind}", 3, 17, (7,), 26 if is_complex else 13, **c),
            Case(f"reset-first-{kind}", 2, 33, (2,), 8, reset="first", **c),
            Case(f"reset-last-{kind}", 2, 33, (2,), 8, reset="last", **c),
            Case(f"reset-chunks-{kind}", 2, 65, (2,), 8, reset="chunks", **c),
            Case(f"reset-all-{kind}", 1, 18, (2,), 8, reset="all", **c),
            Case(f"reset-no-h0-{kind}", 2, 20, (2,), 8, reset="random", h0=False, **c),
            Case(f"reset-convex-{kind}", 2, 20, (2,), 8, reset="random", normalizer="convex", **c),
            Case(f"extreme-{kind}", 1, 40, (2,), 24, decay="extreme", gates="saturated", **c),
            Case(f"extreme-convex-{kind}", 1, 40, (2,), 24, decay="extreme", normalizer="convex", **c),
            Case(f"low-parameters-{kind}", 2, 20, (2,), 8, torch.bfloat16, parameters=torch.bfloat16, **c),
            Case(f"empty-batch-{kind}", 0, 9, (3,), 8, **c),
            Case(f"empty-lanes-{kind}", 2, 9, (0,), 8, **c),
            Case(f"wide-{kind}", 1, 34, (3,), 300, **c),
        ]
    layouts = (
        "sliced",
        "shifted",
        "gapped",
        "time_first",
        "time_last",
        "swapped",
        "expanded_batch",
        "expanded_time",
        "expanded_lanes",
    )
    for index, layout in enumerate(layouts):
        dtype = (torch.float32, torch.bfloat16)[index % 2]
        cases.append(Case(f"{layout}-real", 2, 19, (3, 2), 10, dtype, layout=layout, reset="random"))
        cases.append(Case(f"{layout}-complex", 2, 19, (3, 2), 12, torch.float32, True, layout=layout))
    return cases


CASES = _cases()
BENCHMARK_CASES = [
    Case("T16-768", 1, 16, (196,), 768, h0=False),
    Case("T32-1536", 1, 32, (196,), 1536, h0=False),
    Case("T4096-256", 4, 4096, (1,), 256, h0=False),
    Case("T16-768-complex", 1, 16, (196,), 768, complex=True, h0=False),
    Case("T32-1536-complex", 1, 32, (196,), 1536, complex=True, h0=False),
    Case("T4096-256-complex", 4, 4096, (1,), 256, complex=True, h0=False),
    Case("T32-1536-bf16", 1, 32, (196,), 1536, torch.bfloat16, h0=False),
]
