"""Rows of TRecViT-B on a GPU: streaming and training, against the targets' numbers and torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu.rows import Setting
from benchmarks.models import common as models
from benchmarks.rows import Comparison, Peer
from benchmarks.timing import Budget
from trecvit_kernels import Stream, TRecViT, accounting, backends

NAMES = {"trecvit_base": "TRecViT-B", "trecvit_base_k400": "TRecViT-B, LRU width doubled"}
PUSHED, FRAMES_PER_SECOND = 64, 3000
BATCH, FRAMES = 8, 32
_COMPILED, _MATMUL_SHARE = 1.5, 0.5


def streaming(at: Setting) -> Iterator[Comparison]:
    """Frames pushed one after the other; the host's work counts."""
    budget = Budget(1.0, 5, 30)
    for name, label in NAMES.items():
        model = models.build(at, name, torch.bfloat16)
        check = functools.cache(functools.partial(models.check_streaming, model))
        pushed = 3 if at.tiny else PUSHED
        frames = models.random_video(model, pushed, 1)[:, 0].split(1)
        streams = {"graph": Stream(model), "eager": Stream(model, cuda_graph=False)}

        def push(
            kind: str, streams: dict[str, Stream] = streams, frames: tuple[Tensor, ...] = frames
        ) -> Tensor:
            for frame in frames:
                logits = streams[kind].push(frame)
            return logits

        row = functools.partial(
            Comparison,
            "streaming",
            f"{label}, batch 1, bfloat16: {pushed} frames streamed",
            functools.partial(push, "graph"),
            check=check,
            budget=budget,
        )
        target = pushed / FRAMES_PER_SECOND
        constant = Peer(f"{FRAMES_PER_SECOND} frames/s", lambda: None, None)
        yield row([constant], limit=1.0, floor=True, bar=lambda _, target=target: target)
        yield row([Peer("the same without a CUDA graph", functools.partial(push, "eager"), None)])


def training(at: Setting) -> Iterator[Comparison]:
    """Forward, cross-entropy and backward: against the matrix products' rate and the compiled reference."""
    model = models.build(at, "trecvit_base", torch.bfloat16).train()
    batch, frames = (1, 4) if at.tiny else (BATCH, FRAMES)
    video = models.random_video(model, batch, frames)
    check = functools.cache(functools.partial(models.check_gradients, model))
    step = models.training_step(model, video)
    compiled = models.training_step(models.compiled_blocks(at, model), video)
    product, product_flops = gpu_timing.matmul(at.device, *([256] if at.tiny else []))
    step_flops = _matmul_flops(model, video)
    shape = "×".join(map(str, (batch, frames, *model.config.image_size)))
    row = functools.partial(Comparison, "training", check=check, budget=Budget(3.0, 5, 20))
    for how, run in (("", step), (", compiled", compiled)):
        yield row(
            f"TRecViT-B training step{how}, {shape}, bfloat16",
            run,
            [Peer(f"its {step_flops / 1e12:.2f} TFLOP at the rate of bf16 matmul", product, None)],
            limit=1 / _MATMUL_SHARE,
            floor=True,
            bar=lambda seconds: step_flops / (product_flops / seconds),
        )
    rivals = [Peer("torch.compile of the model on reference ops", models.on("reference", compiled), None)]
    yield row(f"TRecViT-B training step, compiled, {shape}, bfloat16", compiled, rivals, limit=_COMPILED)


def _matmul_flops(model: TRecViT, video: Tensor) -> int:
    """Of a training step's matrix products and attention alone: the reference's other operations count nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), backends.use("reference"):
        fake = accounting.fake_model(lambda: TRecViT(model.config)).train()
        clip = torch.empty(video.shape)
        return accounting.flops(lambda: fake(clip), backward=True)
