"""Rows of the ops on a GPU: against a copy of the floor's bytes, and against the best that others offer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import trecvit_kernels as tk
from benchmarks.gpu import inputs as gpu_inputs
from benchmarks.gpu import peers as gpu_peers
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu.once import Once, lazily
from benchmarks.ops import checks as ops_checks
from benchmarks.ops.calls import backward_of, inference_of, row_label, training_of
from benchmarks.ops.checks import check_attention, check_gated_lru, check_linear_scan
from benchmarks.rows import Comparison, Peer
from benchmarks.timing import Budget, Work
from trecvit_kernels.ops.gated_lru import cases as gated_lru_cases
from trecvit_kernels.ops.linear_scan import cases as linear_scan_cases
from trecvit_kernels.ops.recurrent_mixer import cases as mixer_cases
from trecvit_kernels.ops.spatial_attention import cases as attention_cases

_BF16 = torch.bfloat16
ROUNDED = (
    0.05  # peers in bfloat16 round u_t and log a_t in between, and sum parameter gradients in their own way
)
MIXER_INPUTS = ("u", "v", "conv_weight", "conv_bias", "gate_x_weight", "gate_x_bias", "gate_a_weight", "gate_a_bias",
          "a_param")  # fmt: skip
_COPY = "copy of the floor's bytes"


@dataclass(frozen=True)
class Setting:
    """Where the rows are made. tiny: a rehearsal, sizes that Triton's interpreter can walk in seconds."""

    device: str = "cuda"
    tiny: bool = False
    budget: Budget = field(default_factory=lambda: Budget(0.4, 30, 200))

    def sized(self, case: Any, **smaller: Any) -> Any:
        return replace(case, **smaller) if self.tiny else case

    def copy(self, nbytes: int) -> Peer:
        return Peer(_COPY, lazily(lambda: gpu_timing.copy(nbytes, self.device)), None)

    def inputs(self, cases: Any, case: Any, *names: str) -> Once[list[Any]]:
        """Arguments of a case by their names, made when they are needed."""

        def make() -> list[Any]:
            made = gpu_inputs.make(cases, case, self.device)
            return [made[name] for name in names]

        return Once(make)

    @functools.cached_property
    def compiled(self) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return gpu_peers.compiler(self.tiny)


Inputs = Callable[[], Sequence[Any]]
Gradient = Callable[[], Tensor]
_PASSES = {"forward": ("forward",), "backward": ("backward",), "forward + backward": ("forward", "backward")}


def work_of(direction: str, function: Callable[..., Tensor], inputs: Inputs, dy: Gradient) -> Work:
    """A call of ``function`` in one direction of ``_PASSES``, prepared when it is first run."""
    if direction == "forward":
        return lazily(lambda: inference_of(function, inputs()))
    make = backward_of if direction == "backward" else training_of
    return lazily(lambda: make(function, inputs(), dy()))


def bytes_of(cases: Any, case: Any, direction: str) -> int:
    """Least traffic."""
    return sum(cases.bytes_moved(case, each) for each in _PASSES[direction])


def like(inputs: Inputs, index: int = 0) -> Once[Tensor]:
    """A gradient for a result that has the shape of an input."""
    return Once(lambda: torch.randn_like(inputs()[index]))


def versus_copy(
    at: Setting, label: Callable[[str], str], cases: Any, case: Any, function: Any, inputs: Inputs, dy: Gradient,
    check: Callable[[], str], shares: tuple[float | None, float | None],
) -> Iterator[Comparison]:  # fmt: skip
    """Forward and backward against copies of the floor's bytes; shares of the copy's bandwidth to be reached."""
    for direction, share in zip(("forward", "backward"), shares):
        nbytes = bytes_of(cases, case, direction)
        yield Comparison(
            "ops",
            label(direction),
            work_of(direction, function, inputs, dy),
            [at.copy(nbytes)],
            check,
            limit=None if share is None else round(1 / share, 3),
            floor=True,
            nbytes=nbytes,
            budget=at.budget,
        )


# Gated LRU

GATED_LRU = [
    gated_lru_cases.Case("base", 8, 32, (196,), 768, _BF16, h0=False),
    gated_lru_cases.Case("wide", 8, 32, (196,), 1536, _BF16, h0=False),
    gated_lru_cases.Case("long", 1, 65_536, (1,), 1024, _BF16, h0=False),
]


def _gated_lru(*tensors: Tensor | None) -> Tensor:
    return tk.ops.gated_lru(*tensors)[0]  # type: ignore[arg-type]


def gated_lru(at: Setting) -> Iterator[Comparison]:
    for case in GATED_LRU:
        yield from _gated_lru_rows(at, case, rivals=True)
    yield from _gated_lru_rows(at, replace(GATED_LRU[1], complex=True), rivals=False)


def _gated_lru_rows(at: Setting, case: gated_lru_cases.Case, rivals: bool) -> Iterator[Comparison]:
    case = at.sized(case, batch=1, frames=min(case.frames, 64), lanes=(2,), channels=64)
    inputs = at.inputs(gated_lru_cases, case, "x", "gate_x", "gate_a", "a_param", "a_imag")
    dy = like(inputs)
    check = Once(lambda: check_gated_lru(inputs()))
    label = functools.partial(row_label, "gated_lru", case)
    shares = (0.85, 0.80) if rivals else (None, None)
    yield from versus_copy(at, label, gated_lru_cases, case, _gated_lru, inputs, dy, check, shares)
    if not rivals:
        return
    gates = at.compiled(gpu_peers.gates)
    peers = {name: gpu_peers.hgrn(name, gates) for name in ("fused_recurrent_hgrn", "chunk_hgrn")}
    if case.frames > 64:  # it walks each sequence in blocks of 2048 frames
        lanes_first = at.compiled(gpu_peers.gates_lanes_first)
        for kernel in gpu_peers.real_scans(interpreted=at.tiny):
            peers[f"accelerated_scan.{kernel}"] = gpu_peers.accelerated_scan_gates(kernel, lanes_first)
    both = "forward + backward"
    yield Comparison(
        "ops",
        label(both),
        work_of(both, _gated_lru, lambda: inputs()[:4], dy),
        [
            Peer(f"compiled gates + {name}", work_of(both, peer, lambda: inputs()[:4], dy))
            for name, peer in peers.items()
        ],
        check,
        limit=3.0,
        nbytes=bytes_of(gated_lru_cases, case, both),
        budget=at.budget,
        tolerance=ROUNDED,
    )


# Recurrent mixer

MIXER = [
    mixer_cases.Case("base", 8, 32, (196,), 768, 12, dtype=_BF16, state=False, layout="halves"),
    mixer_cases.Case("wide", 8, 32, (196,), 1536, 12, dtype=_BF16, state=False, layout="halves"),
]


def _mixer(*tensors: Tensor) -> Tensor:
    return tk.ops.recurrent_mixer(*tensors)[0]


def recurrent_mixer(at: Setting) -> Iterator[Comparison]:
    for case in MIXER:
        yield from _mixer_rows(at, at.sized(case, batch=1, frames=18, lanes=(3,), channels=64, heads=2))


def _mixer_rows(at: Setting, case: mixer_cases.Case) -> Iterator[Comparison]:
    inputs = at.inputs(mixer_cases, case, *MIXER_INPUTS)
    dz = like(inputs)
    check = Once(lambda: check_mixer(inputs()))
    label = functools.partial(row_label, "recurrent_mixer", case)
    yield from versus_copy(at, label, mixer_cases, case, _mixer, inputs, dz, check, (None, None))
    parts = at.compiled(gpu_peers.recurrent_mixer)
    for direction, limit in (("forward", 2.0), ("forward + backward", 1.5)):
        rival = work_of(direction, parts, inputs, dz)
        yield Comparison(
            "ops",
            label(direction),
            work_of(direction, _mixer, inputs, dz),
            [Peer("compiled conv, gate products, our gated_lru, GELU gate", rival)],
            check,
            limit=limit,
            nbytes=bytes_of(mixer_cases, case, direction),
            budget=at.budget,
            tolerance=ROUNDED,
        )


def check_mixer(inputs: Sequence[Tensor]) -> str:
    """As ``ops_checks.check_mixer``, of tensors in the order of ``MIXER_INPUTS``."""
    return ops_checks.check_mixer(dict(zip(MIXER_INPUTS, inputs)))


# Spatial attention

ATTENTION = [attention_cases.Case(f"{n}", (8, 32), n, 12, 64, _BF16) for n in (196, 197, 256)]


def spatial_attention(at: Setting) -> Iterator[Comparison]:
    for case in ATTENTION:
        yield from _attention_rows(at, at.sized(case, lead=(1, 2), heads=2))


def _attention_rows(at: Setting, case: attention_cases.Case) -> Iterator[Comparison]:
    inputs, heads = at.inputs(attention_cases, case, "qkv"), case.heads

    def ours(qkv: Tensor) -> Tensor:
        return tk.ops.spatial_attention(qkv, heads)

    dout = thirds_like(inputs)
    check = Once(lambda: check_attention(inputs()[0], heads))
    label = functools.partial(row_label, "spatial_attention", case)
    yield from versus_copy(at, label, attention_cases, case, ours, inputs, dout, check, (0.75, None))
    rivals = {name: gpu_peers.attention(name, heads) for name in gpu_peers.SDPA}
    for direction in ("forward", "forward + backward"):
        yield Comparison(
            "ops",
            label(direction),
            work_of(direction, ours, inputs, dout),
            [Peer(f"SDPA {name}", work_of(direction, run, inputs, dout)) for name, run in rivals.items()],
            check,
            limit=1.3,
            nbytes=bytes_of(attention_cases, case, direction),
            budget=at.budget,
            tolerance=ROUNDED,
        )


def thirds_like(inputs: Inputs) -> Once[Tensor]:
    """A gradient for the result of attention on packed qkv."""

    def make() -> Tensor:
        qkv = inputs()[0]
        return torch.randn(*qkv.shape[:-1], qkv.shape[-1] // 3, dtype=qkv.dtype, device=qkv.device)

    return Once(make)


# Linear scan

LINEAR_SCAN = [
    linear_scan_cases.Case("long", 1, 65_536, (1024,), h0=False),
    linear_scan_cases.Case("long-complex", 1, 65_536, (512,), torch.complex64, h0=False),
]


def _linear_scan(a: Tensor, b: Tensor) -> Tensor:
    return tk.ops.linear_scan(a, b)[0]


def linear_scan(at: Setting) -> Iterator[Comparison]:
    for case in LINEAR_SCAN:
        yield from _linear_scan_rows(at, at.sized(case, frames=64, lanes=(4,)))


def _linear_scan_rows(at: Setting, case: linear_scan_cases.Case) -> Iterator[Comparison]:
    inputs = at.inputs(linear_scan_cases, case, "a", "b")
    dh = like(inputs, 1)
    # The rivals' layout (B, lanes, T), for free.
    own = Once(lambda: [t.mT.contiguous() for t in (*inputs(), dh())])
    check = Once(lambda: check_linear_scan(*inputs()))
    label = functools.partial(row_label, "linear_scan", case)
    yield from versus_copy(at, label, linear_scan_cases, case, _linear_scan, inputs, dh, check, (None, None))
    rivals = gpu_peers.scan_rivals(case.dtype, interpreted=at.tiny)
    for direction in ("forward", "forward + backward"):
        yield Comparison(
            "ops",
            label(direction),
            work_of(direction, _linear_scan, inputs, dh),
            [
                Peer(name, work_of(direction, run, lambda: own()[:2], lambda: own()[2]), _from_own)
                for name, run in rivals.items()
            ],
            check,
            limit=1.2,
            nbytes=bytes_of(linear_scan_cases, case, direction),
            budget=at.budget,
        )


def _from_own(result: object) -> object:
    return result.mT if isinstance(result, Tensor) else tuple(t.mT for t in result)  # type: ignore[attr-defined]
