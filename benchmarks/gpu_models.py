"""Rows of TRecViT-B on a GPU: streaming and training, against the targets' numbers and torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gpu_timing
from benchmarks.gpu_rows import Setting
from benchmarks.rows import Comparison, Peer, within_reference
from benchmarks.timing import Budget, Work
from trecvit_kernels import Stream, TRecViT, accounting, backends, create_model

NAMES = {"trecvit_base": "TRecViT-B", "trecvit_base_k400": "TRecViT-B, LRU width doubled"}
PUSHED, FRAMES_PER_SECOND = 64, 3000
BATCH, FRAMES = 8, 32
_COMPILED, _MATMUL_SHARE = 1.5, 0.5
_TINY = {
    "width": 32,
    "depth": 2,
    "mlp_dim": 64,
    "num_heads": 2,
    "image_size": 32,
    "head_width": 16,
    "num_classes": 10,
}


def _model(at: Setting, name: str, dtype: torch.dtype = torch.bfloat16) -> TRecViT:
    torch.manual_seed(0)
    return create_model(name, **(_TINY if at.tiny else {})).to(at.device, dtype).eval()


def _video(model: TRecViT, batch: int, frames: int) -> Tensor:
    weight = model.embedding.weight
    return torch.rand(batch, frames, 3, *model.config.image_size, device=weight.device).to(weight.dtype)


def streaming(at: Setting) -> Iterator[Comparison]:
    """Frames pushed one after the other; the host's work counts."""
    budget = Budget(1.0, 5, 30)
    for name, label in NAMES.items():
        model = _model(at, name)
        check = functools.cache(functools.partial(check_streaming, model))
        pushed = 3 if at.tiny else PUSHED
        frames = _video(model, pushed, 1)[:, 0].split(1)
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


@torch.no_grad()
def check_streaming(model: TRecViT) -> str:
    """Logits of four frames one by one (a graph replays the last two) against the reference ops in float64."""
    video = _video(model, 1, 4)

    def run(m: TRecViT, video: Tensor) -> list[Tensor]:
        stream = Stream(m)
        return [stream.push(frame) for frame in video.unbind(1)]

    ours = run(model, video)
    with backends.use("reference"):
        exact = _exact(model)
        truth = [exact(video[:, : t + 1].double()) for t in range(video.shape[1])]
        return within_reference(ours, run(model, video), truth)


def training(at: Setting) -> Iterator[Comparison]:
    """Forward, cross-entropy and backward: against the matrix products' rate and the compiled reference."""
    model = _model(at, "trecvit_base").train()
    batch, frames = (1, 4) if at.tiny else (BATCH, FRAMES)
    video = _video(model, batch, frames)
    check = functools.cache(functools.partial(check_training, model))
    step = functools.partial(_step, model, video)
    compiled = functools.partial(_step, _compiled(at, model), video)
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
    rivals = [Peer("torch.compile of the model on reference ops", _on_reference(compiled), None)]
    yield row(f"TRecViT-B training step, compiled, {shape}, bfloat16", compiled, rivals, limit=_COMPILED)


def _compiled(at: Setting, model: TRecViT) -> TRecViT:
    """The same weights, every block compiled: one compilation serves all blocks."""
    torch._dynamo.config.recompile_limit = 64
    copy = TRecViT(model.config).to(model.embedding.weight.device, model.embedding.weight.dtype).train()
    copy.load_state_dict(model.state_dict())
    for block in copy.blocks:
        block.compile(fullgraph=True, dynamic=False, backend="aot_eager" if at.tiny else "inductor")
    return copy


def _step(model: TRecViT, video: Tensor) -> Tensor:
    """Gradients are fresh, as after ``zero_grad(set_to_none=True)``."""
    for parameter in model.parameters():
        parameter.grad = None
    target = torch.arange(video.shape[0], device=video.device)
    loss = F.cross_entropy(model(video).float(), target)
    loss.backward()
    return loss.detach()


def check_training(model: TRecViT) -> str:
    """Loss and the gradients of all parameters, two frames, against the reference ops in float64."""
    video = _video(model, 1, 2)
    ours = _gradients(model, video)
    with backends.use("reference"):
        same, exact = _gradients(model, video), _exact(model)
        truth = _gradients(exact, video.double())
    # In shares of each tensor's largest element, and all tensors as one: the worst against the worst.
    scales = [t.abs().max() for t in truth]
    parts = [
        torch.cat([(t.double() / s).flatten() for t, s in zip(found, scales)])
        for found in (ours, same, truth)
    ]
    dtype = video.dtype
    return within_reference([parts[0].to(dtype)], [parts[1].to(dtype)], [parts[2]])


def _gradients(model: TRecViT, video: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(video), torch.tensor([7], device=video.device))
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def _exact(model: TRecViT) -> TRecViT:
    exact = TRecViT(model.config).double().to(model.embedding.weight.device).eval()
    exact.load_state_dict(model.state_dict())
    return exact


def _on_reference(run: Callable[[], object]) -> Work:
    def referred() -> object:
        with backends.use("reference"):
            return run()

    return referred


def _matmul_flops(model: TRecViT, video: Tensor) -> int:
    """Of a training step's matrix products and attention alone: the reference's other operations count nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), backends.use("reference"):
        fake = accounting.fake_model(lambda: TRecViT(model.config)).train()
        clip = torch.empty(video.shape)
        return accounting.flops(lambda: fake(clip), backward=True)
