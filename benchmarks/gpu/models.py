"""Rows of TRecViT-B on a GPU: streaming and training, against the targets' numbers and torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu.once import Once, lazily
from benchmarks.gpu.rows import Setting
from benchmarks.models import common as models
from benchmarks.rows import Comparison, Peer
from benchmarks.timing import Budget, Work
from trecvit_kernels import Stream, TRecViT, TRecViTConfig, accounting, backends
from trecvit_kernels.models import SIZES

NAMES = {"trecvit_base": "TRecViT-B", "trecvit_base_k400": "TRecViT-B, LRU width doubled"}
PUSHED, FRAMES_PER_SECOND = 64, 3000
BATCH, FRAMES = 8, 32
COMPILED, MATMUL_SHARE = 1.5, 0.5


def streaming(at: Setting) -> Iterator[Comparison]:
    """Frames pushed one after the other; the host's work counts."""
    for name, label in NAMES.items():
        yield from _streaming_rows(at, name, label)


def _streaming_rows(at: Setting, name: str, label: str) -> Iterator[Comparison]:
    model = Once(lambda: _build(at, name))
    pushed = 3 if at.tiny else PUSHED
    frames = Once(lambda: models.random_video(model(), pushed, 1)[:, 0].split(1))

    def push(**options: bool) -> Work:
        stream = Stream(model(), **options)

        def run() -> Tensor:
            for frame in frames():
                logits = stream.push(frame)
            return logits

        return run

    row = functools.partial(
        Comparison,
        "streaming",
        f"{label}, batch 1, bfloat16: {pushed} frames streamed",
        lazily(push),
        check=Once(lambda: models.check_streaming(model())),
        budget=Budget(1.0, 5, 30),
    )
    target = pushed / FRAMES_PER_SECOND
    constant = Peer(f"{FRAMES_PER_SECOND} frames/s", lambda: None, None)
    yield row([constant], limit=1.0, floor=True, bar=lambda _: target)
    eager = lazily(functools.partial(push, cuda_graph=False))
    yield row([Peer("the same without a CUDA graph", eager, None)])


def training(at: Setting) -> Iterator[Comparison]:
    """Forward, cross-entropy and backward: against the matrix products' rate and the compiled reference.

    The last row, compiled against not, says what torch.compile gains around our ops by fusing what lies between them:
    norms with residual additions, bias with GELU.
    """
    config = SIZES["trecvit_base"]
    if at.tiny:
        config = config.replace("training", **models.TINY)
    batch, frames = (1, 4) if at.tiny else (BATCH, FRAMES)
    model = Once(lambda: _build(at, "trecvit_base").train())
    video = Once(lambda: models.random_video(model(), batch, frames))
    steps = {
        "": lazily(lambda: models.training_step(model(), video())),
        ", compiled": lazily(lambda: models.training_step(_compiled(at, model()), video())),
    }
    flops = Once(lambda: matmul_flops(config, batch, frames))
    product = Once(lambda: gpu_timing.matmul(at.device, *([256] if at.tiny else [])))

    def least(seconds: float) -> float:
        """Seconds that the step's products take at the rate of the one that took ``seconds``."""
        return flops() / (product()[1] / seconds)

    what = (
        "TRecViT-B training step{}, " + "×".join(map(str, (batch, frames, *config.image_size))) + ", bfloat16"
    )
    check = Once(lambda: models.check_gradients(model()))
    row = functools.partial(Comparison, "training", check=check, budget=Budget(3.0, 5, 20))
    compiled = steps[", compiled"]
    for how, run in steps.items():
        floor = Peer(
            "its matrix products and attention at the rate of bf16 matmul", lazily(lambda: product()[0]), None
        )
        yield row(what.format(how), run, [floor], limit=1 / MATMUL_SHARE, floor=True, bar=least)
    reference = Peer("torch.compile of the model on reference ops", models.on("reference", compiled), None)
    yield row(what.format(", compiled"), compiled, [reference], limit=COMPILED)
    yield row(what.format(", compiled"), compiled, [Peer("the same, not compiled", steps[""], None)])


def _build(at: Setting, name: str) -> TRecViT:
    with torch.device(at.device):  # where random numbers take no time
        return models.build(at, name, torch.bfloat16)


def _compiled(at: Setting, model: TRecViT) -> TRecViT:
    with torch.device(at.device):
        return models.compiled_blocks(at, model)


def matmul_flops(config: TRecViTConfig, batch: int, frames: int) -> int:
    """Of a training step's matrix products and attention alone: the reference's other operations count nothing.

    Counted for one and for two frames, which differ by what every further frame adds: walking all of them takes most
    of a minute even under fake tensors.
    """
    first, two = _clip_flops(config, 1), _clip_flops(config, 2)
    return batch * (first + (two - first) * (frames - 1))


def _clip_flops(config: TRecViTConfig, frames: int) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), backends.use("reference"):
        fake = accounting.fake_model(lambda: TRecViT(config)).train()
        clip = torch.empty(1, frames, 3, *config.image_size)
        return accounting.flops(lambda: fake(clip), backward=True)
