"""Peak memory of TRecViT and of other video models, and what it holds, over frames and resolution.

Found by PyTorch's ``MemTracker`` under fake tensors (``trecvit_kernels.accounting``): nothing is computed, so that a
model which needs 100 GB can be measured anywhere. On a GPU the caching allocator's own peak of the same step stands
beside it, where the step fits.

- Batch 1, video included. "inference": a forward pass without gradients. "training": a forward and a backward pass,
  without optimizer, as in the paper. "training with AdamW": with the fused AdamW, its states there from the start.
- "eager attention" materialises the scores, "flash attention" is ``F.scaled_dot_product_attention``. In 16 bits
  ``transformers`` keeps the softmax in float32 too, so that eager attention needs more there than in float32.
- "reference ops": the same model, ops in this package's reference backend. "plain eager ops": see ``plain.py``.
- Values: "total", the peak, and what it holds, "parameters" and the others, which add up to it; "saved", the
  activations alive when the forward pass is over. In mode "saved by layer" the values are what ``held.py`` finds.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu import allocator
from benchmarks.models.baselines import BASELINES, TRECVIT
from benchmarks.models.common import TINY, dtype_name
from benchmarks.models.held import saved_by_layer
from benchmarks.models.plain import plain
from benchmarks.rows import Counted, Measurement
from benchmarks.setting import Setting
from trecvit_kernels import accounting, backends, create_model
from trecvit_kernels.accounting import Memory

FRAMES, IMAGES = (8, 16, 32, 64, 128), (112, 224, 336, 448)
FRAME_COUNT, IMAGE = 32, 224  # where all models are measured
INFERENCE, TRAINING, ADAMW, BY_LAYER = "inference", "training", "training with AdamW", "saved by layer"
OURS = ("TRecViT-B", "TRecViT-B, doubled LRU")
VARIANTS = ("reference ops", "checkpointed blocks", "plain eager ops")
EAGER, FLASH = "ViViT-L 1x16x16, eager attention", "ViViT-L 1x16x16, flash attention"
# Over frames and resolution, over frames only, and at one point only.
MAIN = (*OURS, EAGER, FLASH, "ViViT-L 2x16x16, flash attention")
OVER_FRAMES = (
    "ViViT-L 2x16x16, eager attention",
    "ViViT-B 1x16x16, eager attention",
    "ViViT-L factorised self-attention 1x16x16, eager attention",
)
OTHERS = (
    *(f"{label}, {variant}" for label in OURS for variant in VARIANTS),
    "ViViT-B 1x16x16, flash attention",
    "ViViT-L factorised self-attention 1x16x16, flash attention",
    "TimeSformer-L",
    "VideoMAE-L",
)
# Of a training step of TRecViT-B in the same dtype: peak, at most so much of that of ...
PEAK_LIMITS = {EAGER: 1 / 12, FLASH: 1 / 3}
# ... and activations saved, at most so much of those of the same model on other ops.
SAVED_LIMITS = {"plain eager ops": 0.5, "reference ops": 0.6}
AGREEMENT = 0.05  # how far tracker and allocator may be apart
_ROOM = 0.85  # of a GPU's free memory, for steps that are tried


@dataclass(frozen=True)
class Point:
    """What is measured: a model by its label, the shape of its video, and what it does in which dtype and where."""

    label: str
    mode: str
    dtype: torch.dtype = torch.float32
    frames: int = FRAME_COUNT
    image: int = IMAGE
    device: str = "cpu"
    tiny: bool = False

    @property
    def training(self) -> bool:
        return self.mode != INFERENCE

    @property
    def at(self) -> dict[str, int | str]:
        return {
            "frames": self.frames,
            "image": self.image,
            "mode": self.mode,
            "dtype": dtype_name(self.dtype),
        }


def rows(at: Setting) -> Iterator[Measurement | Counted]:
    """Every model at every point, then what holds ours, then the targets."""
    for dtype in at.dtypes_or(torch.float32):
        for point in points(at, dtype):
            found = layers if point.mode == BY_LAYER else values
            yield Measurement("memory", point.label, point.at, partial(found, point))
        yield from targets(at, dtype)


def points(at: Setting, dtype: torch.dtype) -> Iterator[Point]:
    """Where the models are measured; with ``at.quick`` all at one number of frames and one resolution."""
    here = partial(Point, dtype=dtype, device=at.device)
    if at.tiny:
        yield here(OURS[0], TRAINING, frames=2, image=TINY["image_size"], tiny=True)
        return
    for label in (*MAIN, *OVER_FRAMES, *OTHERS):
        frames = (FRAME_COUNT,) if at.quick or label in OTHERS else FRAMES
        images = IMAGES if label in MAIN and not at.quick else (IMAGE,)
        shapes = [(n, IMAGE) for n in frames] + [(FRAME_COUNT, n) for n in images if n != IMAGE]
        for mode in (INFERENCE, TRAINING):
            yield from (here(label, mode, frames=n, image=size) for n, size in shapes)
        if label in MAIN:
            yield here(label, ADAMW)
    yield from (here(label, BY_LAYER) for label in (*OURS, FLASH))


def targets(at: Setting, dtype: torch.dtype) -> Iterator[Counted]:
    """Bytes of ours against those of the others, in training at 32 frames of 224²; ratios are at most the limits."""
    here = partial(Point, mode=TRAINING, dtype=dtype, device=at.device, tiny=at.tiny)
    if at.tiny:
        here = partial(here, frames=2, image=TINY["image_size"])
    where = f"{here('').frames} frames, {dtype_name(dtype)}"
    for label in OURS[:1] if at.tiny else OURS:
        ours = here(label)
        for variant, limit in SAVED_LIMITS.items():
            what, theirs = f"{label}, {where}: activations saved for training", here(f"{label}, {variant}")
            yield Counted(
                "memory",
                what,
                partial(_saved, ours),
                f"same model, {variant}",
                partial(_saved, theirs),
                limit,
            )
        if at.tiny:
            return
        for peer, limit in PEAK_LIMITS.items():
            what, theirs = f"{label}, {where}: peak of a training step", here(peer)
            # The target is the paper's model; the other width is for information.
            target = limit if label == OURS[0] else None
            yield Counted("memory", what, partial(_peak, ours), peer, partial(_peak, theirs), target)
    if at.device == "cuda":
        yield from agreement([here(label) for label in (*OURS, EAGER, FLASH)])


def agreement(steps: Iterable[Point]) -> Iterator[Counted]:
    """How far the tracker is from the allocator's peak, for steps that fit on the GPU."""
    for step in steps:
        where = f"{step.frames} frames, {dtype_name(step.dtype)}"
        yield Counted(
            "memory",
            f"{step.label}, {where}: tracker's distance from the allocator",
            partial(_distance, step),
            "the allocator's peak of a training step",
            partial(_allocated_peak, step),
            AGREEMENT,
        )


def _saved(point: Point) -> int:
    return tracked(point).saved


def _peak(point: Point) -> int:
    return tracked(point).total


def _allocated_peak(point: Point) -> int:
    return allocated(point)["allocator"]


def _distance(point: Point) -> int:
    return abs(_peak(point) - _allocated_peak(point))


def values(point: Point) -> dict[str, Any]:
    """Of a record: what is tracked and, on a GPU, "allocator" and "workspace" (``allocator.peak``)."""
    memory = tracked(point)
    found: dict[str, Any] = {"total": memory.total, "saved": memory.saved, **memory.breakdown()}
    if point.device == "cuda":
        try:
            found |= allocated(point)
        except torch.OutOfMemoryError as error:
            found["note"] = f"allocator: {str(error).splitlines()[0][:120]}"
    if note := (BASELINES[point.label].note if point.label in BASELINES else ""):
        found["note"] = "; ".join(filter(None, [note, found.get("note", "")]))
    return found


@functools.cache
def tracked(point: Point) -> Memory:
    """The step's memory under fake tensors."""
    with FakeTensorMode(), _ops(point):
        model, video = _fake(point)
        optimizer = _with_states(_adamw(model.parameters())) if point.mode == ADAMW else None
        return accounting.memory(model, video, training=point.training, optimizer=optimizer)


@functools.cache
def allocated(point: Point) -> dict[str, int]:
    """The step's memory by the allocator's counters; OutOfMemoryError if the GPU has too little, before it is tried."""
    needed = tracked(point).total
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if needed > _ROOM * free:
        raise torch.OutOfMemoryError(f"about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    with _ops(point):
        return allocator.peak(
            lambda: build(point).to(point.device, point.dtype).train(point.training),
            lambda: torch.rand(_shape(point), device=point.device).to(point.dtype),
            allocator.Cuda(),
            training=point.training,
            optimizer=_adamw if point.mode == ADAMW else None,
        )


def layers(point: Point) -> dict[str, int]:
    """Bytes saved for the backward pass, by layer."""
    with FakeTensorMode(), _ops(point):
        return saved_by_layer(*_fake(point))


def build(point: Point) -> nn.Module:
    """The model, for videos of the point's shape. KeyError for an unknown label, ImportError without transformers."""
    label, _, kind = point.label.rpartition(", ")
    if point.label in OURS or (label in OURS and kind in VARIANTS):
        name = TRECVIT[point.label if point.label in OURS else label]
        model = create_model(name, **{**(TINY if point.tiny else {}), "image_size": point.image})
        model.set_activation_checkpointing(kind == "checkpointed blocks")
        return plain(model) if kind == "plain eager ops" else model
    if not label:
        label, kind = point.label, "flash attention"
    make = BASELINES[label].build
    assert make is not None, label
    return make(point.frames, point.image, "eager" if kind == "eager attention" else "sdpa")


def _fake(point: Point) -> tuple[nn.Module, Tensor]:
    model = accounting.fake_model(lambda: build(point), device=point.device, dtype=point.dtype)
    return model.train(point.training), torch.empty(_shape(point), dtype=point.dtype, device=point.device)


def _shape(point: Point) -> tuple[int, ...]:
    return 1, point.frames, 3, point.image, point.image


def _ops(point: Point) -> contextlib.AbstractContextManager[Any]:
    reference = point.label.endswith("reference ops")
    return backends.use("reference") if reference else contextlib.nullcontext()


def _adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def _with_states(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """As after the first of many steps; for fake parameters, whose values do not matter."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer
