"""Rows of the ops on a GPU: against a copy of the floor's bytes, and against the best that others offer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import trecvit_kernels as tk
from benchmarks.gpu import peers as gpu_peers
from benchmarks.gpu import timing as gpu_timing
from benchmarks.ops import checks as ops_checks
from benchmarks.ops.calls import backward_of, inference_of, row_label, training_of
from benchmarks.ops.checks import check_attention, check_gated_lru, check_linear_scan
from benchmarks.rows import Comparison, Peer
from benchmarks.timing import Budget
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
        return Peer(_COPY, gpu_timing.copy(nbytes, self.device), None)

    @functools.cached_property
    def compiled(self) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return gpu_peers.compiler(self.tiny)


def versus_copy(
    at: Setting, label: Callable[[str], str], cases: Any, case: Any, function: Any, inputs: Any, dy: Tensor,
    check: Callable[[], str], shares: tuple[float | None, float | None],
) -> Iterator[Comparison]:  # fmt: skip
    """Forward and backward against copies of the floor's bytes; shares of the copy's bandwidth to be reached."""
    for direction, make, share in (
        ("forward", lambda: inference_of(function, inputs), shares[0]),
        ("backward", lambda: backward_of(function, inputs, dy), shares[1]),
    ):
        nbytes = cases.bytes_moved(case, direction)
        yield Comparison(
            "ops",
            label(direction),
            make(),
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
    return tk.ops.gated_lru(*tensors)[0]


def gated_lru(at: Setting) -> Iterator[Comparison]:
    for case in GATED_LRU:
        yield from _gated_lru_rows(at, case, rivals=True)
    yield from _gated_lru_rows(at, replace(GATED_LRU[1], complex=True), rivals=False)


def _gated_lru_rows(at: Setting, case: gated_lru_cases.Case, rivals: bool) -> Iterator[Comparison]:
    case = at.sized(case, batch=1, frames=min(case.frames, 64), lanes=(2,), channels=64)
    made = gated_lru_cases.make_inputs(case, device=at.device)
    inputs = [made[name] for name in ("x", "gate_x", "gate_a", "a_param", "a_imag")]
    dy = torch.randn_like(inputs[0])
    check = functools.cache(lambda: check_gated_lru(inputs))
    label = functools.partial(row_label, "gated_lru", case)
    shares = (0.85, 0.80) if rivals else (None, None)
    yield from versus_copy(at, label, gated_lru_cases, case, _gated_lru, inputs, dy, check, shares)
    if not rivals:
        return
    gates = at.compiled(gpu_peers.gates)
    peers = {name: gpu_peers.hgrn(name, gates) for name in ("fused_recurrent_hgrn", "chunk_hgrn")}
    if case.frames > 64:  # it walks each sequence in blocks of 2048 frames
        peers["accelerated_scan.scalar"] = gpu_peers.accelerated_scan_gates(gates)
    tensors = inputs[:4]
    yield Comparison(
        "ops",
        label("forward + backward"),
        training_of(_gated_lru, tensors, dy),
        [Peer(f"compiled gates + {name}", training_of(peer, tensors, dy)) for name, peer in peers.items()],
        check,
        limit=3.0,
        nbytes=sum(gated_lru_cases.bytes_moved(case, direction) for direction in ("forward", "backward")),
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
        case = at.sized(case, batch=1, frames=18, lanes=(3,), channels=64, heads=2)
        made = mixer_cases.make_inputs(case, device=at.device)
        inputs = [made[name] for name in MIXER_INPUTS]
        dz = torch.randn_like(inputs[0])
        check = functools.cache(functools.partial(check_mixer, inputs))
        label = functools.partial(row_label, "recurrent_mixer", case)
        yield from versus_copy(at, label, mixer_cases, case, _mixer, inputs, dz, check, (None, None))
        parts = at.compiled(gpu_peers.recurrent_mixer)
        row = functools.partial(Comparison, "ops", check=check, budget=at.budget, tolerance=ROUNDED)
        name = "compiled conv, gate products, our gated_lru, GELU gate"
        yield row(
            label("forward"),
            inference_of(_mixer, inputs),
            [Peer(name, inference_of(parts, inputs))],
            limit=2.0,
            nbytes=mixer_cases.bytes_moved(case, "forward"),
        )
        yield row(
            label("forward + backward"),
            training_of(_mixer, inputs, dz),
            [Peer(name, training_of(parts, inputs, dz))],
            limit=1.5,
            nbytes=sum(mixer_cases.bytes_moved(case, d) for d in ("forward", "backward")),
        )


def check_mixer(inputs: Sequence[Tensor]) -> str:
    """As ``ops_checks.check_mixer``, of tensors in the order of ``MIXER_INPUTS``."""
    return ops_checks.check_mixer(dict(zip(MIXER_INPUTS, inputs)))


# Spatial attention

ATTENTION = [attention_cases.Case(f"{n}", (8, 32), n, 12, 64, _BF16) for n in (196, 197, 256)]


def spatial_attention(at: Setting) -> Iterator[Comparison]:
    for case in ATTENTION:
        case = at.sized(case, lead=(1, 2), heads=2)
        qkv = attention_cases.make_inputs(case, device=at.device)["qkv"]
        heads = case.heads

        def ours(qkv: Tensor, heads: int = heads) -> Tensor:
            return tk.ops.spatial_attention(qkv, heads)

        dout = torch.randn_like(ours(qkv))
        check = functools.cache(functools.partial(check_attention, qkv, heads))

        label = functools.partial(row_label, "spatial_attention", case)
        yield from versus_copy(at, label, attention_cases, case, ours, [qkv], dout, check, (0.75, None))
        rivals = {name: gpu_peers.attention(name, heads) for name in gpu_peers.SDPA}
        row = functools.partial(
            Comparison, "ops", check=check, limit=1.3, budget=at.budget, tolerance=ROUNDED
        )
        forward, backward = (attention_cases.bytes_moved(case, d) for d in ("forward", "backward"))
        yield row(
            label("forward"),
            inference_of(ours, [qkv]),
            [Peer(f"SDPA {name}", inference_of(run, [qkv])) for name, run in rivals.items()],
            nbytes=forward,
        )
        yield row(
            label("forward + backward"),
            training_of(ours, [qkv], dout),
            [Peer(f"SDPA {name}", training_of(run, [qkv], dout)) for name, run in rivals.items()],
            nbytes=forward + backward,
        )


# Linear scan

LINEAR_SCAN = [
    linear_scan_cases.Case("long", 1, 65_536, (1024,), h0=False),
    linear_scan_cases.Case("long-complex", 1, 65_536, (512,), torch.complex64, h0=False),
]


def _linear_scan(a: Tensor, b: Tensor) -> Tensor:
    return tk.ops.linear_scan(a, b)[0]


def linear_scan(at: Setting) -> Iterator[Comparison]:
    for case in LINEAR_SCAN:
        case = at.sized(case, frames=64, lanes=(4,))
        made = linear_scan_cases.make_inputs(case, device=at.device)
        a, b = made["a"], made["b"]
        dh = torch.randn_like(b)
        own = [t.mT.contiguous() for t in (a, b, dh)]  # the rivals' layout (B, lanes, T), for free
        check = functools.cache(functools.partial(check_linear_scan, a, b))
        label = functools.partial(row_label, "linear_scan", case)
        yield from versus_copy(
            at, label, linear_scan_cases, case, _linear_scan, [a, b], dh, check, (None, None)
        )
        rivals = gpu_peers.scan_rivals(a, interpreted=at.tiny)
        row = functools.partial(Comparison, "ops", check=check, limit=1.2, budget=at.budget)
        forward, backward = (linear_scan_cases.bytes_moved(case, d) for d in ("forward", "backward"))
        yield row(
            label("forward"),
            inference_of(_linear_scan, [a, b]),
            [Peer(name, inference_of(run, own[:2]), _from_own) for name, run in rivals.items()],
            nbytes=forward,
        )
        yield row(
            label("forward + backward"),
            training_of(_linear_scan, [a, b], dh),
            [Peer(name, training_of(run, own[:2], own[2]), _from_own) for name, run in rivals.items()],
            nbytes=forward + backward,
        )


def _from_own(result: object) -> object:
    return result.mT if isinstance(result, Tensor) else tuple(t.mT for t in result)  # type: ignore[attr-defined]
