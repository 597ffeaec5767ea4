"""Micro-benchmarks of the layer and the model: ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trecvit_kernels import Stream, create_model
from trecvit_kernels.modules import GatedLRU

DTYPES = [torch.float32, torch.bfloat16]


def test_gated_lru_layer(benchmark: Any) -> None:
    layer = GatedLRU(1536, 12)
    x, dy = torch.randn(1, 32, 196, 1536, requires_grad=True), torch.randn(1, 32, 196, 1536)
    leaves = [x, *layer.parameters()]
    benchmark.pedantic(lambda: torch.autograd.grad(layer(x)[0], leaves, dy), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_trecvit_base_forward(benchmark: Any, dtype: torch.dtype) -> None:
    model = create_model("trecvit_base_k400").to(dtype).eval()
    video = torch.rand(1, 8, 3, 224, 224).to(dtype)
    with torch.no_grad():
        logits = benchmark.pedantic(lambda: model(video), rounds=3, warmup_rounds=1)
    assert logits.isfinite().all()


def test_trecvit_base_training_step(benchmark: Any) -> None:
    model = create_model("trecvit_base_k400").train()
    video, target = torch.rand(1, 8, 3, 224, 224), torch.tensor([7])

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(video), target)
        loss.backward()
        return loss.detach()

    assert benchmark.pedantic(step, rounds=2, warmup_rounds=1).isfinite()


@pytest.mark.parametrize("dtype", DTYPES)
def test_trecvit_base_streaming_step(benchmark: Any, dtype: torch.dtype) -> None:
    stream = Stream(create_model("trecvit_base_k400").to(dtype).eval())
    frame = torch.rand(1, 3, 224, 224).to(dtype)
    stream.push(frame)
    assert benchmark.pedantic(lambda: stream.push(frame), rounds=5, warmup_rounds=1).isfinite().all()
