"""The MLP's GELU: every backend against float64, and the framework around it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trecvit_kernels import backends
from trecvit_kernels.ops.gelu import op
from trecvit_kernels.ops.gelu.op import gelu_tanh

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not backends.available()[name].available, reason=name))
    for name in op.BACKENDS
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def value_and_gradient(f, x, dy):
    x = x.detach().clone().requires_grad_()
    y = f(x)
    (dx,) = torch.autograd.grad(y, x, dy.to(y.dtype))
    return y.detach(), dx


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.sanitize
def test_matches_float64(backend, dtype):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(5000) * scale for scale in (1e-3, 1.0, 10.0)]).to(dtype)
    dy = torch.randn(x.shape).to(dtype)
    exact = value_and_gradient(lambda t: F.gelu(t, approximate="tanh"), x.double(), dy.double())
    plain = value_and_gradient(lambda t: F.gelu(t, approximate="tanh"), x, dy)
    ours = value_and_gradient(lambda t: gelu_tanh(t, backend=backend), x, dy)
    for name, e, p, o in zip(("y", "dx"), exact, plain, ours, strict=True):
        allowed = 2 * (p.double() - e).abs().max() + 2 * torch.finfo(dtype).eps * e.abs().max()
        if (
            dtype == torch.float64
        ):  # PyTorch's own float64 is the truth here, with its cancellation in 1 - tanh^2
            allowed = torch.tensor(1e-13, dtype=dtype)
        assert o.dtype == dtype
        assert (o.double() - e).abs().max() <= allowed, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.sanitize
def test_shapes_strides_and_special_values(backend):
    for x in (torch.randn(0, 3), torch.randn(()), torch.randn(7, 5).t(), torch.randn(3, 1).expand(3, 4)):
        torch.testing.assert_close(gelu_tanh(x, backend=backend), F.gelu(x, approximate="tanh"))
    special = gelu_tanh(torch.tensor([torch.inf, -1e30, torch.nan, 0.0, 3.0]), backend=backend)
    assert special[0] == torch.inf
    assert special[1] == 0
    assert special[2].isnan()
    assert special[3] == 0
    assert special[4] == pytest.approx(2.9964, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_transforms(backend):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def run(t):
        return gelu_tanh(t, backend=backend)

    assert torch.autograd.gradcheck(run, (x,))
    gradient = torch.func.vmap(torch.func.grad(lambda t: run(t).sum()))(x.detach())
    (expected,) = torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x)
    torch.testing.assert_close(gradient, expected)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), F.gelu(x, approximate="tanh"))


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
def test_opcheck():
    x = torch.randn(4, 3)
    torch.library.opcheck(torch.ops.trecvit_kernels.gelu_forward.default, (x, "native"))
    torch.library.opcheck(torch.ops.trecvit_kernels.gelu_backward.default, (x, x, "native"))


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        gelu_tanh([1.0])
    with pytest.raises(TypeError, match="x must have dtype"):
        gelu_tanh(torch.arange(3))
    with pytest.raises(ValueError, match="backend must be one of"):
        gelu_tanh(torch.randn(3), backend="sdpa")
