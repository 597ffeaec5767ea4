"""Shapes, inputs and traffic of ``recurrent_mixer``, for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._layouts import arrange
from trecvit_kernels.ops.gated_lru.cases import make_a_param, make_reset


@dataclass(frozen=True)
class Case:
    """One call. layout "halves": u and v are the halves of one projection, as in the model.

    reset, gates and decay as in ``gated_lru``; parameters: dtype of all parameters, None for the dtype of u.
    """

    name: str
    batch: int
    frames: int
    lanes: tuple[int, ...]
    channels: int
    heads: int = 2
    taps: int = 4
    dtype: torch.dtype = torch.float32
    complex: bool = False
    state: bool = True
    reset: str = "none"
    gates: str = "typical"
    decay: str = "typical"
    layout: str = "contiguous"
    parameters: torch.dtype | None = None


def make_inputs(case: Case, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Arguments of ``recurrent_mixer`` by name, random by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    gates = case.channels // 2 if case.complex else case.channels
    block, out = case.channels // case.heads, gates // case.heads
    state = state_dtype(case.dtype)
    parameters = case.parameters or case.dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=state)

    shape = (case.batch, case.frames, *case.lanes, case.channels)
    gate_scale = 20.0 if case.gates == "saturated" else 1.5
    if case.layout == "halves":
        both = normal(*shape[:-1], 2 * case.channels).to(device, case.dtype)
        u, v = both[..., : case.channels], both[..., case.channels :]
    else:
        u, v = (arrange(normal(*shape).to(device, case.dtype), case.layout) for _ in range(2))
    weights = {
        "conv_weight": normal(case.taps, case.channels) * (1.0 / case.taps) ** 0.5,
        "conv_bias": normal(case.channels) * 0.3,
        "gate_x_weight": normal(case.heads, block, out) * gate_scale / block**0.5,
        "gate_x_bias": normal(case.heads, out),
        "gate_a_weight": normal(case.heads, block, out) * gate_scale / block**0.5,
        "gate_a_bias": normal(case.heads, out),
        "a_param": make_a_param(case.decay, gates, generator),
    }
    a_imag = torch.rand(gates, generator=generator, dtype=torch.float64) * 3.0 if case.complex else None
    h0 = normal(case.batch, *case.lanes, case.channels)
    tail = normal(case.batch, case.taps - 1, *case.lanes, case.channels)
    reset = make_reset(case.reset, case.batch, case.frames, generator)
    return {
        "u": u,
        "v": v,
        **{name: weight.to(device, parameters) for name, weight in weights.items()},
        "a_imag": None if a_imag is None else a_imag.to(device, parameters),
        "state": (h0.to(device), tail.to(device, case.dtype)) if case.state else None,
        "reset": None if reset is None else reset.to(device),
    }


def bytes_moved(case: Case, direction: str) -> int:
    """Least traffic: forward reads u, v, writes z; backward reads u, v, dz, writes du, dv; plus weights."""
    size = torch.empty(0, dtype=case.dtype).element_size()
    weight_size = torch.empty(0, dtype=case.parameters or case.dtype).element_size()
    elements = case.batch * case.frames * torch.Size(case.lanes).numel() * case.channels
    gates = case.channels // 2 if case.complex else case.channels
    weights = 2 * case.channels // case.heads * gates
    tensors, passes = {"forward": (3, 1), "backward": (5, 2)}[direction]
    return tensors * elements * size + passes * weights * weight_size


_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}


def _cases() -> list[Case]:
    cases = []
    for label, dtype in _DTYPES.items():
        for kind, is_complex in (("real", False), ("complex", True)):
            c: dict[str, Any] = {"dtype": dtype, "complex": is_complex}
            name = f"{kind}-{label}"
            cases += [
                Case(f"video-{name}", 2, 20, (5,), 24, layout="halves", **c),
                Case(f"start-{name}", 2, 17, (3,), 32, heads=4, state=False, **c),
                Case(f"resets-{name}", 2, 37, (2,), 12, reset="random", **c),
            ]
    for kind, is_complex in (("real", False), ("complex", True)):
        c = {"complex": is_complex}
        cases += [
            Case(f"near-one-{kind}", 1, 90, (2,), 8, decay="near_one", **c),
            Case(f"saturated-{kind}", 1, 24, (4,), 16, gates="saturated", **c),
            Case(f"one-frame-{kind}", 3, 1, (4,), 8, **c),
            Case(f"one-frame-start-{kind}", 3, 1, (4,), 8, state=False, **c),
            Case(f"two-frames-{kind}", 1, 2, (3,), 8, **c),  # fewer frames than the tail
            Case(f"two-frames-reset-{kind}", 1, 2, (3,), 8, reset="last", **c),
            Case(f"one-tap-{kind}", 1, 18, (3,), 8, taps=1, **c),
            Case(f"two-taps-{kind}", 1, 18, (3,), 8, taps=2, reset="random", **c),
            Case(f"seven-taps-{kind}", 1, 5, (3,), 8, taps=7, reset="random", **c),
            Case(f"one-head-{kind}", 2, 18, (3,), 10, heads=1, **c),
            Case(f"odd-{kind}", 3, 17, (7,), 78 if is_complex else 39, heads=3, **c),
            Case(f"deep-lanes-{kind}", 2, 18, (3, 2), 8, **c),
            Case(f"no-lanes-{kind}", 2, 70, (), 8, **c),
            Case(f"reset-last-{kind}", 2, 33, (2,), 8, reset="last", **c),
            Case(f"reset-chunks-{kind}", 2, 49, (2,), 8, reset="chunks", **c),
            Case(f"reset-no-state-{kind}", 2, 20, (2,), 8, reset="random", state=False, **c),
            Case(f"extreme-{kind}", 1, 40, (2,), 24, decay="extreme", gates="saturated", **c),
            Case(
                f"float-parameters-{kind}",
                2,
                20,
                (3,),
                16,
                dtype=torch.bfloat16,
                parameters=torch.float32,
                **c,
            ),
            Case(f"empty-batch-{kind}", 0, 9, (3,), 8, **c),
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
            "expanded_lanes",
        )
    ):
        dtype = (torch.float32, torch.bfloat16)[index % 2]
        cases.append(Case(f"{layout}", 2, 19, (3, 2), 12, dtype=dtype, layout=layout, complex=index % 4 > 1))
    return cases


CASES = _cases()
BENCHMARK_CASES = [
    Case("base-8f", 1, 8, (196,), 1536, heads=12, state=False, layout="halves"),
    Case("base-32f", 1, 32, (196,), 1536, heads=12, state=False, layout="halves"),
    Case("base-8f-bf16", 1, 8, (196,), 1536, heads=12, dtype=torch.bfloat16, state=False, layout="halves"),
    Case("base-step", 1, 1, (196,), 1536, heads=12, layout="halves"),
]
