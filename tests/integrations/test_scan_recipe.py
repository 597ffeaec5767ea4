"""The code of docs/integrations.md, run as printed: before and after give the same numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trecvit_kernels as tk

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
PATCH, BEFORE, AFTER, OWN_LAYOUT_BEFORE, OWN_LAYOUT_AFTER = range(5)


def names_of(block: int) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[block], PAGE.name, "exec"), names)
    return names


def assert_equal(after: Callable[..., list[Tensor]], before: Callable[..., list[Tensor]]) -> None:
    """After errs at most twice as much as before, whose float64 run is the truth."""
    for a, b, exact in zip(after(torch.float32), before(torch.float32), before(torch.float64), strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape == exact.shape
        allowed = 2 * (b - exact).abs().max() + 4 * torch.finfo(a.dtype).eps * exact.abs().max()
        assert (a - exact).abs().max() <= allowed


def test_page_has_the_blocks_that_are_tested() -> None:
    assert len(BLOCKS) == 5
    assert "associative_scan" in BLOCKS[BEFORE] and "accelerated_scan" in BLOCKS[OWN_LAYOUT_BEFORE]
    for block in (AFTER, OWN_LAYOUT_AFTER):
        assert "tk.ops.linear_scan" in BLOCKS[block] and "associative" not in BLOCKS[block]


@pytest.mark.parametrize("frames", [1, 8, 37])
def test_layer_on_associative_scan(frames: int) -> None:
    layers = [names_of(block)["LinearRNN"](16) for block in (AFTER, BEFORE)]
    layers[0].load_state_dict(layers[1].state_dict())
    x, dy = torch.randn(2, frames, 16), torch.randn(2, frames, 16)

    def run(layer: Any) -> Callable[[torch.dtype], list[Tensor]]:
        def values(dtype: torch.dtype) -> list[Tensor]:
            layer.to(dtype)
            leaf = x.to(dtype, copy=True).requires_grad_()
            y = layer(leaf)
            return [y.detach(), *torch.autograd.grad(y, [leaf, *layer.parameters()], dy.to(dtype))]

        return values

    assert_equal(run(layers[0]), run(layers[1]))


def test_layer_on_accelerated_scan() -> None:
    pytest.importorskip("accelerated_scan")
    a, b, dy = torch.rand(2, 32, 16), torch.randn(2, 32, 16), torch.randn(2, 32, 16)

    def run(block: int) -> Callable[[torch.dtype], list[Tensor]]:
        recurrence = names_of(block)["recurrence"]

        def values(dtype: torch.dtype) -> list[Tensor]:
            leaves = [t.to(dtype, copy=True).requires_grad_() for t in (a, b)]
            h = recurrence(*leaves)
            return [h.detach(), *torch.autograd.grad(h, leaves, dy.to(dtype))]

        return values

    assert_equal(run(OWN_LAYOUT_AFTER), run(OWN_LAYOUT_BEFORE))


def test_state_and_reset_as_the_page_says() -> None:
    a, b = torch.rand(2, 12, 4), torch.randn(2, 12, 4)
    a[:, 7] = 0.0
    h, last = tk.ops.linear_scan(a, b)
    first, state = tk.ops.linear_scan(a[:, :5], b[:, :5])
    second, end = tk.ops.linear_scan(a[:, 5:], b[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), h)
    torch.testing.assert_close(end, last)
    torch.testing.assert_close(tk.ops.linear_scan(a[:, 7:], b[:, 7:])[0], h[:, 7:])


def test_patch_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, with a random model of three small layers in place of the download."""
    transformers = pytest.importorskip("transformers")
    asked = []

    def small(name: str) -> Any:
        asked.append(name)
        config = transformers.RecurrentGemmaConfig(
            num_hidden_layers=3, vocab_size=31, hidden_size=32, intermediate_size=64, num_attention_heads=2
        )
        return transformers.RecurrentGemmaForCausalLM(config)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", small)
    model = names_of(PATCH)["model"]
    assert asked == ["google/recurrentgemma-2b"]
    assert "recurrence=trecvit_kernels" in repr(model)
    ids = torch.randint(1, 31, (1, 6))
    with torch.no_grad():
        patched = model(ids).logits
        torch.testing.assert_close(tk.integrations.unpatch(model)(ids).logits, patched, atol=1e-5, rtol=1e-5)
