"""Rows of the ops on a GPU: against a copy of the floor's bytes, and against the best that others offer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import trecvit_kernels as tk
from benchmarks import gpu_peers, gpu_timing
from benchmarks.ops import check_gated_lru, check_linear_scan
from benchmarks.rows import Comparison, Peer, within_reference
from benchmarks.timing import Budget, Work
from trecvit_kernels.ops.gated_lru import cases as gated_lru_cases
from trecvit_kernels.ops.linear_scan import cases as linear_scan_cases
from trecvit_kernels.ops.recurrent_mixer import cases as mixer_cases
from trecvit_kernels.ops.recurrent_mixer import reference as mixer_reference
from trecvit_kernels.ops.spatial_attention import cases as attention_cases
from trecvit_kernels.ops.spatial_attention import reference as attention_reference

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


def row_label(op: str, case: Any, direction: str) -> str:
    sizes = (case.batch, case.frames, *case.lanes, *([case.channels] if hasattr(case, "channels") else []))
    kind = "complex " if getattr(case, "complex", case.dtype.is_complex) else ""
    return f"{kind}{op} {direction}, {str(case.dtype).removeprefix('torch.')}, {sizes}"


def _leaves(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [None if t is None else t.detach().requires_grad_() for t in tensors]


def training_of(function: Callable[..., Tensor], tensors: Sequence[Tensor | None], dy: Tensor) -> Work:
    """Forward, and gradients of all tensors."""
    leaves = _leaves(tensors)
    wanted = [leaf for leaf in leaves if leaf is not None]

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*leaves), wanted, dy)

    return run


def backward_of(function: Callable[..., Tensor], tensors: Sequence[Tensor | None], dy: Tensor) -> Work:
    """Gradients of all tensors, the forward pass done once outside."""
    leaves = _leaves(tensors)
    wanted = [leaf for leaf in leaves if leaf is not None]
    y = function(*leaves)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def inference_of(function: Callable[..., Tensor], tensors: Sequence[Tensor | None]) -> Work:
    return torch.no_grad()(functools.partial(function, *tensors))


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
    """z, du and dv of the real call at a few tokens; parameter gradients of a call on these tokens alone."""
    dz, few = torch.randn_like(inputs[0]), min(4, inputs[0].shape[2])
    z, du, dv, *_ = _value_and_gradients(_mixer, inputs, dz)
    tokens = [t[:, :, :few] for t in inputs[:2]]
    narrow, dz = [*(t.contiguous() for t in tokens), *inputs[2:]], dz[:, :, :few].contiguous()
    _, _, _, *parameters = _value_and_gradients(_mixer, narrow, dz)
    ours = [*(t[:, :, :few] for t in (z, du, dv)), *parameters]

    def reference(*tensors: Tensor) -> Tensor:
        return mixer_reference.recurrent_mixer(*tensors)[0]

    exact = _value_and_gradients(reference, [t.double() for t in narrow], dz.double())
    return within_reference(ours, _value_and_gradients(reference, narrow, dz), exact)


def _value_and_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], dy: Tensor
) -> list[Tensor]:
    leaves = _leaves(tensors)
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


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

        def label(direction: str, case: attention_cases.Case = case) -> str:
            shape = (*case.lead, case.tokens, 3 * case.heads * case.head_dim)
            return f"spatial_attention {direction}, bfloat16, {shape}, D = {case.head_dim}"

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


def check_attention(qkv: Tensor, heads: int) -> str:
    """Output and gradient of the real call in two frames."""
    dout = torch.randn(*qkv.shape[:-1], qkv.shape[-1] // 3, dtype=qkv.dtype, device=qkv.device)
    ours = _value_and_gradients(lambda t: tk.ops.spatial_attention(t, heads), [qkv], dout)
    few, dout = qkv[:1, :2], dout[:1, :2]

    def reference(t: Tensor) -> Tensor:
        return attention_reference.spatial_attention(t, heads)

    exact = _value_and_gradients(reference, [few.double()], dout.double())
    return within_reference([t[:1, :2] for t in ours], _value_and_gradients(reference, [few], dout), exact)


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
