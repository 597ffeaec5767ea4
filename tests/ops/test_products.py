"""16-bit matrix products on CPUs with and without instructions for them: whichever this machine is, both are tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trecvit_kernels as tk
from trecvit_kernels.ops import _products
from trecvit_kernels.ops.block_diagonal.op import block_diagonal
from trecvit_kernels.ops.linear.op import linear

HALF = (torch.bfloat16, torch.float16)
OPS: dict[str, tuple[Callable[..., Tensor], Sequence[tuple[int, ...]]]] = {
    "linear": (lambda x, w, b: linear(x, w, b, backend="native"), ((3, 17, 24), (40, 24), (40,))),
    "block_diagonal": (
        lambda x, w, b: block_diagonal(x, w, b, backend="native"),
        ((3, 17, 24), (2, 12, 8), (2, 8)),
    ),
    "spatial_attention": (lambda qkv: tk.ops.spatial_attention(qkv, 2, backend="sdpa"), ((2, 3, 17, 48),)),
    "recurrent_mixer": (
        lambda *given: tk.ops.recurrent_mixer(*given, backend="native")[0],
        ((2, 5, 3, 24), (2, 5, 3, 24), (4, 24), (24,), *((2, 12, 12), (2, 12)) * 2, (24,)),
    ),
}

pytestmark = pytest.mark.skipif(not tk.backends.available()["native"].available, reason="native")


@pytest.fixture(params=[True, False], ids=["widened", "as-they-are"])
def widened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A processor without products of 16-bit numbers, or with them."""
    monkeypatch.setattr(_products, "WIDENED", frozenset(HALF if request.param else ()))
    return request.param


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """Dtypes in which PyTorch's products came out."""
    found: set[torch.dtype] = set()

    def watch(place: Any, name: str) -> None:
        original = getattr(place, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            found.add(result.dtype if isinstance(result, Tensor) else result[0].dtype)
            return result

        monkeypatch.setattr(place, name, watched)

    watch(torch, "bmm")
    watch(F, "linear")
    watch(torch.ops.mkldnn, "_linear_pointwise")
    watch(F, "scaled_dot_product_attention")
    watch(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    watch(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")
    return found


def _value_and_gradients(function: Callable[..., Tensor], leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


@pytest.mark.parametrize("autocast", (False, True), ids=("plain", "autocast"))
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients(
    name: str, dtype: torch.dtype, autocast: bool, widened: bool, products: set[torch.dtype]
) -> None:
    """Against float64; autocast, also during the backward pass, does not bring the slow products back."""
    function, shapes = OPS[name]
    leaves = [(torch.randn(shape) / 2).to(dtype).requires_grad_() for shape in shapes]
    with torch.autocast("cpu", dtype, enabled=autocast):
        y = function(*leaves)
        dy = torch.randn_like(y)
        ours = [y.detach(), *torch.autograd.grad(y, leaves, dy)]
    if widened:
        assert products == {torch.float32}
    else:
        assert dtype in products
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = _plain(name, exact_leaves)
    exact = [y.detach(), *torch.autograd.grad(y, exact_leaves, dy.double())]
    for index, (result, truth) in enumerate(zip(ours, exact, strict=True)):
        assert result.dtype == dtype
        error = (result.double() - truth).abs().max() / truth.abs().max()
        assert error < 8 * torch.finfo(dtype).eps, (index, error)


def _plain(name: str, given: Sequence[Tensor]) -> Tensor:
    """The op on reference code."""
    with tk.backends.use("reference"):
        if name == "linear":
            return linear(*given)
        if name == "block_diagonal":
            return block_diagonal(*given)
        if name == "spatial_attention":
            return tk.ops.spatial_attention(given[0], 2)
        return tk.ops.recurrent_mixer(*given)[0]


def test_compiled_attention_is_one_graph(widened: bool) -> None:
    qkv = torch.randn(2, 17, 48).to(torch.bfloat16)
    compiled = torch.compile(
        lambda t: tk.ops.spatial_attention(t, 2, backend="sdpa"), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(qkv), tk.ops.spatial_attention(qkv, 2, backend="sdpa"))
