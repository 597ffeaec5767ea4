"""torch.func on the ops: grad, vmap over inputs and over parameters, per-example gradients."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vjp, vmap

from ._suite import leaves, on, run, truth
from .test_framework import _call


def _tiny(op):
    """Small cases: every transform unrolls into many calls."""
    case = type(op.cases[0])
    if op.name == "linear_scan":
        return [case("real", 2, 5, (2, 3)), case("complex", 1, 18, (3,), torch.complex64, reverse=True)]
    if op.name == "spatial_attention":
        return [case("tiny", (1, 2), 4, 2, 3)]
    state = {"h0": False} if op.name == "gated_lru" else {"state": False}
    return [
        case("state", 2, 5, (2,), 4),
        case("resets", 2, 5, (2,), 4, complex=True, reset="random"),
        case("start", 1, 18, (2,), 4, **state),
    ]


def _setups(op, backend, device):
    for case in _tiny(op):
        expected = truth(op, case)
        inputs = on(device, expected.inputs)
        function, tensors = _call(op, inputs, backend)
        yield case.name, inputs, function, tensors, on(device, expected.cotangents)


def _loss(op, cotangents, function):
    def loss(*tensors):
        pairs = zip(function(*tensors), cotangents.values(), strict=True)
        return sum((value * weight.conj()).real.sum() for value, weight in pairs)

    return loss


def test_grad(op, backend, device):
    for name, inputs, function, tensors, cotangents in _setups(op, backend, device):
        got = grad(_loss(op, cotangents, function), argnums=tuple(range(len(tensors))))(*tensors)
        expected = run(op, inputs, backend, cotangents).gradients
        for (key, value), gradient in zip(expected.items(), got, strict=True):
            torch.testing.assert_close(gradient, value, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")


def test_vjp(op, backend, device):
    for name, inputs, function, tensors, cotangents in _setups(op, backend, device):
        outputs, pull = vjp(function, *tensors)
        expected = run(op, inputs, backend, cotangents)
        for one, other in zip(outputs, expected.outputs.values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        for (key, value), gradient in zip(
            expected.gradients.items(), pull(tuple(cotangents.values())), strict=True
        ):
            torch.testing.assert_close(gradient, value, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")


def _stacked(tensors, which, copies=3):
    """Those of the tensors that ``which`` names get a leading dimension of different copies."""
    generator = torch.Generator().manual_seed(7)
    stacked = []
    for tensor, chosen in zip(tensors, which, strict=True):
        if not chosen:
            stacked.append(tensor)
            continue
        noise = torch.randn((copies, *tensor.shape), generator=generator, dtype=tensor.dtype).to(
            tensor.device
        )
        stacked.append(tensor + 0.1 * noise)
    return stacked


@pytest.mark.parametrize("batched", ("all", "activations", "parameters", "one"))
def test_vmap(op, backend, device, batched):
    """Outputs and gradients of a batch of calls against one call after the other."""
    activations = {"a", "b", "x", "gate_x", "gate_a", "u", "v", "qkv", "h0", "state[0]", "state[1]"}
    for name, inputs, function, tensors, cotangents in _setups(op, backend, device):
        names = list(leaves(inputs))
        which = {
            "all": [True] * len(names),
            "activations": [key in activations for key in names],
            "parameters": [key not in activations for key in names],
            "one": [index == 0 for index in range(len(names))],
        }[batched]
        if not any(which):
            which = [index == len(names) - 1 for index in range(len(names))]  # h0 of a scan, qkv of attention
        dims = tuple(0 if chosen else None for chosen in which)
        stacked = _stacked(tensors, which)
        loss = _loss(op, cotangents, function)
        everything = tuple(range(len(tensors)))
        outputs = vmap(function, in_dims=dims)(*stacked)
        gradients = vmap(grad(loss, argnums=everything), in_dims=dims)(*stacked)
        for index in range(3):
            one = [t[index] if chosen else t for t, chosen in zip(stacked, which, strict=True)]
            for got, expected in zip(outputs, function(*one), strict=True):
                torch.testing.assert_close(
                    got[index], expected, rtol=1e-5, atol=1e-5, msg=f"{name} {batched}"
                )
            for key, got, expected in zip(
                names, gradients, grad(loss, argnums=everything)(*one), strict=True
            ):
                torch.testing.assert_close(
                    got[index], expected, rtol=1e-4, atol=1e-4, msg=f"{name} {batched} {key}"
                )


@pytest.mark.ops("gated_lru")
def test_grad_of_vmap(op, backend, device):
    """One shared parameter, a mapped batch: its gradient is the sum over the batch."""
    for _, inputs, function, tensors, cotangents in _setups(op, backend, device):
        names = list(leaves(inputs))
        which = [key in ("x", "gate_x", "gate_a") for key in names]
        dims = tuple(0 if chosen else None for chosen in which)
        stacked = _stacked(tensors, which)
        loss = _loss(op, cotangents, function)
        position = names.index("a_param")
        mapped = vmap(loss, in_dims=dims)
        total = grad(lambda *values, mapped=mapped: mapped(*values).sum(), argnums=position)(*stacked)
        parts = vmap(grad(loss, argnums=position), in_dims=dims)(*stacked)
        torch.testing.assert_close(total, parts.sum(0), rtol=1e-5, atol=1e-4)
