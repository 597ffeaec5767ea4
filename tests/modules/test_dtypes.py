"""Which dtypes of x the blocks take on weights of which dtype: others are refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from trecvit_kernels.modules import RecurrentBlock, SpatialBlock
from trecvit_kernels.modules.linear import check_weights
from trecvit_kernels.modules.temporal import (
    AblatedRecurrentBlock,
    Conv1dBlock,
    LSTMBlock,
    NoTemporal,
    TemporalAttention,
)
from trecvit_kernels.ops.linear.op import linear_unchecked

F32, BF16, F16, F64 = DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SAME = {(dtype, dtype) for dtype in DTYPES}
MIXED = SAME | {(F32, BF16), (F32, F16)}  # (weights, x)
EVERY = {(weights, x) for weights in DTYPES for x in DTYPES}
AUTOCAST = SAME | {(weights, x) for weights, x in EVERY if x != F64}  # to bfloat16

BLOCKS: dict[str, tuple[Callable[[], nn.Module], set, set]] = {
    # CPU autocast leaves LayerNorm alone. Float16 becomes bfloat16 behind the norm, and is no residual of it.
    "SpatialBlock": (lambda: SpatialBlock(12, 8, 2), MIXED, MIXED - {(F16, F16)}),
    "RecurrentBlock": (lambda: RecurrentBlock(12, 8, 2), MIXED, AUTOCAST),
    "AblatedRecurrentBlock": (lambda: AblatedRecurrentBlock(12, 8, 2, gates=False), MIXED, AUTOCAST),
    "Conv1dBlock": (lambda: Conv1dBlock(12, 8), MIXED, AUTOCAST),
    "TemporalAttention": (lambda: TemporalAttention(12, 2), MIXED, AUTOCAST),
    "LSTMBlock": (lambda: LSTMBlock(12, 8), EVERY, EVERY),
    "NoTemporal": (lambda: NoTemporal(12), EVERY, EVERY),
}


@pytest.mark.filterwarnings("ignore:RNN module weights")
@pytest.mark.parametrize("autocast", (False, True), ids=("plain", "autocast"))
@pytest.mark.parametrize("name", BLOCKS)
def test_pairs(name: str, autocast: bool, backend: str) -> None:
    build, *accepted = BLOCKS[name]
    for weights, dtype in EVERY:
        block, x = build().to(weights), torch.randn(2, 3, 4, 12).to(dtype)
        mode = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
        with mode:
            if (weights, dtype) in accepted[autocast]:
                y = block(x)
                y = y if isinstance(y, torch.Tensor) else y[0]
                assert y.isfinite().all(), (weights, dtype)
            elif weights != dtype:
                names = [str(kind).removeprefix("torch.") for kind in (weights, dtype)]
                with pytest.raises(
                    TypeError, match=rf"{name} with weights in {names[0]}: x must .* got {names[1]}"
                ):
                    block(x)


def test_a_layer_of_another_kind_is_not_judged() -> None:
    """Quantised layers have a function of that name, or integers."""
    x = torch.randn(1, 2, 12)
    layer = nn.Identity()
    check_weights("here", x, layer)
    layer.weight = lambda: None
    check_weights("here", x, layer)
    layer.weight = torch.zeros(12, 12, dtype=torch.int8)
    check_weights("here", x, layer)


@pytest.mark.parametrize("dtype", (BF16, F16), ids=str)
def test_linear_casts_weights_to_16_bits(dtype: torch.dtype, backend: str, monkeypatch) -> None:
    """Also where the processor multiplies 16-bit matrices: there PyTorch does not mix dtypes."""
    from trecvit_kernels.ops.linear import native

    monkeypatch.setattr(native, "multiplied_in", lambda t: t.dtype)
    monkeypatch.setattr(native, "has_onednn", lambda dtype: False)
    x, weight, bias = torch.randn(2, 5).to(dtype), torch.randn(3, 5).requires_grad_(), torch.randn(3)
    y = linear_unchecked(x, weight, bias)
    assert y.dtype == dtype
    assert torch.equal(y, linear_unchecked(x, weight.to(dtype), bias.to(dtype)))
    y.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == F32
