"""Every op, every kernel, every case: values and all gradients against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from trecvit_kernels import backends

from ._suite import assert_agree, assert_matches, map_tensors, named_outputs, on, run, run_without_grad, truth


@pytest.mark.sanitize
@pytest.mark.kernels_only
def test_matches_float64_reference(op, backend, case, device):
    expected = truth(op, case)
    inputs, cotangents = on(device, expected.inputs), on(device, expected.cotangents)
    results = []
    for schedule in op.schedules(backend):
        results.append(run(op, inputs, backend, cotangents, schedule))
        assert_matches(results[-1], expected, f"{op.name} {backend} {case.name} {schedule or ''}")
    for other in results[1:]:
        assert_agree(results[0], other, expected, f"{op.name} {backend} {case.name}, schedules")


@pytest.mark.kernels_only
def test_without_grad_gives_the_same_outputs(op, backend, case, device):
    """The path that saves no states computes the same numbers, bit for bit."""
    if backends.interpreted() and case.dtype not in (torch.float32, torch.complex64):
        pytest.skip(
            "only in single precision: the interpreter is slow, and the path does not depend on the dtype"
        )
    inputs = on(device, truth(op, case).inputs)
    with_grad = map_tensors(inputs, lambda t: t if t.dtype == torch.bool else t.detach().requires_grad_())
    recorded = named_outputs(op, op.function(**with_grad, backend=backend))
    plain = run_without_grad(op, inputs, backend)
    for name, value in recorded.items():
        assert value.equal(plain[name]), name
