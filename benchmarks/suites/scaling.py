"""Time and memory as frames, tokens of a frame and batch grow, with the slope in log-log: 1 is linear, 0 is constant.

Bytes of training are what autograd keeps for the backward pass, inputs included and parameters not. Bytes of chunks and
streams are the highest total of tensors during the last step: its input, the state, and what the step makes.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import trecvit_kernels as tk
from benchmarks.models import common as models
from benchmarks.models.common import dtype_name
from benchmarks.rows import FAILURES, Measurement, within_reference
from benchmarks.setting import Setting
from benchmarks.timing import Budget, Work
from trecvit_kernels import Stream, TRecViT, accounting, backends
from trecvit_kernels.models.state import TRecViTState
from trecvit_kernels.ops.gated_lru import cases as gated_lru_cases
from trecvit_kernels.ops.recurrent_mixer import cases as mixer_cases
from trecvit_kernels.ops.spatial_attention import cases as attention_cases

Values = dict[str, Any]
Shape = Callable[[int], tuple[int, int, int]]
Build = Callable[[int], TRecViT]  # by image size
_POOL = 4  # different pieces of video, fed in turn
_FITTED = (("time", "seconds"), ("bytes", "bytes"))


@dataclass(frozen=True)
class Sizes:
    """What is measured. Tokens of a frame are those of the images, plus the cls token."""

    frames: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    frames_trained: tuple[int, ...] = (32, 64, 128, 256, 512)  # of a whole clip at once
    images: tuple[int, ...] = (112, 160, 224, 320, 448)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    small_image: int = 64  # where time is long
    image: int = 224
    chunk: int = 32
    clip: int = 8  # frames where tokens or batch grow
    channels: int = 192
    heads: int = 3


_QUICK = Sizes(
    frames=(64, 128, 256, 512, 1024), frames_trained=(16, 32, 64, 128), images=(112, 160, 224, 320)
)
_TINY = Sizes((8, 16, 32), (4, 8, 16), (32, 64), (1, 2), 32, 32, 4, 2, 16, 2)


@dataclass
class Line:
    """One thing measured at growing sizes.

    Attributes:
        at: size -> {"seconds": ..., "bytes": ...}.
        check: empty if the results are correct, else what is wrong: then nothing is measured.
        found: what has been measured so far.
    """

    what: str
    axis: str
    sizes: Sequence[int]
    dtype: torch.dtype
    at: Callable[[int], Values]
    check: Callable[[], str]
    found: dict[int, Values] = field(default_factory=dict)

    def rows(self) -> Iterator[Measurement]:
        point = {"axis": self.axis, "dtype": dtype_name(self.dtype)}
        for size in self.sizes:
            yield Measurement(
                "scaling", self.what, {**point, "size": size}, functools.partial(self.values, size)
            )
        yield Measurement("scaling", f"{self.what} slope", point, self.slopes)

    def values(self, size: int) -> Values:
        if not self.found and (wrong := self.check()):
            return {"note": f"{FAILURES[0]}, wrong result: {wrong}"}
        if size not in self.found:
            self.found[size] = {**self.at(size), "size": size}
        return self.found[size]

    def slopes(self) -> Values:
        """Fitted to the upper half of the sizes: small ones are overhead. A resumed run measures these again."""
        upper = self.sizes[min(len(self.sizes) // 2, len(self.sizes) - 2) :]
        points = [self.values(size) for size in upper]
        if wrong := [point["note"] for point in points if "seconds" not in point]:
            return {"note": wrong[0]}
        return {
            **{f"slope_{name}": slope(upper, [p[key] for p in points]) for name, key in _FITTED},
            "note": f"least squares in log-log over {self.axis} {upper[0]} to {upper[-1]}",
        }


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent p of values ~ sizes^p by least squares of the logarithms.

    Raises:
        ValueError: fewer than two sizes, or a number that is not positive.
    """
    if len(sizes) != len(values) or len(set(sizes)) < 2:
        raise ValueError(f"slope: sizes must be at least two, one for each value, got {sizes} and {values}")
    if min(*sizes, *values) <= 0:
        raise ValueError(f"slope: sizes and values must be positive, got {sizes} and {values}")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def rows(at: Setting) -> Iterator[Measurement]:
    """Ops, then TRecViT-Ti. No row has a floor."""
    if at.floors_only:
        return
    sizes = _TINY if at.tiny else _QUICK if at.quick else Sizes()
    for dtype in at.dtypes_or(torch.bfloat16 if at.device == "cuda" else torch.float32):
        for line in (*_op_lines(at, sizes, dtype), *_model_lines(at, sizes, dtype)):
            yield from line.rows()


# Ops


@dataclass(frozen=True)
class _Op:
    """function(heads) is the op; inputs(batch, frames, tokens, channels, heads, dtype, device) are its tensors."""

    name: str
    function: Callable[[int], Callable[..., Tensor]]
    inputs: Callable[..., list[Tensor]]


def _gated_lru_inputs(
    batch: int, frames: int, tokens: int, channels: int, heads: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    case = gated_lru_cases.Case("scaling", batch, frames, (tokens,), channels, dtype, h0=False)
    made = gated_lru_cases.make_inputs(case, device=device)
    return [made[name] for name in ("x", "gate_x", "gate_a", "a_param")]  # type: ignore[misc]


def _mixer_inputs(
    batch: int, frames: int, tokens: int, channels: int, heads: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    case = mixer_cases.Case("scaling", batch, frames, (tokens,), channels, heads, dtype=dtype, state=False)
    return [tensor for tensor in mixer_cases.make_inputs(case, device=device).values() if tensor is not None]


def _attention_inputs(
    batch: int, frames: int, tokens: int, channels: int, heads: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    case = attention_cases.Case("scaling", (batch, frames), tokens, heads, channels // heads, dtype)
    return [attention_cases.make_inputs(case, device=device)["qkv"]]


_OPS = (
    _Op("gated_lru", lambda heads: lambda *t: tk.ops.gated_lru(*t)[0], _gated_lru_inputs),
    _Op("recurrent_mixer", lambda heads: lambda *t: tk.ops.recurrent_mixer(*t)[0], _mixer_inputs),
    _Op(
        "spatial_attention",
        lambda heads: functools.partial(tk.ops.spatial_attention, num_heads=heads),
        _attention_inputs,
    ),
)
_CHECKED = (
    2,
    9,
    3,
    16,
    2,
)  # batch, frames, tokens, channels, heads of the call that is compared with float64


def tokens_of(image: int) -> int:
    """Tokens of a square frame in patches of 16, counting the cls token."""
    return (image // 16) ** 2 + 1


def _op_lines(at: Setting, sizes: Sizes, dtype: torch.dtype) -> Iterator[Line]:
    small, large = tokens_of(sizes.small_image), tokens_of(sizes.image)
    # Axis -> its sizes, and size -> (batch, frames, tokens).
    axes: dict[str, tuple[Sequence[int], Shape]] = {
        "frames": (sizes.frames, lambda frames: (1, frames, small)),
        "tokens": ([tokens_of(image) for image in sizes.images], lambda tokens: (1, sizes.clip, tokens)),
        "batch": (sizes.batches, lambda batch: (batch, sizes.clip, large)),
    }
    for op in _OPS:
        check = functools.cache(functools.partial(_check_op, at, dtype, op))
        for axis, (along, shape) in axes.items():
            measured = functools.partial(_train_op, at, sizes, dtype, op, shape)
            yield Line(f"{op.name} forward + backward", axis, along, dtype, measured, check)


def _train_op(at: Setting, sizes: Sizes, dtype: torch.dtype, op: _Op, shape: Shape, size: int) -> Values:
    function = op.function(sizes.heads)
    inputs = op.inputs(*shape(size), sizes.channels, sizes.heads, dtype, at.device)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    with torch.no_grad():
        dy = torch.randn_like(function(*leaves))

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*leaves), leaves, dy)

    weights = [leaf for leaf in leaves if leaf.ndim < 4]
    return {"seconds": _seconds(at, train), "bytes": saved_bytes(lambda: function(*leaves), without=weights)}


def _check_op(at: Setting, dtype: torch.dtype, op: _Op) -> str:
    """Output and all gradients of a small call against the reference in float64."""
    function, inputs = op.function(_CHECKED[-1]), op.inputs(*_CHECKED, dtype, at.device)
    dy = torch.randn_like(function(*inputs))

    def run(dtype: torch.dtype | None) -> list[Tensor]:
        leaves = [(t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in inputs]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]

    ours = run(None)
    with backends.use("reference"):
        return within_reference(ours, run(None), run(torch.float64))


def saved_bytes(forward: Callable[[], Tensor], without: Iterable[Tensor] = ()) -> int:
    """Bytes of the memory blocks that autograd keeps after ``forward()``, each counted once, ``without`` left out."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # holds the block, so that no other gets its address

    left_out = {tensor.untyped_storage().data_ptr() for tensor in without}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(nbytes for address, nbytes in kept.items() if address not in left_out)


def _seconds(at: Setting, work: Work) -> float:
    """Median after a warm-up call."""
    work()
    first = at.wall(work)
    rounds = at.budget(Budget(0.6, 2, 15), Budget(0.2, 2, 5)).rounds(first)
    return statistics.median([first, *(at.wall(work) for _ in range(rounds - 1))])


# The model


def _model_lines(at: Setting, sizes: Sizes, dtype: torch.dtype) -> Iterator[Line]:
    build = functools.cache(
        lambda image: models.build(at, "trecvit_tiny", dtype, image_size=image)
    )  # one model for each image size
    small, large, clip = sizes.small_image, sizes.image, sizes.clip
    for chunk in (sizes.chunk, 1):
        name = f"in chunks of {chunk} frames" if chunk > 1 else "frame by frame"
        stream = _Passed(at, build, small, chunk, sizes.frames)
        what = f"TRecViT-Ti inference {name}, {small}x{small}"
        yield Line(what, "frames", sizes.frames, dtype, stream, functools.cache(stream.check))
    image_of = {tokens_of(image): image for image in sizes.images}
    # What, axis, its sizes, size -> (batch, frames, image).
    lines: tuple[tuple[str, str, Sequence[int], Shape], ...] = (
        (f"whole clip, {small}x{small}", "frames", sizes.frames_trained, lambda frames: (1, frames, small)),
        (f"{clip} frames", "tokens", [*image_of], lambda tokens: (1, clip, image_of[tokens])),
        (f"{clip // 2} frames, {large}x{large}", "batch", sizes.batches, lambda n: (n, clip // 2, large)),
    )
    for name, axis, along, shape in lines:
        trained = functools.partial(_train_model, at, build, shape)
        check = functools.cache(functools.partial(_check_trained, build, shape, along[0]))
        yield Line(f"TRecViT-Ti training step, {name}", axis, along, dtype, trained, check)


def _train_model(at: Setting, build: Build, shape: Shape, size: int) -> Values:
    batch, frames, image = shape(size)
    model = build(image)
    video = models.random_video(model, batch, frames)
    kept = saved_bytes(lambda: model(video), without=model.parameters())
    return {"seconds": _seconds(at, models.training_step(model, video)), "bytes": kept}


def _check_trained(build: Build, shape: Shape, size: int) -> str:
    return models.check_gradients(build(shape(size)[-1]))


class _Passed:
    """Values at every size out of one pass over the longest video, made when the first is asked for."""

    def __init__(self, at: Setting, build: Build, image: int, chunk: int, sizes: Sequence[int]) -> None:
        self.at, self.build, self.image, self.chunk, self.sizes = at, build, image, chunk, sizes
        self.found: dict[int, Values] = {}

    def __call__(self, size: int) -> Values:
        if not self.found:
            self.found = one_pass(self.at, self.build(self.image), self.chunk, self.sizes)
        return self.found[size]

    def check(self) -> str:
        return _check_chunks(self.build(self.image), self.chunk)


class _Chunks:
    """What ``Stream`` is for single frames."""

    def __init__(self, model: TRecViT) -> None:
        self.model = model
        self.reset()

    def reset(self) -> None:
        self.state = self.model.init_state(1)

    def push(self, video: Tensor) -> Tensor:
        logits, self.state = self.model.step(video, self.state)
        return logits


@torch.no_grad()
def one_pass(at: Setting, model: TRecViT, chunk: int, sizes: Sequence[int]) -> dict[int, Values]:
    """One stream in chunks of ``chunk`` frames (1: by ``Stream``), looked at when ``sizes`` frames have gone in.

    Returns:
        For each size: seconds since the start, seconds_per_frame since the size before, and bytes of the last step.
    """
    pieces = [models.random_video(model, 1, chunk) for _ in range(_POOL)]
    stream: Stream | _Chunks = _Chunks(model)
    if chunk == 1:
        stream, pieces = Stream(model), [piece[:, 0] for piece in pieces]
    for piece in pieces:
        stream.push(piece)
    stream.reset()
    found: dict[int, Values] = {}
    total = since = 0.0
    before = 0
    for done in range(chunk, max(sizes) + 1, chunk):
        piece = pieces[done // chunk % _POOL]
        total += at.wall(functools.partial(stream.push, piece))
        if done in sizes:
            found[done] = {
                "seconds": total,
                "seconds_per_frame": (total - since) / (done - before),
                "bytes": step_bytes(model, piece, stream.state),
            }
            since, before = total, done
    return found


class _Step(nn.Module):
    """``TRecViT.step`` on bare tensors, so that the memory of each can be followed."""

    def __init__(self, model: TRecViT, frames: int) -> None:
        super().__init__()
        self.model, self.frames = model, frames

    def forward(self, video: Tensor, mean: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
        pairs = tuple(zip(layers[::2], layers[1::2]))
        logits, state = self.model.step(video, TRecViTState(self.model.config, pairs, mean, self.frames))
        return (logits, *state.tensors().values())


def step_bytes(model: TRecViT, video: Tensor, state: TRecViTState) -> int:
    """Highest total of tensors during one step from this state, without the model's own."""
    tensors = [tensor for layer in state.layers for tensor in layer]
    found = accounting.memory(_Step(model, state.frames), video, state.mean, *tensors, training=False)
    return found.total - found.parameters - found.buffers


@torch.no_grad()
def _check_chunks(model: TRecViT, chunk: int) -> str:
    """Logits after two chunks and a part of one against the whole clip on reference ops in float64."""
    video = models.random_video(model, 1, 2 * chunk + max(chunk // 2, 1))
    state = model.init_state(1)
    for piece in video.split(chunk, dim=1):
        logits, state = model.step(piece, state)
    with backends.use("reference"):
        return within_reference([logits], [model(video)], [models.exact_copy(model)(video.double())])
