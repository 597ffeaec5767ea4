"""Kernels have first derivatives only: asking for more is refused, never answered with a part of it."""

from __future__ import annotations

import pytest
import torch

from trecvit_kernels import backends
from trecvit_kernels.ops.gelu.op import gelu_tanh

from ._suite import leaves, map_tensors, named_outputs, on

_REFUSAL = "second derivatives are not implemented by this backend"


@pytest.mark.ops("linear_scan", "gated_lru", "recurrent_mixer")
def test_second_derivatives_are_exact_or_refused(op, backend, device):
    case = next(case for case in op.cases if case.dtype == torch.float32)
    inputs = map_tensors(
        on(device, op.make_inputs(case)),
        lambda t: t if t.dtype == torch.bool else t.detach().requires_grad_(),
    )
    wanted = leaves(inputs)
    outputs = named_outputs(op, op.function(**inputs, backend=backend))
    # A term outside of the op: the second derivative exists without the op's share.
    loss = sum(value.square().sum() for value in (*outputs.values(), *wanted.values()))
    first = torch.autograd.grad(loss, list(wanted.values()), create_graph=True)
    total = sum(gradient.square().sum() for gradient in first)
    if backend == "reference":
        second = torch.autograd.grad(total, list(wanted.values()))
        assert all(gradient.isfinite().all() for gradient in second)
    else:
        with pytest.raises(RuntimeError, match=_REFUSAL):
            torch.autograd.grad(total, list(wanted.values()))


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
def test_refused_under_torch_func_too():
    def second(backend):
        return torch.func.grad(torch.func.grad(lambda x: gelu_tanh(x, backend=backend)))(torch.tensor(0.3))

    assert second("reference") != 0
    with pytest.raises(RuntimeError, match=_REFUSAL):
        second("native")


@pytest.mark.skipif(not backends.available()["native"].available, reason="native")
def test_a_recorded_backward_pass_keeps_its_gradients():
    x = torch.randn(5, requires_grad=True)
    plain, recorded = (
        torch.autograd.grad(gelu_tanh(x, backend="native").sum(), x, create_graph=create)[0]
        for create in (False, True)
    )
    assert torch.equal(plain, recorded)
    assert recorded.requires_grad
