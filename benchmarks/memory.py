"""Rows of memory: what autograd keeps for one training step, found under fake tensors without computing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.rows import Result
from trecvit_kernels import accounting, backends, create_model

FRAMES = 32
MODELS = [("trecvit_base", "x1"), ("trecvit_base_k400", "x2")]
_SHARE = 0.6  # of what the model on reference ops keeps, at most


def results(*, quick: bool) -> Iterator[Result]:
    """Activations alive after the forward pass of 32 frames, float32, batch 1."""
    for name, width in MODELS:
        ours = _saved(name)
        with backends.use("reference"):
            theirs = _saved(name)
        yield Result(
            "memory",
            f"TRecViT-B, LRU width {width}, {FRAMES} frames, float32: activations saved for training",
            "same model, reference ops",
            ours=float(ours),
            theirs=float(theirs),
            unit="B",
            ratio=ours / theirs,
            low=ours / theirs,
            high=ours / theirs,
            floor=True,
            limit=_SHARE,
            rounds=1,
        )


def _saved(name: str) -> int:
    with FakeTensorMode():
        model = accounting.fake_model(lambda: create_model(name)).train()
        video = torch.empty(1, FRAMES, 3, 224, 224)
        return accounting.memory(model, video).saved
