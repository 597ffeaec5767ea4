"""The RMS norm: every backend against float64, and the framework around it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trecvit_kernels import backends
from trecvit_kernels.ops.rms_norm import op
from trecvit_kernels.ops.rms_norm.op import rms_norm

EPS = 1e-6
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not backends.available()[name].available, reason=name))
    for name in op.BACKENDS
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def plain(x, scale):
    return F.rms_norm(x, scale.shape, scale + 1, EPS)


def value_and_gradients(f, x, scale, dy):
    x, scale = x.detach().clone().requires_grad_(), scale.detach().clone().requires_grad_()
    y = f(x, scale)
    return y.detach(), *torch.autograd.grad(y, (x, scale), dy.to(y.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 150, 48), (3, 5, 13), (70, 2), (2, 3, 768)], ids=str)
@pytest.mark.sanitize
def test_matches_float64(backend, dtype, shape):
    x = (torch.randn(shape) * torch.rand(shape[:-1]).mul(6).sub(3).exp().unsqueeze(-1)).to(dtype)
    scale, dy = torch.randn(shape[-1]).to(dtype), torch.randn(shape).to(dtype)
    exact = value_and_gradients(plain, x.double(), scale.double(), dy.double())
    theirs = value_and_gradients(plain, x, scale, dy)
    ours = value_and_gradients(lambda t, s: rms_norm(t, s, EPS, backend=backend), x, scale, dy)
    for name, e, p, o in zip(("y", "dx", "dscale"), exact, theirs, ours, strict=True):
        ulps = 4 if dtype != torch.float64 else 16  # where the truth is rounded as well
        allowed = 2 * (p.double() - e).abs().max() + ulps * torch.finfo(dtype).eps * e.abs().max()
        assert o.dtype == dtype
        assert (o.double() - e).abs().max() <= allowed, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.sanitize
def test_strides_empty_batches_and_special_values(backend):
    scale = torch.randn(6)
    for x in (torch.randn(0, 6), torch.randn(6), torch.randn(6, 5).t(), torch.randn(3, 1, 6).expand(3, 4, 6)):
        torch.testing.assert_close(rms_norm(x, scale, EPS, backend=backend), plain(x, scale))
    x = torch.randn(3, 6)
    x[0, 2], x[1, 0] = torch.nan, torch.inf
    y = rms_norm(x, scale, EPS, backend=backend)
    assert y[0].isnan().all()
    assert y[1, 0].isnan()
    assert y[2].isfinite().all()
    assert rms_norm(torch.zeros(2, 6), scale, EPS, backend=backend).eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_transforms(backend):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def run(t, s):
        return rms_norm(t, s, EPS, backend=backend)

    assert torch.autograd.gradcheck(run, (x, scale))
    gradient = torch.func.vmap(torch.func.grad(lambda t: run(t, scale.detach()).sum()))(x.detach())
    (expected,) = torch.autograd.grad(plain(x, scale).sum(), x)
    torch.testing.assert_close(gradient, expected)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, scale), plain(x, scale))


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
def test_opcheck():
    x, scale = torch.randn(4, 3), torch.randn(3)
    torch.library.opcheck(torch.ops.trecvit_kernels.rms_norm_forward.default, (x, scale, EPS, "native"))
    torch.library.opcheck(torch.ops.trecvit_kernels.rms_norm_backward.default, (x, x, scale, EPS, "native"))


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        rms_norm([1.0], torch.randn(1), EPS)
    with pytest.raises(TypeError, match="x must have dtype"):
        rms_norm(torch.arange(3), torch.randn(3), EPS)
    with pytest.raises(ValueError, match=r"scale must have shape \(3,\), got \(4,\)"):
        rms_norm(torch.randn(2, 3), torch.randn(4), EPS)
    with pytest.raises(ValueError, match="backend must be one of"):
        rms_norm(torch.randn(3), torch.randn(3), EPS, backend="sdpa")
