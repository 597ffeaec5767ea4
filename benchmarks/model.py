"""Rows of the layer and of TRecViT-B as released: against the floor and the same on reference ops."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import floors
from benchmarks.rows import Comparison, Peer, within_reference
from benchmarks.timing import Budget
from trecvit_kernels import Stream, TRecViT, backends, create_model
from trecvit_kernels.modules import GatedLRU

MODEL, FRAMES = "trecvit_base_k400", 8
_FLOATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# (dtype, at most so many times the floor): forward, one streaming step.
FORWARD = [(torch.float32, 1.08), (torch.bfloat16, 1.15)]
STREAMING = [(torch.float32, 1.06), (torch.bfloat16, 1.2)]
_TRAINING = 1.08
_PRODUCTS = "its matrix products and attention alone"
_ONEDNN = "the same, products by oneDNN"
LAYER_SECONDS, LAYER_RATE = 0.16, 220e9  # at most so long where float32 matmul runs at so many FLOP/s


def layer_rows(budget: Budget, *, quick: bool, floors_only: bool) -> Iterator[Comparison]:
    """RG-LRU layer with its gates, forward + backward, 196 tubes x 32 frames x 1536 channels."""
    layer = GatedLRU(1536, 12)
    x = torch.randn(1, 32, 196, 1536, requires_grad=True)
    dy = torch.randn(1, 32, 196, 1536)
    leaves = [x, *layer.parameters()]

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x)[0], leaves, dy)

    check = functools.cache(lambda: _check_layer(layer))
    product, flops = floors.matmul(torch.float32)
    row = functools.partial(
        Comparison, "layer", "GatedLRU(1536, 12) forward + backward, float32, (1, 32, 196, 1536)"
    )
    yield row(
        train,
        [Peer("0.16 s at 220 GFLOP/s, scaled to the matmul rate", product, None)],
        check,
        limit=1.0,
        floor=True,
        bar=lambda seconds: LAYER_SECONDS * LAYER_RATE / (flops / seconds),
        budget=budget,
    )
    if not floors_only:
        yield row(train, [Peer("same layer, reference ops", _with_reference(train))], check, budget=budget)


def rows(budget: Budget, *, quick: bool, floors_only: bool) -> Iterator[Comparison]:
    """Forward and training step of 8 frames."""
    few = Budget(budget.seconds / 2, least=1 if quick else 3, most=budget.most)
    for dtype, limit in FORWARD:
        model, video = _model(dtype), torch.rand(1, FRAMES, 3, 224, 224)
        video = video.to(dtype)
        check = functools.cache(functools.partial(_check_model, model))
        floor = floors.ModelFloor(model, 1, FRAMES)
        forward = torch.no_grad()(functools.partial(model, video))
        row = functools.partial(
            Comparison, "model", f"TRecViT-B forward, {FRAMES} frames, {_FLOATS[dtype]}", forward
        )
        yield row([Peer(_PRODUCTS, floor.forward, None)], check, limit=limit, floor=True, budget=budget)
        onednn = floors.ModelFloor(model, 1, FRAMES, onednn=True)
        yield row([Peer(_ONEDNN, onednn.forward, None)], check, floor=True, budget=few)
        if not floors_only:
            tolerant = _tolerant(dtype)
            yield row(
                [Peer("same model, reference ops", _with_reference(forward), tolerant)], check, budget=few
            )
        if dtype == torch.float32:
            what = f"TRecViT-B training step, {FRAMES} frames, {_FLOATS[dtype]}"
            row = functools.partial(Comparison, "model", what, step := _training_step(model, video))
            check = functools.cache(functools.partial(_check_gradients, model))
            yield row([Peer(_PRODUCTS, floor.train, None)], check, limit=_TRAINING, floor=True, budget=budget)
            yield row([Peer(_ONEDNN, onednn.train, None)], check, floor=True, budget=few)
            if not (floors_only or quick):
                yield row([Peer("same model, reference ops", _with_reference(step))], check, budget=few)
            del step
        del model, floor, onednn, forward, row, check
        gc.collect()


def streaming_rows(budget: Budget, *, quick: bool, floors_only: bool) -> Iterator[Comparison]:
    """One frame pushed into a stream that is under way."""
    for dtype, limit in STREAMING:
        model = _model(dtype)
        frame = torch.rand(1, 3, 224, 224).to(dtype)
        stream = Stream(model)
        stream.push(torch.rand(1, 3, 224, 224).to(dtype))
        push = functools.partial(stream.push, frame)
        floor = floors.ModelFloor(model, 1, 1)
        check = functools.cache(functools.partial(_check_streaming, model))
        row = functools.partial(Comparison, "streaming", f"TRecViT-B streaming step, {_FLOATS[dtype]}", push)
        yield row([Peer(_PRODUCTS, floor.forward, None)], check, limit=limit, floor=True, budget=budget)
        onednn = floors.ModelFloor(model, 1, 1, onednn=True)
        yield row([Peer(_ONEDNN, onednn.forward, None)], check, floor=True, budget=budget)
        if not floors_only:
            yield row([Peer("same model, reference ops", _with_reference(push), None)], check, budget=budget)


def _model(dtype: torch.dtype) -> TRecViT:
    torch.manual_seed(0)
    return create_model(MODEL).to(dtype).eval()


def _training_step(model: TRecViT, video: Tensor) -> Callable[[], object]:
    """Forward, cross-entropy, backward; gradients are fresh, as after ``zero_grad(set_to_none=True)``."""
    target = torch.tensor([7])

    def step() -> Tensor:
        for parameter in model.parameters():
            parameter.grad = None
        loss = F.cross_entropy(model(video), target)
        loss.backward()
        return loss

    return step


def _with_reference(run: Callable[[], object]) -> Callable[[], object]:
    def referred() -> object:
        with backends.use("reference"):
            return run()

    return referred


def _tolerant(dtype: torch.dtype) -> Callable[[object], object] | None:
    """bfloat16 results differ by roundings: ``check`` has judged them against float64 already."""
    return (lambda result: result) if dtype == torch.float32 else None


def _check_layer(layer: GatedLRU) -> str:
    """Output and all gradients on two tokens, against the reference op in float64."""
    x, dy = torch.randn(1, 32, 2, layer.width), torch.randn(1, 32, 2, layer.width)

    def run(dtype: torch.dtype) -> list[Tensor]:
        copy = GatedLRU(layer.width, 12).to(dtype)
        copy.load_state_dict(layer.state_dict())
        leaves = [x.detach().to(dtype).requires_grad_(), *copy.parameters()]
        y = copy(leaves[0])[0]
        return [y, *torch.autograd.grad(y, leaves, dy.to(dtype))]

    ours = run(torch.float32)
    with backends.use("reference"):
        return within_reference(ours, run(torch.float32), run(torch.float64))


@torch.no_grad()
def _check_model(model: TRecViT) -> str:
    """Logits and tokens of two frames against the reference ops in float64."""
    return _check_logits(model, lambda m, video: [m(video), m.forward_features(video)])


def _check_gradients(model: TRecViT) -> str:
    """Loss and the gradients of all parameters, two frames, against the reference ops in float64."""
    video = torch.rand(1, 2, 3, 224, 224)
    ours = _gradients(model, video)
    with backends.use("reference"):
        same = _gradients(model, video)
        exact = TRecViT(model.config).double().eval()
        exact.load_state_dict(model.state_dict())
        truth = _gradients(exact, video.double())
    # In shares of each tensor's largest element, and all tensors as one: the worst of ours against the worst
    # of the reference.
    scales = [t.abs().max() for t in truth]
    parts = [torch.cat([(t / s).flatten() for t, s in zip(found, scales)]) for found in (ours, same, truth)]
    return within_reference(parts[:1], parts[1:2], parts[2:])


def _gradients(model: TRecViT, video: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(video), torch.tensor([7]))
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@torch.no_grad()
def _check_streaming(model: TRecViT) -> str:
    """Logits after two frames, one by one, against the reference ops in float64."""

    def run(m: TRecViT, video: Tensor) -> list[Tensor]:
        stream = Stream(m)
        return [stream.push(video[:, t]) for t in range(video.shape[1])]

    return _check_logits(model, run)


def _check_logits(model: TRecViT, run: Callable[[TRecViT, Tensor], list[Tensor]]) -> str:
    dtype = model.embedding.weight.dtype
    video = torch.rand(1, 2, 3, 224, 224).to(dtype)
    ours = run(model, video)
    with backends.use("reference"):
        same = run(model, video)
        exact = TRecViT(model.config).double().eval()
        exact.load_state_dict(model.state_dict())
        return within_reference(ours, same, run(exact, video.double()))
