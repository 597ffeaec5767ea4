"""The linear layers: every backend against float64, and the framework around it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from trecvit_kernels import backends
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.ops._recipe import Recipe
from trecvit_kernels.ops.linear import native, op
from trecvit_kernels.ops.linear.op import linear, linear_unchecked

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not backends.available()[name].available, reason=name))
    for name in op.BACKENDS
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def value_and_gradients(f, tensors, dy):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = f(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(backend, dtype, bias):
    tensors = [torch.randn(3, 17, 45).to(dtype), torch.randn(70, 45).to(dtype)]
    tensors += [torch.randn(70).to(dtype)] if bias else []
    dy = torch.randn(3, 17, 70).to(dtype)
    exact = value_and_gradients(F.linear, [t.double() for t in tensors], dy.double())
    theirs = value_and_gradients(F.linear, tensors, dy)
    ours = value_and_gradients(lambda *t: linear(*t, backend=backend), tensors, dy)
    for name, e, p, o in zip(("y", "dx", "dweight", "dbias"), exact, theirs, ours, strict=False):
        allowed = 2 * (p.double() - e).abs().max() + 4 * torch.finfo(dtype).eps * e.abs().max()
        assert o.dtype == dtype
        assert (o.double() - e).abs().max() <= allowed, name


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
@pytest.mark.parametrize("onednn", (True, False))
@pytest.mark.parametrize("slow", (True, False))
def test_strides_and_empty_sizes(onednn, slow, monkeypatch):
    if not onednn:
        monkeypatch.setattr(native, "has_onednn", lambda dtype: False)
    monkeypatch.setattr(native, "slow_with_transposed", lambda dtype: slow)
    weight, bias = torch.randn(6, 4), torch.randn(6)
    inputs = [
        torch.randn(4),
        torch.randn(0, 4),
        torch.randn(2, 0, 4),
        torch.randn(4, 5).t(),
        torch.randn(3, 9)[:, 2:6],
        torch.randn(1, 4).expand(5, 4),
    ]
    for x in inputs:
        for w in (weight, torch.randn(4, 6).t(), torch.randn(6, 8)[:, ::2]):
            torch.testing.assert_close(linear(x, w, bias, backend="native"), F.linear(x, w, bias))
    assert linear(torch.randn(3, 4), torch.randn(0, 4), backend="native").shape == (3, 0)
    nothing = torch.randn(3, 0), torch.randn(2, 0), torch.randn(2)
    torch.testing.assert_close(linear(*nothing, backend="native"), F.linear(*nothing))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lead", ((), (0,), (5,), (2, 0), (2, 3, 4)), ids=str)
def test_gradients_for_any_leading_shape_and_an_addition_in_place(backend, lead):
    """The result is no view: autograd would copy the gradient of one that is written over."""
    x, weight, bias, more = torch.randn(*lead, 4), torch.randn(6, 4), torch.randn(6), torch.randn(*lead, 6)
    results = {}
    for name, f in (("ours", lambda *t: linear(*t, backend=backend)), ("plain", F.linear)):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = f(*leaves).add_(more)
        assert name == "plain" or backend == "reference" or y.grad_fn.name() == "AddBackward0"
        results[name] = y, *torch.autograd.grad(y.sin().sum(), leaves)
    for one, other in zip(results["ours"], results["plain"], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
@pytest.mark.skipif(not native.has_onednn(torch.float32), reason="PyTorch is built without oneDNN")
@pytest.mark.parametrize("slow", (True, False))
def test_transposed_matrices_go_where_they_are_fast(slow, monkeypatch):
    """Products of the backward pass have a transposed factor, that of the forward pass has none."""
    monkeypatch.setattr(native, "slow_with_transposed", lambda dtype: slow)
    x, weight = torch.randn(5, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)

    def by_onednn(work):
        with torch.profiler.profile() as profile:
            work()
        return sum(event.name == "mkldnn::_linear_pointwise" for event in profile.events())

    assert by_onednn(lambda: linear(x, weight, backend="native")) == 1
    y = linear(x, weight, backend="native").sum()
    assert by_onednn(y.backward) == (0 if slow else 2)


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
def test_non_finite_values_stay_in_their_rows():
    x = torch.randn(3, 8)
    x[0, 1], x[1, 2] = torch.nan, torch.inf
    y = linear(x, torch.randn(5, 8), torch.randn(5), backend="native")
    assert y[0].isnan().all()
    assert not y[1].isfinite().any()
    assert y[2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_gradients_and_transforms(backend):
    x, weight, bias = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 3), (5, 3), (5,))
    )

    def run(*tensors):
        return linear(*tensors, backend=backend)

    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))
    w = weight.detach()
    gradient = torch.func.vmap(torch.func.grad(lambda t: run(t, w).square().sum()))(x.detach())
    torch.testing.assert_close(gradient, 2 * x.detach() @ w.t() @ w)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), F.linear(x, weight, bias))


def of_a_sine(x, weight, bias, backend):
    """linear(sin(x)) that keeps x in place of its sine."""
    sine = x.sin()
    return linear_unchecked(sine, weight, bias, backend, recipe=Recipe(sine, torch.sin, (x,)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_input_made_again_gives_the_same_bits(backend, dtype, bias):
    tensors = [torch.randn(3, 17, 45).to(dtype), torch.randn(70, 45).to(dtype)]
    tensors += [torch.randn(70).to(dtype)] if bias else []
    dy = torch.randn(3, 17, 70)
    rest = (backend,) if bias else (None, backend)
    kept = value_and_gradients(lambda x, *t: linear_unchecked(x.sin(), *t, *rest), tensors, dy)
    again = value_and_gradients(lambda *t: of_a_sine(*t, *rest), tensors, dy)
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_and_costs_of_an_input_made_again(backend):
    x, weight, bias = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 3), (5, 3), (5,))
    )

    def run(*tensors):
        return of_a_sine(*tensors, backend)

    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))
    arguments = x.detach(), weight.detach(), bias.detach()
    for index in range(3):
        dims = tuple(0 if argument is arguments[0] else None for argument in arguments)
        each = torch.func.vmap(
            torch.func.grad(lambda *t: run(*t).square().sum(), argnums=index), in_dims=dims
        )(*arguments)
        for row, got in zip(x.detach(), each, strict=True):
            leaves = [row.clone().requires_grad_(), weight, bias]
            plain = F.linear(leaves[0].sin(), weight, bias).square().sum()
            torch.testing.assert_close(got, torch.autograd.grad(plain, leaves[index])[0])
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        FlopCounterMode(display=False) as counter,
    ):
        run(x, weight, bias).sum().backward()
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), weight.data_ptr()}
    assert counter.get_total_flops() == 3 * (2 * 4 * 3 * 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_all_three(backend):
    layer, x = Linear(8, 3), torch.randn(2, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), backends.use(backend):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
def test_flops_opcheck_and_unwanted_gradients():
    x, weight = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    torch.library.opcheck(
        torch.ops.trecvit_kernels.linear_forward.default, (x, weight.detach(), None, "native")
    )
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, backend="native").sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 4 * 3 * 5)  # the input's gradient is not wanted


def test_errors_name_the_argument():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(TypeError, match=r"linear: x must be a torch\.Tensor"):
        linear([1.0], weight)
    with pytest.raises(ValueError, match=r"weight must have shape \(4, 3\), got \(4, 2\)"):
        linear(x, torch.randn(4, 2))
    with pytest.raises(TypeError, match="weight must have dtype float32, got float64"):
        linear(x, weight.double())
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        linear(x, weight, torch.randn(3))
    with pytest.raises(ValueError, match="weight must have at least 2 dimensions"):
        linear(x, torch.randn(3))
