"""Residual addition and norm in one: every backend against float64."""

from __future__ import annotations

import pytest
import torch

from trecvit_kernels import backends
from trecvit_kernels.ops.residual_norm import op, reference
from trecvit_kernels.ops.residual_norm.op import residual_norm

EPS = 1e-6
DEVICE = "cuda" if torch.cuda.is_available() and not backends.simulated() else "cpu"
BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(not (s := backends.available()[name]).available, reason=s.reason or name),
    )
    for name in op.BACKENDS
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("centred", (False, True), ids=("rms", "layer"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 48), (3, 5, 13), (70, 2), (2, 3, 768)], ids=str)
def test_matches_float64(backend, centred, dtype, shape):
    x, branch = (torch.randn(shape).mul(2).to(DEVICE, dtype) for _ in range(2))
    x += 3
    weight = torch.randn(shape[-1]).to(DEVICE, dtype)
    bias = torch.randn(shape[-1]).to(DEVICE, dtype) if centred else None
    with torch.no_grad():
        ours = residual_norm(x, branch, weight, bias, EPS, backend=backend)
        plain = reference.residual_norm(x, branch, weight, bias, EPS)
        # The norm is that of the rounded sum.
        total = (x + branch).double()
        _, exact = reference.residual_norm(
            total, torch.zeros_like(total), weight.double(), None if bias is None else bias.double(), EPS
        )
    assert ours[0].equal(x + branch)
    assert ours[1].dtype == dtype
    ulps = 4 if dtype != torch.float64 else 16
    allowed = 2 * (plain[1] - exact).abs().max() + ulps * torch.finfo(dtype).eps * exact.abs().max()
    assert (ours[1] - exact).abs().max() <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_empty_rows_and_special_values(backend):
    weight = torch.randn(6, device=DEVICE)
    with torch.no_grad():
        for x in (
            torch.randn(0, 6),
            torch.randn(6),
            torch.randn(6, 5).t(),
            torch.randn(3, 1, 6).expand(3, 4, 6),
        ):
            x = x.to(DEVICE)
            expected = reference.residual_norm(x, x, weight, weight, EPS)
            torch.testing.assert_close(residual_norm(x, x, weight, weight, EPS, backend=backend), expected)
        x = torch.randn(3, 6, device=DEVICE)
        x[0, 2], x[1, 0] = torch.nan, torch.inf
        total, y = residual_norm(x, torch.ones_like(x), weight, None, EPS, backend=backend)
    assert y[0].isnan().all()
    assert total[1, 0].isinf()
    assert y[1, 0].isnan()
    assert y[2].isfinite().all()


@pytest.mark.skipif(not backends.available()["cuda"].available, reason="the CUDA kernels cannot run here")
def test_kernel_has_no_gradients_and_says_so():
    x = torch.randn(2, 6, device=DEVICE, requires_grad=True)
    weight = torch.ones(6, device=DEVICE)
    with pytest.raises(RuntimeError, match="residual_norm: backend 'cuda' has no gradients"):
        residual_norm(x, x, weight, None, EPS, backend="cuda")
    with backends.use("cuda"):
        assert residual_norm(x, x, weight, None, EPS)[1].requires_grad  # left to the reference
