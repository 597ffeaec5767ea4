"""The recurrent mixer's output made again behind it, and what that leaves for the mixer's own backward pass."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trecvit_kernels import backends
from trecvit_kernels.ops.recurrent_mixer import op as mixer

from ._suite import on

CASES = ("video-real-f32", "video-complex-bf16", "resets-real-f32", "start-real-f16", "one-frame-real")
_TENSORS = (
    "u",
    "v",
    "conv_weight",
    "conv_bias",
    "gate_x_weight",
    "gate_x_bias",
    "gate_a_weight",
    "gate_a_bias",
)
_TENSORS += ("a_param", "a_imag")
HANDS_OVER = ("native", "cuda")

pytestmark = [pytest.mark.kernels_only, pytest.mark.ops("recurrent_mixer")]


class _Calls(TorchDispatchMode):
    """How often each op of ours was called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "trecvit_kernels":
            self.counts[func.__name__.removesuffix(".default")] += 1
        return func(*args, **kwargs or {})


class _Squared(torch.autograd.Function):
    """A layer that keeps a recipe instead of its input, as our linear layers do."""

    @staticmethod
    def forward(ctx, z, make, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.make, ctx.count = make, len(tensors)
        return z.square()

    @staticmethod
    def backward(ctx, dy):
        z = ctx.make(*ctx.saved_tensors)
        return 2 * z * dy, None, *[None] * ctx.count


def _call(op, name: str, backend: str, device: str):  # type: ignore[no-untyped-def]
    """(z, the new state, its recipe, the inputs that have gradients) of a recorded call."""
    inputs = on(device, op.make_inputs(op.case(name)))
    state, reset = inputs.pop("state", None), inputs.pop("reset", None)
    tensors = (*(inputs.get(name) for name in _TENSORS), *(state or (None, None)))
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    with backends.use(backend):
        z, new_state = mixer.recurrent_mixer(**inputs, state=state, reset=reset)
        recipe = mixer.recipe(z, *tensors, reset)
    return z, new_state, recipe, leaves


def _gradients(op, name: str, backend: str, device: str, by_recipe: bool) -> list[Tensor]:  # type: ignore[no-untyped-def]
    z, (h, _), recipe, leaves = _call(op, name, backend, device)
    y = _Squared.apply(z, recipe.make, *recipe.tensors) if by_recipe else z.square()
    return [z, *torch.autograd.grad(y.float().sum() + h.sum(), leaves)]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_to_the_bit(op, backend, device, name: str) -> None:
    for got, expected in zip(
        _gradients(op, name, backend, device, True), _gradients(op, name, backend, device, False), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", CASES)
def test_gates_are_made_once_in_the_backward_pass(op, backend, device, name: str) -> None:
    z, _, recipe, leaves = _call(op, name, backend, device)
    y = _Squared.apply(z, recipe.make, *recipe.tensors)
    with _Calls() as calls:
        torch.autograd.grad(y.float().sum(), leaves)
    if backend in HANDS_OVER and name != "one-frame-real":
        assert calls.counts == {"recurrent_mixer_again": 1, "recurrent_mixer_backward_from": 1}
    else:
        assert calls.counts == {"recurrent_mixer_forward": 1, "recurrent_mixer_backward": 1}


def test_what_was_handed_over_is_used_once(op, backend, device) -> None:
    """A second pass over the same graph makes it anew: the first has overwritten the gates."""
    z, _, recipe, leaves = _call(op, "video-real-f32", backend, device)
    y = _Squared.apply(z, recipe.make, *recipe.tensors).sum()
    first = torch.autograd.grad(y, leaves, retain_graph=True)
    with _Calls() as calls:
        without_recipe = torch.autograd.grad(z.sum(), leaves, retain_graph=True)
    assert calls.counts == {"recurrent_mixer_backward": 1}
    assert not torch.equal(without_recipe[0], first[0])
    for got, expected in zip(torch.autograd.grad(y, leaves), first, strict=True):
        assert torch.equal(got, expected)


def test_a_pass_that_stops_before_the_mixer(op, backend, device) -> None:
    """A gradient of the layer behind it alone; then all, from what the first pass has left or from nothing."""
    z, _, recipe, leaves = _call(op, "video-real-f32", backend, device)
    expected = torch.autograd.grad(z.square().sum(), leaves, retain_graph=True)
    scale = nn.Parameter(torch.ones((), device=z.device))
    y = (scale * _Squared.apply(z, recipe.make, *recipe.tensors)).sum()
    torch.autograd.grad(y, scale, retain_graph=True)
    recipe.make(*recipe.tensors)
    for got, one in zip(torch.autograd.grad(y, leaves), expected, strict=True):
        assert torch.equal(got, one)
