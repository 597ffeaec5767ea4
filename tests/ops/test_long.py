"""A million frames: long sums, many segments. The truth comes by doubling in float64, not from a time loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.ops.checks import scan_by_doubling
from trecvit_kernels import backends
from trecvit_kernels.ops import _schedule

FRAMES = 2**20
pytestmark = [
    pytest.mark.kernels_only,
    pytest.mark.skipif(
        backends.interpreted(), reason="Triton's interpreter takes minutes for so many frames"
    ),
]
# Of the largest element; sums of parameters' gradients have a million terms.
TOLERANCE, TOLERANCE_OF_SUMS = 2e-6, 1e-5


def gated_lru(x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor) -> Tensor:
    log_a = -8 * gate_a.sigmoid() * torch.nn.functional.softplus(a_param)
    u = (-torch.expm1(2 * log_a)).sqrt() * gate_x.sigmoid() * x
    first = torch.arange(FRAMES).eq(0).view(1, -1, 1)  # starts a sequence
    return scan_by_doubling(log_a.exp().masked_fill(first, 0), torch.where(first, gate_x.sigmoid() * x, u))


@pytest.mark.ops("linear_scan", "gated_lru")
def test_a_million_frames(op, backend, device):
    generator = torch.Generator().manual_seed(5)
    shape = (1, FRAMES, 3)
    if op.name == "linear_scan":
        inputs = [torch.rand(shape, generator=generator) * 0.98, torch.randn(shape, generator=generator)]
        truth = scan_by_doubling
    else:
        inputs = [torch.randn(shape, generator=generator) for _ in range(3)]
        inputs.append(torch.tensor([-4.0, -1.0, 1.0]))
        truth = gated_lru
    dy = torch.randn(shape, generator=generator)
    wide = [t.double().requires_grad_() for t in inputs]
    exact = truth(*wide)
    gradients = torch.autograd.grad(exact, wide, dy.double())
    for schedule in op.schedules(backend):
        leaves = [t.to(device).requires_grad_() for t in inputs]
        with _schedule.force(schedule):
            y, h_last = op.function(*leaves, backend=backend)
            found = torch.autograd.grad(y, leaves, dy.to(device))
        torch.testing.assert_close(h_last.cpu(), y[:, -1].cpu())
        for name, got, expected in zip(("y", *"0123"), (y, *found), (exact, *gradients)):
            tolerance = TOLERANCE if got.ndim > 1 else TOLERANCE_OF_SUMS
            error = (got.detach().cpu().double() - expected).abs().max() / expected.abs().max()
            assert error <= tolerance, (schedule, name, float(error))
