"""Rows of the scans: forward, forward + backward, real and complex, short and long."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import trecvit_kernels as tk
from benchmarks import floors, peers
from benchmarks.rows import Comparison, Peer, within_reference
from benchmarks.timing import Budget
from trecvit_kernels.ops.gated_lru import cases as gated_lru_cases
from trecvit_kernels.ops.gated_lru import reference as gated_lru_reference
from trecvit_kernels.ops.linear_scan import cases as linear_scan_cases
from trecvit_kernels.ops.linear_scan import reference as linear_scan_reference

# The shapes of the targets; (case, at least so many times faster than eager, torch.compile worth the wait).
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
_CHECKED = 32  # channels that are compared with float64 in every frame, token and gradient
_PIECE = 64  # frames
_SHORT = 512  # frames up to which the reference's backward pass, quadratic in their number, is worth a wait


def rows(budget: Budget, *, quick: bool, floors_only: bool) -> Iterator[Comparison]:
    """All rows of the ops, each made when it is asked for (the tensors are large)."""
    for case, eager_limit, compilable in GATED_LRU:
        yield from _gated_lru_rows(case, eager_limit, budget, compilable and not quick, floors_only)
    if not floors_only:
        for case, *_ in GATED_LRU:
            yield from _complex_rows(case, budget)
        for scan_case, compilable in LINEAR_SCAN:
            yield from _linear_scan_rows(scan_case, budget, compilable and not quick, not quick)


def _label(op: str, case: Any, direction: str) -> str:
    channels = (case.channels,) if hasattr(case, "channels") else ()
    shape = (case.batch, case.frames, *case.lanes, *channels)
    kind = "complex " if getattr(case, "complex", case.dtype.is_complex) else ""
    return f"{kind}{op} {direction}, {str(case.dtype).removeprefix('torch.')}, {shape}"


def _gradients(
    function: Callable[..., Tensor], leaves: list[Tensor | None], dy: Tensor
) -> Callable[[], object]:
    wanted = [leaf for leaf in leaves if leaf is not None]
    return lambda: torch.autograd.grad(function(*leaves), wanted, dy)


def _gated_lru(*args: Any) -> Tensor:
    return tk.ops.gated_lru(*args)[0]


def _linear_scan(a: Tensor, b: Tensor) -> Tensor:
    return tk.ops.linear_scan(a, b)[0]


def _gated_lru_inputs(case: gated_lru_cases.Case) -> list[Tensor | None]:
    made = gated_lru_cases.make_inputs(case)
    return [made[name] for name in ("x", "gate_x", "gate_a", "a_param", "a_imag")]


def _gated_lru_rows(
    case: gated_lru_cases.Case, eager_limit: float, budget: Budget, compilable: bool, floors_only: bool
) -> Iterator[Comparison]:
    inputs = _gated_lru_inputs(case)
    x, gate_x, gate_a = inputs[:3]
    assert x is not None and gate_x is not None and gate_a is not None
    check = functools.cache(lambda: check_gated_lru(inputs))
    what = _label("gated_lru", case, "forward")
    run = functools.partial(_gated_lru, *inputs)
    row = functools.partial(
        Comparison,
        "ops",
        what,
        run,
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

    leaves, dy = _leaves(inputs), torch.randn_like(x)
    both = sum(gated_lru_cases.bytes_moved(case, direction) for direction in ("forward", "backward"))
    train = functools.partial(
        Comparison,
        "ops",
        _label("gated_lru", case, "forward + backward"),
        _gradients(_gated_lru, leaves, dy),
        check=check,
        nbytes=both,
        budget=budget,
    )
    yield train(peers=_eager_training(leaves, dy), limit=_TRAINING_EAGER)
    if compilable:
        function = peers.compiled(peers.eager_gated_lru)
        gradients = _gradients(function, leaves, dy)
        yield train(peers=[Peer("torch.compile", gradients)], limit=_TRAINING_COMPILED)


def _complex_rows(case: gated_lru_cases.Case, budget: Budget) -> Iterator[Comparison]:
    case = gated_lru_cases.Case(
        case.name, case.batch, case.frames, case.lanes, case.channels, complex=True, h0=False
    )
    inputs = _gated_lru_inputs(case)
    leaves = _leaves(inputs)
    assert leaves[0] is not None
    dy = torch.randn_like(leaves[0])
    yield Comparison(
        "ops",
        _label("gated_lru", case, "forward + backward"),
        _gradients(_gated_lru, leaves, dy),
        _eager_training(leaves, dy),
        check=functools.cache(lambda: check_gated_lru(inputs)),
        limit=_TRAINING_EAGER,
        nbytes=sum(gated_lru_cases.bytes_moved(case, direction) for direction in ("forward", "backward")),
        budget=budget,
    )


def _linear_scan_rows(
    case: linear_scan_cases.Case, budget: Budget, compilable: bool, compile_scan: bool
) -> Iterator[Comparison]:
    made = linear_scan_cases.make_inputs(case)
    a, b = made["a"], made["b"]
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    shape = b.shape
    # accelerated_scan gets its own layout for free: the transposed copies are not in its time.
    own = [t.flatten(2).transpose(1, 2).contiguous() for t in (a, b)]

    def from_own(result: object) -> object:
        if isinstance(result, Tensor):
            return result.transpose(1, 2).reshape(shape)
        assert isinstance(result, tuple)
        return tuple(t.transpose(1, 2).reshape(shape) for t in result)

    check = functools.cache(lambda: check_linear_scan(a, b))
    rivals = [
        _peer("eager reference", peers.reference_linear_scan, [a, b]),
        _peer("eager, fused multiply-adds", peers.eager_linear_scan, [a, b]),
        _peer("associative_scan", peers.associative_linear_scan, [a, b]),
        Peer("accelerated_scan.ref", functools.partial(peers.accelerated_scan, *own), from_own),
    ]
    if compilable:
        rivals.append(
            _peer("torch.compile of the reference", peers.compiled(peers.reference_linear_scan), [a, b])
        )
    if compile_scan:
        scan = peers.compiled(peers.associative_linear_scan)
        rivals.append(_peer("torch.compile of associative_scan", scan, [a, b]))
    forward = linear_scan_cases.bytes_moved(case, "forward")
    what = _label("linear_scan", case, "forward")
    run = functools.partial(_linear_scan, a, b)
    yield Comparison("ops", what, run, rivals, check, _SCAN, nbytes=forward, budget=budget)

    leaves, own_leaves = _leaves([a, b]), _leaves(own)
    dh = torch.randn_like(b)
    own_dh = dh.flatten(2).transpose(1, 2).contiguous()
    yield Comparison(
        "ops",
        _label("linear_scan", case, "forward + backward"),
        _gradients(_linear_scan, leaves, dh),
        [
            Peer("eager, fused multiply-adds", _gradients(peers.eager_linear_scan, leaves, dh)),
            Peer("associative_scan", _gradients(peers.associative_linear_scan, leaves, dh)),
            Peer("accelerated_scan.ref", _gradients(peers.accelerated_scan, own_leaves, own_dh), from_own),
        ],
        check,
        _SCAN,
        nbytes=forward + linear_scan_cases.bytes_moved(case, "backward"),
        budget=budget,
    )


def _peer(name: str, function: Callable[..., Tensor], inputs: list[Any]) -> Peer:
    return Peer(name, functools.partial(function, *inputs))


def _compiled_pair(inputs: list[Any]) -> list[Peer]:
    return [
        _peer("torch.compile of the reference", peers.compiled(peers.reference_gated_lru), inputs),
        _peer("torch.compile, gates of all frames at once", peers.compiled(peers.eager_gated_lru), inputs),
    ]


def _eager_training(leaves: list[Any], dy: Tensor) -> list[Peer]:
    rivals = [Peer("eager, gates of all frames at once", _gradients(peers.eager_gated_lru, leaves, dy))]
    if dy.shape[1] <= _SHORT:
        rivals.append(Peer("eager reference", _gradients(peers.reference_gated_lru, leaves, dy)))
    return rivals


def _leaves(inputs: list[Any]) -> list[Any]:
    return [None if t is None else t.detach().requires_grad_() for t in inputs]


def check_gated_lru(inputs: list[Tensor | None]) -> str:
    """Output and all gradients of the real call, at a few channels, against the reference in float64."""
    x, *_, a_imag = inputs
    assert x is not None
    gates = x.shape[-1] if a_imag is None else x.shape[-1] // 2
    picked = torch.linspace(0, gates - 1, _CHECKED).long()
    merged = picked if a_imag is None else torch.cat([picked, picked + gates])
    index = [merged, picked, picked, picked, picked]
    dy = torch.randn_like(x)
    ours = _value_and_gradients(_gated_lru, inputs, dy)
    few = [None if t is None else t[..., i].cpu() for t, i in zip(inputs, index)]
    return _against_float64(ours, _gated_lru_by_pieces, few, dy[..., merged].cpu(), [merged, *index])


def check_linear_scan(a: Tensor, b: Tensor) -> str:
    """Output and gradients of the real call, at a few lanes, against the reference in float64."""
    picked = torch.linspace(0, b.shape[-1] - 1, _CHECKED).long()
    dh = torch.randn_like(b)
    ours = _value_and_gradients(_linear_scan, [a, b], dh)
    few = [a[..., picked].cpu(), b[..., picked].cpu()]
    return _against_float64(ours, _linear_scan_by_pieces, few, dh[..., picked].cpu(), [picked] * 3)


# In the backward pass of the reference every frame touches all frames of the call: over a long time it is
# called piece by piece, the state handed on.
def _gated_lru_by_pieces(x: Tensor, gate_x: Tensor, gate_a: Tensor, *parameters: Any) -> Tensor:
    outputs, h = [], None
    for part in zip(*(t.split(_PIECE, dim=1) for t in (x, gate_x, gate_a))):
        y, h = gated_lru_reference.gated_lru(*part, *parameters, h0=h)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def _linear_scan_by_pieces(a: Tensor, b: Tensor) -> Tensor:
    outputs, state = [], None
    for part in zip(a.split(_PIECE, dim=1), b.split(_PIECE, dim=1)):
        h, state = linear_scan_reference.linear_scan(*part, state)
        outputs.append(h)
    return torch.cat(outputs, dim=1)


def _value_and_gradients(function: Callable[..., Tensor], inputs: list[Any], dy: Tensor) -> list[Tensor]:
    leaves = _leaves(inputs)
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)]


def _against_float64(
    ours: list[Tensor], loop: Callable[..., Tensor], few: list[Any], dy: Tensor, index: list[Tensor]
) -> str:
    wide = torch.complex128 if dy.is_complex() else torch.float64
    exact = _value_and_gradients(loop, [None if t is None else t.to(wide) for t in few], dy.to(wide))
    same = _value_and_gradients(loop, few, dy)
    parts = [_real(t[..., i].cpu()) for t, i in zip(ours, index)]
    return within_reference(parts, [_real(t) for t in same], [_real(t) for t in exact])


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t
