"""A stream's copies of its weights as the CPU's products want them: used where they hold, never seen in numbers."""

from __future__ import annotations

import contextlib

import pytest
import torch

import trecvit_kernels as tk
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.ops import _products
from trecvit_kernels.ops.linear import native

pytestmark = pytest.mark.skipif(not tk.backends.available()["native"].available, reason="native")


def _model(dtype: torch.dtype) -> tk.TRecViT:
    torch.manual_seed(0)
    config = tk.TRecViTConfig(
        width=32,
        depth=2,
        mlp_dim=64,
        num_heads=2,
        patch_size=4,
        image_size=(8, 12),
        lru_width=32,
        num_classes=5,
    )
    return tk.TRecViT(config).to(dtype).eval()


@pytest.mark.parametrize("change", ("none", "weight", "parameter", "backend", "autocast"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_the_numbers_are_those_of_the_weights(dtype: torch.dtype, change: str) -> None:
    """Bit for bit the step of the model, also after a weight, the backend or autocast has changed."""
    model = _model(dtype)
    stream, state = tk.Stream(model), model.init_state(1)
    with torch.no_grad(), contextlib.ExitStack() as scope:
        for t, frame in enumerate(torch.rand(4, 1, 3, 8, 12).to(dtype)):
            if t == 2 and change == "weight":
                model.blocks[0].space.qkv.weight.mul_(1.5)
            if t == 2 and change == "parameter":
                weight = model.blocks[0].space.qkv.weight
                model.blocks[0].space.qkv.weight = torch.nn.Parameter(1.5 * weight)
            if t == 2 and change == "backend":
                scope.enter_context(tk.backends.use("reference"))
            if t == 2 and change == "autocast":
                to = torch.bfloat16 if dtype == torch.float32 else dtype
                scope.enter_context(torch.autocast("cpu", to))
            expected, state = model.step(frame, state)
            assert stream.push(frame).equal(expected), t


@pytest.mark.parametrize("widened", (True, False), ids=("float32", "onednn"))
def test_every_linear_layer_takes_its_copy(widened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 where products are made in that, otherwise in oneDNN's layout."""
    if not widened and not native.has_onednn(torch.bfloat16):
        pytest.skip("oneDNN does not multiply bfloat16 here")
    monkeypatch.setattr(_products, "WIDENED", frozenset([torch.bfloat16] if widened else []))
    model, taken = _model(torch.bfloat16), []
    stream, frame = tk.Stream(model), torch.rand(1, 3, 8, 12).to(torch.bfloat16)
    product = native.linear_forward

    def watched(x, weight, bias):
        taken.append((weight.layout, weight.dtype))
        return product(x, weight, bias)

    with torch.no_grad():
        expected, _ = model.step(frame, model.init_state(1))
    monkeypatch.setattr(native, "linear_forward", watched)
    assert stream.push(frame).equal(expected)
    copy = (torch.strided, torch.float32) if widened else (torch._mkldnn, torch.bfloat16)
    layers = sum(isinstance(module, Linear) for module in model.modules())
    assert [kind for kind in taken if kind == copy] == [copy] * layers * (2 if widened else 1)
