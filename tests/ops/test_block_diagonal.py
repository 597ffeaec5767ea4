"""The gates' block-diagonal layer: every backend against float64, and the framework around it."""

from __future__ import annotations

import pytest
import torch

from trecvit_kernels import backends
from trecvit_kernels.ops.block_diagonal import op
from trecvit_kernels.ops.block_diagonal.op import block_diagonal

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not backends.available()[name].available, reason=name))
    for name in op.BACKENDS
]


def arguments(dtype=torch.float32, shape=(2, 3, 5), heads=3, width=4, out=6):
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(*size, generator=generator).to(dtype)

    return random(*shape, heads * width), random(heads, width, out), random(heads, out)


def dense(x, weight, bias):
    """The same layer with its whole, mostly zero, matrix."""
    return x @ torch.block_diag(*weight) + bias.flatten()


def results(f, args, dy):
    args = [a.detach().requires_grad_() for a in args]
    y = f(*args)
    return [y.detach(), *torch.autograd.grad(y, args, dy.to(y.dtype))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_equals_the_dense_matrix(backend, dtype):
    args = arguments(dtype)
    dy = torch.randn(2, 3, 5, 18).to(dtype)
    exact = results(dense, [a.double() for a in args], dy.double())
    plain = results(dense, args, dy)
    ours = results(lambda *a: block_diagonal(*a, backend=backend), args, dy)
    for name, e, p, o in zip(("y", "dx", "dweight", "dbias"), exact, plain, ours, strict=True):
        assert o.dtype == dtype
        allowed = 2 * (p.double() - e).abs().max() + 4 * torch.finfo(dtype).eps * e.abs().max()
        assert (o.double() - e).abs().max() <= allowed, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_empty_batches_and_parameter_dtypes(backend):
    x, weight, bias = arguments()
    for given in (x.transpose(0, 2), x[:0], x[0, 0, 0], torch.cat([x, x], -1)[..., 12:]):
        torch.testing.assert_close(
            block_diagonal(given, weight, bias, backend=backend), dense(given, weight, bias)
        )
    half = block_diagonal(x.bfloat16(), weight, bias, backend=backend)
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block_diagonal(x, weight, bias, backend=backend), half)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_transforms(backend):
    args = [a.requires_grad_() for a in arguments(torch.float64, shape=(2,))]

    def run(*a):
        return block_diagonal(*a, backend=backend)

    assert torch.autograd.gradcheck(run, args)
    x, weight, bias = (a.detach() for a in args)
    gradients = torch.func.vmap(torch.func.grad(lambda row: run(row, weight, bias).sum()))(x)
    torch.testing.assert_close(gradients, weight.sum(-1).flatten().expand_as(x))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), dense(*args))


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
def test_opcheck_and_flops():
    args = arguments()
    ops = torch.ops.trecvit_kernels
    torch.library.opcheck(ops.block_diagonal_forward.default, (*args, "native"))
    dy = torch.randn(2, 3, 5, 18)
    torch.library.opcheck(ops.block_diagonal_backward.default, (dy, *args[:2], "native"))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        block_diagonal(*args, backend="native")
    assert counter.get_total_flops() == 2 * 30 * 3 * 4 * 6


def test_errors_name_the_argument():
    x, weight, bias = arguments()
    with pytest.raises(TypeError, match="x must be"):
        block_diagonal(None, weight, bias)
    with pytest.raises(ValueError, match="weight must have"):
        block_diagonal(x, weight[:, :2], bias)
    with pytest.raises(ValueError, match="number of heads that divides 12"):
        block_diagonal(x, torch.randn(5, 2, 2), torch.randn(5, 2))
    with pytest.raises(ValueError, match="bias must have"):
        block_diagonal(x, weight, bias[:1])
