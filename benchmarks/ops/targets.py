"""Rows of the scans on the CPU that have targets: against copies, eager code, torch.compile and associative_scan."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import trecvit_kernels as tk
from benchmarks import floors
from benchmarks.gpu import timing as gpu_timing
from benchmarks.ops import peers
from benchmarks.ops.calls import row_label, training_of
from benchmarks.ops.checks import check_gated_lru, check_linear_scan
from benchmarks.ops.rooms import shrunk
from benchmarks.rows import Comparison, Peer
from benchmarks.setting import Setting
from benchmarks.timing import Budget
from trecvit_kernels.ops.gated_lru import cases as gated_lru_cases
from trecvit_kernels.ops.linear_scan import cases as linear_scan_cases

# (case, at least so many times faster than eager, torch.compile worth the wait).
GATED_LRU = [
    (gated_lru_cases.Case("T16", 1, 16, (196,), 768, h0=False), 4.0, True),
    (gated_lru_cases.Case("T32", 1, 32, (196,), 1536, h0=False), 8.0, True),
    (gated_lru_cases.Case("T4096", 4, 4096, (1,), 256, h0=False), 8.0, False),
]
LINEAR_SCAN = [
    (linear_scan_cases.Case("T32", 1, 32, (196, 1536), h0=False), True),
    (linear_scan_cases.Case("T4096", 4, 4096, (1, 256), h0=False), False),
    (linear_scan_cases.Case("T32", 1, 32, (196, 1536), torch.complex64, h0=False), True),
    (linear_scan_cases.Case("T4096", 4, 4096, (1, 256), torch.complex64, h0=False), False),
]
_COPY, _FASTER_THAN_COMPILED = 1.5, 2.0
_TRAINING_EAGER, _TRAINING_COMPILED, _SCAN = 6.0, 2.5, 3.0
SHORT = 512  # frames up to which the reference's backward pass, quadratic in their number, is worth a wait


def rows(at: Setting) -> Iterator[Comparison]:
    """All of them, each made when it is asked for (the tensors are large)."""
    budget = at.budget(Budget(1.5, 5, 60), Budget(0.3, 3, 20))
    compiling = not (at.quick or at.tiny)
    if at.tiny:
        gated = [(shrunk(case), *more) for case, *more in GATED_LRU[:1]]
        scans = [(shrunk(case), *more) for case, *more in LINEAR_SCAN[::2]]
    else:
        gated, scans = GATED_LRU, LINEAR_SCAN
    for case, eager_limit, short in gated:
        yield from _gated_lru_rows(case, eager_limit, budget, short and compiling, at.floors_only)
    if at.floors_only:
        return
    for case, *_ in gated:
        yield from _complex_rows(case, budget)
    for scan_case, short in scans:
        yield from _linear_scan_rows(scan_case, budget, short and compiling, compiling)


def _gated_lru(*args: Any) -> Tensor:
    return tk.ops.gated_lru(*args)[0]


def _linear_scan(a: Tensor, b: Tensor) -> Tensor:
    return tk.ops.linear_scan(a, b)[0]


def _gated_lru_inputs(case: gated_lru_cases.Case) -> list[Any]:
    made = gated_lru_cases.make_inputs(case)
    return [made[name] for name in ("x", "gate_x", "gate_a", "a_param", "a_imag")]


def _both(cases: Any, case: Any) -> int:
    return sum(cases.bytes_moved(case, direction) for direction in ("forward", "backward"))


def _gated_lru_rows(
    case: gated_lru_cases.Case, eager_limit: float, budget: Budget, compilable: bool, floors_only: bool
) -> Iterator[Comparison]:
    inputs = _gated_lru_inputs(case)
    x, gate_x, gate_a = inputs[:3]
    check = functools.cache(functools.partial(check_gated_lru, inputs))
    row = functools.partial(
        Comparison,
        "ops",
        row_label("gated_lru", case, "forward"),
        functools.partial(_gated_lru, *inputs),
        check=check,
        nbytes=gated_lru_cases.bytes_moved(case, "forward"),
        budget=budget,
    )
    copy = Peer("copy of the same bytes, same allocations", floors.copy_of_gated_lru(x, gate_x, gate_a), None)
    yield row(peers=[copy], limit=_COPY, floor=True)
    if floors_only:
        return
    yield row(peers=[_peer("eager reference", peers.reference_gated_lru, inputs)], limit=eager_limit)
    yield row(
        peers=[_peer("eager, gates of all frames at once", peers.eager_gated_lru, inputs)], limit=eager_limit
    )
    yield row(peers=[_peer("associative_scan", peers.associative_gated_lru, inputs)])
    if compilable:
        yield row(peers=_compiled_pair(inputs), limit=_FASTER_THAN_COMPILED)

    dy = torch.randn_like(x)
    train = functools.partial(
        Comparison,
        "ops",
        row_label("gated_lru", case, "forward + backward"),
        training_of(_gated_lru, inputs, dy),
        check=check,
        nbytes=_both(gated_lru_cases, case),
        budget=budget,
    )
    yield train(peers=_eager_training(inputs, dy), limit=_TRAINING_EAGER)
    yield train(peers=[Peer("associative_scan", training_of(peers.associative_gated_lru, inputs, dy))])
    if compilable:
        gradients = training_of(peers.compiled(peers.eager_gated_lru), inputs, dy)
        yield train(peers=[Peer("torch.compile", gradients)], limit=_TRAINING_COMPILED)


def _complex_rows(case: gated_lru_cases.Case, budget: Budget) -> Iterator[Comparison]:
    case = gated_lru_cases.Case(
        case.name, case.batch, case.frames, case.lanes, case.channels, complex=True, h0=False
    )
    inputs = _gated_lru_inputs(case)
    dy = torch.randn_like(inputs[0])
    yield Comparison(
        "ops",
        row_label("gated_lru", case, "forward + backward"),
        training_of(_gated_lru, inputs, dy),
        _eager_training(inputs, dy),
        check=functools.cache(functools.partial(check_gated_lru, inputs)),
        limit=_TRAINING_EAGER,
        nbytes=_both(gated_lru_cases, case),
        budget=budget,
    )


def _linear_scan_rows(
    case: linear_scan_cases.Case, budget: Budget, compilable: bool, compile_scan: bool
) -> Iterator[Comparison]:
    made = linear_scan_cases.make_inputs(case)
    a, b = made["a"], made["b"]
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    # accelerated_scan gets its own layout for free: the transposed copies are not in its time.
    own = [peers.lanes_first(t) for t in (a, b)]
    from_own = peers.from_lanes_first(b.shape)
    check = functools.cache(functools.partial(check_linear_scan, a, b))
    rivals = [
        _peer("eager reference", peers.reference_linear_scan, [a, b]),
        _peer("eager, fused multiply-adds", peers.eager_linear_scan, [a, b]),
        _peer("associative_scan", peers.associative_linear_scan, [a, b]),
        Peer("accelerated_scan.ref", functools.partial(peers.accelerated_scan, own[0], own[1]), from_own),
    ]
    if compilable:
        rivals.append(
            _peer("torch.compile of the reference", peers.compiled(peers.reference_linear_scan), [a, b])
        )
    if compile_scan:
        scan = peers.compiled(peers.associative_linear_scan)
        rivals.append(_peer("torch.compile of associative_scan", scan, [a, b]))
    forward = Comparison(
        "ops",
        row_label("linear_scan", case, "forward"),
        functools.partial(_linear_scan, a, b),
        rivals,
        check,
        _SCAN,
        nbytes=linear_scan_cases.bytes_moved(case, "forward"),
        budget=budget,
    )
    yield forward
    yield _beside_a_copy(forward)

    dh = torch.randn_like(b)
    own_dh = peers.lanes_first(dh)
    rivals = [
        Peer("eager, fused multiply-adds", training_of(peers.eager_linear_scan, [a, b], dh)),
        Peer("associative_scan", training_of(peers.associative_linear_scan, [a, b], dh)),
        Peer("accelerated_scan.ref", training_of(peers.accelerated_scan, own, own_dh), from_own),
    ]
    if compilable and not dh.is_complex():
        gradients = training_of(peers.compiled(peers.eager_linear_scan), [a, b], dh)
        rivals.append(Peer("torch.compile, fused multiply-adds", gradients))
    train = Comparison(
        "ops",
        row_label("linear_scan", case, "forward + backward"),
        training_of(_linear_scan, [a, b], dh),
        rivals,
        check,
        _SCAN,
        nbytes=_both(linear_scan_cases, case),
        budget=budget,
    )
    yield train
    yield _beside_a_copy(train)


def _beside_a_copy(row: Comparison) -> Comparison:
    """The same work beside a copy of its bytes, for the scan's shapes, which are no cases of the op's folder."""
    assert row.nbytes is not None
    copy = Peer("copy of the same bytes", gpu_timing.copy(row.nbytes, "cpu"), None)
    return dataclasses.replace(row, peers=[copy], floor=True, limit=None)


def _peer(name: str, function: Callable[..., Tensor], inputs: Sequence[Any]) -> Peer:
    return Peer(name, functools.partial(function, *inputs))


def _compiled_pair(inputs: Sequence[Any]) -> list[Peer]:
    return [
        _peer("torch.compile of the reference", peers.compiled(peers.reference_gated_lru), inputs),
        _peer("torch.compile, gates of all frames at once", peers.compiled(peers.eager_gated_lru), inputs),
    ]


def _eager_training(inputs: Sequence[Any], dy: Tensor) -> list[Peer]:
    rivals = [Peer("eager, gates of all frames at once", training_of(peers.eager_gated_lru, inputs, dy))]
    if dy.shape[1] <= SHORT:
        rivals.append(Peer("eager reference", training_of(peers.reference_gated_lru, inputs, dy)))
    return rivals
