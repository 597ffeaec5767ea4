"""FLOPs and parameters of TRecViT and of the models that it is compared with, found without computing.

2 FLOPs per multiply-add of linear layers, convolutions and attention (``trecvit_kernels.accounting``). Training is a
forward and a backward pass without optimizer. What a backward pass computes a second time counts again, which makes
ours a little larger: its attention is fused, and its recurrent block is computed anew. The others are counted with
materialised attention, whose backward pass computes nothing twice, as in the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.models import baselines
from benchmarks.models import common as models
from benchmarks.rows import Measurement
from benchmarks.setting import Setting
from trecvit_kernels import accounting, create_model

FRAMES = (8, 16, 32, 64, 128)
IMAGE = 224
MODES = ("forward", "training")

Values = dict[str, Any]


def rows(at: Setting) -> Iterator[Measurement]:
    """Every model at every number of frames, batch 1; on any device the same, for nothing runs."""
    frames = (2,) if at.tiny else (8, 32) if at.quick else FRAMES
    image = models.TINY["image_size"] if at.tiny else IMAGE
    for label, count in counters(at.tiny).items():
        for number in frames:
            for mode in MODES:

                def run(
                    count: Callable[[int, int, str], Values] = count, number: int = number, mode: str = mode
                ) -> Values:
                    return count(number, image, mode)

                yield Measurement("flops", label, {"frames": number, "image": image, "mode": mode}, run)


def counters(tiny: bool = False) -> dict[str, Callable[[int, int, str], Values]]:
    """Label -> (frames, image, mode) -> values; if tiny, one small TRecViT and one analytic count."""
    ours = {label: _ours(name, tiny) for label, name in baselines.TRECVIT.items()}
    theirs = {label: _theirs(baseline) for label, baseline in baselines.BASELINES.items()}
    return (
        {label: {**ours, **theirs}[label] for label in ("TRecViT-B", "X3D-L")} if tiny else {**ours, **theirs}
    )


def _ours(name: str, tiny: bool) -> Callable[[int, int, str], Values]:
    overrides = models.TINY if tiny else {}

    def count(frames: int, image: int, mode: str) -> Values:
        size = {**overrides, "image_size": image}
        return counted(lambda: create_model(name, **size), frames, image, mode)

    return count


def _theirs(baseline: baselines.Baseline) -> Callable[[int, int, str], Values]:
    def count(frames: int, image: int, mode: str) -> Values:
        note = {"note": baseline.note} if baseline.note else {}
        if baseline.analytic is not None:
            found = baseline.analytic(frames, image)
            return {"flop": getattr(found, mode), "parameters": found.parameters, **note}
        build = baseline.build
        assert build is not None, baseline.label
        return {**counted(lambda: build(frames, image, "eager"), frames, image, mode), **note}

    return count


def counted(build: Callable[[], nn.Module], frames: int, image: int, mode: str) -> Values:
    """FLOPs and parameters of a model on one video, under fake tensors."""
    training = mode == "training"
    with FakeTensorMode():
        model = accounting.fake_model(build).train(training)
        video = torch.empty(1, frames, 3, image, image)
        flop = accounting.flops(lambda: model(video), backward=training)
        return {"flop": flop, "parameters": accounting.parameters(model)}
