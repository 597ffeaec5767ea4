"""FLOPs of the ops as PyTorch's counter sees them, against the formulas of docs/benchmarks.md, by hand."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trecvit_kernels import backends, ops

if not backends.available()["native"].available:
    pytest.skip(backends.available()["native"].reason, allow_module_level=True)

LEAD, WIDTH, HEADS, TAPS = (2, 5, 3), 8, 2, 4
N = prod((*LEAD, WIDTH))


def _count(call):
    """(forward, backward) of the outputs' sum, with real and with fake tensors."""
    from torch._subclasses import FakeTensorMode

    counts = []
    for fake in (False, True):
        with FakeTensorMode() if fake else torch.enable_grad():
            with FlopCounterMode(display=False) as forward:
                y, _ = call()
            with FlopCounterMode(display=False) as backward:
                y.abs().sum().backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]
    return counts[0]


def _leaf(*shape, dtype=torch.float32):
    return torch.rand(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("is_complex", (False, True), ids=("real", "complex"))
def test_linear_scan(is_complex):
    dtype = torch.complex64 if is_complex else torch.float32

    def call():
        return ops.linear_scan(
            _leaf(*LEAD, WIDTH, dtype=dtype), _leaf(*LEAD, WIDTH, dtype=dtype), backend="native"
        )

    assert _count(call) == ((8 * N, 22 * N) if is_complex else (2 * N, 5 * N))


@pytest.mark.parametrize("is_complex", (False, True), ids=("real", "complex"))
def test_gated_lru(is_complex):
    half = WIDTH // 2 if is_complex else WIDTH

    def call():
        gates = _leaf(*LEAD, half), _leaf(*LEAD, half), _leaf(half), _leaf(half) if is_complex else None
        return ops.gated_lru(_leaf(*LEAD, WIDTH), *gates, backend="native")

    forward = 26 * N // 2 if is_complex else 15 * N
    assert _count(call) == (forward, 3 * forward)


@pytest.mark.parametrize("is_complex", (False, True), ids=("real", "complex"))
def test_recurrent_mixer(is_complex):
    half = WIDTH // 2 if is_complex else WIDTH

    def call():
        parameters = [_leaf(TAPS, WIDTH), _leaf(WIDTH)]
        for _ in range(2):
            parameters += [_leaf(HEADS, WIDTH // HEADS, half // HEADS), _leaf(HEADS, half // HEADS)]
        parameters += [_leaf(half), _leaf(half) if is_complex else None]
        return ops.recurrent_mixer(_leaf(*LEAD, WIDTH), _leaf(*LEAD, WIDTH), *parameters, backend="native")

    gates = prod(LEAD) * half
    forward = 4 * gates * WIDTH // HEADS + (2 * TAPS + 8) * N + (26 if is_complex else 15) * gates
    assert _count(call) == (forward, 3 * forward)
