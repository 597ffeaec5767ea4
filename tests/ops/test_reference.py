"""The references themselves: against NumPy by another route, the backward formulas, precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trecvit_kernels.ops.gated_lru import reference as gated_lru

from . import _formulas
from ._suite import OPS, Results, largest, map_tensors, run, truth, widened


@pytest.mark.reference_only
def test_values_match_numpy(op, backend, case):
    inputs = map_tensors(truth(op, case).inputs, widened)
    got = run(op, inputs, backend, None).outputs
    with np.errstate(over="ignore"):
        expected = getattr(_formulas, op.name)(**map_tensors(inputs, lambda t: t.numpy()))
    for name, value in zip(op.outputs, expected, strict=True):
        value = torch.from_numpy(np.ascontiguousarray(value))
        assert value.shape == got[name].shape
        error = largest(got[name] - value)
        # The formulas subtract sums of log a, which go to -10,000 in the extreme cases: 1e4 ulps.
        assert error <= 1e-10 * max(1.0, largest(value)), f"{name}: {error}"


@pytest.mark.reference_only
@pytest.mark.ops("linear_scan", "gated_lru", "spatial_attention")
def test_low_precision_rounds_only_at_the_edges(op, backend, case):
    """16-bit results are one rounding away from the truth; float32 ones (states!) never were 16-bit."""
    expected = truth(op, case)
    exact = dict(expected.exact.items())
    for name, value in expected.reference.items():
        ulps = 1 if value.dtype in (torch.bfloat16, torch.float16) else 64
        error = largest(widened(value) - exact[name])
        assert error <= ulps * torch.finfo(value.dtype).eps * max(largest(exact[name]), 1e-30), name


@pytest.mark.parametrize("normalizer", ("sqrt", "convex"))
@pytest.mark.parametrize("is_complex", (False, True), ids=("real", "complex"))
@pytest.mark.parametrize("decay", ("typical", "near_one"))
def test_gated_lru_backward_formulas(is_complex, normalizer, decay):
    """Every line of the derivation (docs/design.md, Mathematics) against autograd of the reference."""
    kind = "complex" if is_complex else "real"
    name = f"near-one-{kind}-f64" if decay == "near_one" else f"resets-{kind}-f64"
    expected = truth(OPS["gated_lru"], OPS["gated_lru"].case(name))
    inputs = dict(expected.inputs, normalizer=normalizer)
    got = run(OPS["gated_lru"], inputs, "reference", expected.cotangents)
    formulas = Results(
        {}, _gated_lru_backward(**inputs, **{f"d{n}": t for n, t in expected.cotangents.items()})
    )
    assert formulas.gradients.keys() == got.gradients.keys()
    for name, value in formulas.gradients.items():
        error = largest(value - got.gradients[name])
        assert error <= 1e-11 * largest(value), f"{name}: {error} of {largest(value)}"


def _gated_lru_backward(x, gate_x, gate_a, a_param, a_imag, h0, reset, normalizer, dy, dh_last):
    """Gradients by hand: complex numbers throughout, time backwards."""

    def merged(tensor):
        return torch.cat([tensor.real, tensor.imag], dim=-1) if a_imag is not None else tensor.real

    def number(tensor):
        return torch.complex(*tensor.chunk(2, dim=-1)) if a_imag is not None else tensor.to(torch.complex128)

    x, dy, dh_last, h_before = number(x), number(dy), number(dh_last), number(h0)
    theta = torch.zeros_like(a_param) if a_imag is None else a_imag
    if reset is None:
        reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    here = reset.reshape(*reset.shape, *[1] * (x.ndim - 2))
    softplus = torch.log1p(a_param.exp())
    i, r = 1 / (1 + (-gate_x).exp()), 1 / (1 + (-gate_a).exp())
    log_a = -8 * r * softplus
    a = torch.where(here, 0, torch.exp(log_a + 1j * theta * r))
    beta_free = torch.sqrt(-torch.expm1(2 * log_a)) if normalizer == "sqrt" else -torch.expm1(log_a)
    slope = -torch.exp(log_a)
    if normalizer == "sqrt":
        slope = -torch.exp(2 * log_a) * torch.clamp(1 / beta_free, max=2000)
    beta = torch.where(here, 1.0, beta_free)

    frames = x.shape[1]
    states = [h_before]
    for t in range(frames):
        states.append(a[:, t] * states[-1] + beta[:, t] * i[:, t] * x[:, t])
    dx, dgate_x, dgate_a = torch.zeros_like(x), torch.zeros_like(gate_x), torch.zeros_like(gate_a)
    da_param, da_imag = torch.zeros_like(a_param), torch.zeros_like(a_param)
    carried = dh_last  # conj(a_{t+1}) G_{t+1}
    for t in reversed(range(frames)):
        G = dy[:, t] + carried
        d_log_a = ((a[:, t] * states[t]).conj() * G).real
        d_phase = ((a[:, t] * states[t]).conj() * G).imag
        x_G = (x[:, t].conj() * G).real
        d_log_a = torch.where(here[:, t], 0.0, d_log_a + i[:, t] * x_G * slope[:, t])
        d_phase = torch.where(here[:, t], 0.0, d_phase)
        dx[:, t] = beta[:, t] * i[:, t] * G
        d_r = -8 * softplus * d_log_a + theta * d_phase
        dgate_x[:, t] = beta[:, t] * x_G * i[:, t] * (1 - i[:, t])
        dgate_a[:, t] = d_r * r[:, t] * (1 - r[:, t])
        da_param += (-8 * r[:, t] * torch.sigmoid(a_param) * d_log_a).flatten(0, -2).sum(0)
        da_imag += (r[:, t] * d_phase).flatten(0, -2).sum(0)
        carried = a[:, t].conj() * G
    gradients = {"x": merged(dx), "gate_x": dgate_x, "gate_a": dgate_a, "a_param": da_param}
    if a_imag is not None:
        gradients["a_imag"] = da_imag
    return gradients | {"h0": merged(carried)}


def test_square_root_slope_is_bounded():
    """Where |a| rounds to 1 the derivative of the normaliser stays at 1000 instead of growing without end."""
    power = torch.tensor([0.0, 1e-12, 2.5e-7, 1e-2], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gated_lru._BoundedSqrt.apply(power).sum(), power)
    assert torch.allclose(slope, torch.tensor([1000.0, 1000.0, 1000.0, 5.0], dtype=torch.float64), rtol=1e-9)
