"""The recurrent layer, and forward and training step of TRecViT-B as released (LRU width doubled).

Against floors (``benchmarks/floors.py``), the same model on reference ops, that compiled, and DeepMind's JAX model:
these compute the same. ViViT and TimeSformer do not: their rows compare models on the same video, and check no result.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import floors
from benchmarks.models import baselines, official_jax
from benchmarks.models import common as models
from benchmarks.models.common import Timed, dtype_name, on
from benchmarks.rows import Comparison, Measurement, Peer, within_reference
from benchmarks.setting import Setting
from benchmarks.timing import Budget, Work
from trecvit_kernels import TRecViT, backends
from trecvit_kernels.modules import GatedLRU

LABEL = "TRecViT-B, doubled LRU"
MODEL = baselines.TRECVIT[LABEL]
VIDEO = {"cpu": (1, 8), "cuda": (8, 32)}  # batch, frames
RIVALS = ("ViViT-L 1x16x16", "ViViT-L 2x16x16", "ViViT-B 1x16x16", "TimeSformer-L")
_EAGER = ("TimeSformer-L",)  # transformers has no fused attention for it
# On the CPU, at most so many times the floor, by dtype.
FORWARD = {torch.float32: 1.08, torch.bfloat16: 1.15}
TRAINING = {torch.float32: 1.08}
LAYER_SECONDS, LAYER_RATE = 0.16, 220e9  # at most so long where float32 matmul runs at so many FLOP/s
PRODUCTS = "its matrix products and attention alone"
ONEDNN = "the same, products by oneDNN"
REFERENCE = "same model, reference ops"
COMPILED = "same model, reference ops, torch.compile"
JAX = "official JAX model"

Rows = Iterator[Comparison | Measurement]


def rows(at: Setting) -> Rows:
    """Layer, forward, training step; on the CPU the latter in float32 only."""
    on_gpu = at.device == "cuda"
    usual = (torch.bfloat16,) if on_gpu else (torch.float32, torch.bfloat16)
    if not on_gpu or torch.float32 in at.dtypes:
        yield from _layer(at)
    for dtype in at.dtypes_or(*usual):
        model = models.build(at, MODEL, dtype)
        batch, frames = (1, 2) if at.tiny else VIDEO[at.device]
        video = models.random_video(model, batch, frames)
        modes = (_FORWARD, _TRAINING) if on_gpu or dtype == torch.float32 else (_FORWARD,)
        here = at.in_dtype(dtype)
        made = [_Rows(here, model, video, mode) for mode in modes]
        for of_mode in made:
            yield from of_mode.same_model()
        for label in () if here.floors_only else RIVALS[2:3] if at.tiny else RIVALS:
            build = functools.cache(functools.partial(_built, label, video))  # once for all modes
            for of_mode in made:
                yield from of_mode.rival(label, build)
            del build
            gc.collect()
        del model, video, made, of_mode
        gc.collect()
    if not at.floors_only and (reason := official_jax.problem(at.device)):
        yield Measurement("model", JAX, {}, lambda: {"note": f"not measured: {reason}"})


def _layer(at: Setting) -> Rows:
    """RG-LRU layer with its gates, forward + backward, 196 tubes x 32 frames x 1536 channels."""
    tokens, width, heads = (2, 24, 2) if at.tiny else (196, 1536, 12)
    torch.manual_seed(0)
    layer = GatedLRU(width, heads).to(at.device)
    x = torch.randn(1, 32, tokens, width, device=at.device, requires_grad=True)
    dy = torch.randn_like(x)
    leaves = [x, *layer.parameters()]

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x)[0], leaves, dy)

    row = functools.partial(
        Comparison,
        "layer",
        f"GatedLRU({width}, {heads}) forward + backward, float32, (1, 32, {tokens}, {width})",
        train,
        check=functools.cache(lambda: _check_layer(layer, heads)),
        budget=at.budget(Budget(8.0, 5, 30), Budget(1.0, 2, 5)),
    )
    if at.device == "cpu":
        product, flops = floors.matmul(torch.float32, size=64 if at.tiny else floors.MATMUL)
        yield row(
            peers=[Peer("0.16 s at 220 GFLOP/s, scaled to the matmul rate", product, None)],
            limit=1.0,
            floor=True,
            bar=lambda seconds: LAYER_SECONDS * LAYER_RATE / (flops / seconds),
        )
    if not at.floors_only:
        yield row(peers=[Peer("same layer, reference ops", on("reference", train))])


def _check_layer(layer: GatedLRU, heads: int) -> str:
    """Output and all gradients on two tokens, against the reference op in float64."""
    device = layer.a_param.device
    x, dy = torch.randn(2, 1, 32, 2, layer.width, device=device).unbind()

    def run(dtype: torch.dtype) -> list[Tensor]:
        copy = GatedLRU(layer.width, heads).to(device, dtype)
        copy.load_state_dict(layer.state_dict())
        leaves = [x.detach().to(dtype).requires_grad_(), *copy.parameters()]
        y = copy(leaves[0])[0]
        return [y, *torch.autograd.grad(y, leaves, dy.to(dtype))]

    ours = run(torch.float32)
    with backends.use("reference"):
        return within_reference(ours, run(torch.float32), run(torch.float64))


@dataclass(frozen=True)
class _Mode:
    """Forward pass or training step."""

    what: str
    name: str  # in records
    work: Callable[[nn.Module, Tensor], Work]
    check: Callable[[TRecViT], str]
    usual: Budget
    few: Budget  # against others than the floor of the target


def _forward(model: nn.Module, video: Tensor) -> Work:
    return torch.no_grad()(functools.partial(model, video))


_FORWARD = _Mode(
    "forward", "inference", _forward, models.check_forward, Budget(16.0, 5, 20), Budget(6.0, 2, 20)
)
# On a CPU a step takes many seconds, so others than the floor get one round.
_TRAINING = _Mode(
    "training step",
    "training",
    models.training_step,
    models.check_gradients,
    Budget(30.0, 3, 20),
    Budget(6.0, 1, 20),
)


class _Rows:
    """Rows of one mode and dtype."""

    def __init__(self, at: Setting, model: TRecViT, video: Tensor, mode: _Mode) -> None:
        self.at, self.model, self.video, self.mode = at, model, video, mode
        self.on_gpu = at.device == "cuda"
        batch, frames = video.shape[:2]
        self.frames = batch * frames
        dtype = dtype_name(video.dtype)
        shape = f"{batch} x {frames} frames" if batch > 1 else f"{frames} frames"
        self.what = f"TRecViT-B {mode.what}, {shape}, {dtype}"
        self.few = at.budget(mode.few, Budget(1.0, 1, 3))
        self.point: dict[str, int | str] = {
            "batch": batch,
            "frames": frames,
            "image": video.shape[-1],
            "mode": mode.name,
            "dtype": dtype,
        }
        self.ours = Timed(mode.work(model, video))
        self.reference = Timed(on("reference", self.ours.work))
        self.checked = functools.cache(functools.partial(mode.check, model))
        self.with_reference = mode is _FORWARD or self.on_gpu or not at.quick
        # bfloat16 results differ by roundings: the check has judged ours against float64 already.
        self.exact = video.dtype in (torch.float32, torch.float64)

    def _row(self, peer: Peer, **changed: Any) -> Comparison:
        made = Comparison(
            "model", self.what, self.ours, [peer], self.checked, budget=self.few, clock=self.at.wall
        )
        return dataclasses.replace(made, **changed)

    def _rate(self, label: str, backend: str, work: Timed) -> Measurement:
        return models.rate("model", label, {**self.point, "backend": backend}, work, self.frames, self.at)

    def _floors(self) -> Rows:
        limits = FORWARD if self.mode is _FORWARD else TRAINING
        usual = self.at.budget(self.mode.usual, Budget(1.0, 1, 3))
        limit = None if self.on_gpu else limits.get(self.video.dtype)
        yield self._row(self._floor(PRODUCTS, False), limit=limit, floor=True, budget=usual)
        if not self.on_gpu:
            yield self._row(self._floor(ONEDNN, True), floor=True)

    def _floor(self, name: str, onednn: bool) -> Peer:
        least = floors.ModelFloor(self.model, *self.video.shape[:2], onednn=onednn)
        return Peer(name, least.forward if self.mode is _FORWARD else least.train, None)

    def same_model(self) -> Rows:
        """Ours by each backend, against its floors and what computes the same."""
        yield from self._floors()
        if self.at.floors_only:
            return
        peer = self._peer(REFERENCE, self.reference)
        if self.with_reference:
            yield self._row(peer)
        for name in models.kernels(self.at.device)[1:]:
            other = Timed(on(name, self.ours.work))
            check = functools.cache(functools.partial(on(name, self.mode.check), self.model))
            yield self._row(peer, what=f"{self.what}, backend {name}", ours=other, check=check)
            yield self._rate(LABEL, name, other)
        if not self.at.quick and (self.exact or self.on_gpu):  # on a CPU once is enough: compiling takes long
            compiled = Timed(_Lazy(self._compiled))
            yield self._row(self._peer(COMPILED, compiled))
            yield self._rate(LABEL, "torch.compile", compiled)
        if not official_jax.problem(self.at.device):
            like = official_jax.logits_like_ours if self.mode is _FORWARD else official_jax.loss_like_ours
            yield self._row(self._peer(JAX, _Lazy(self._official), like))
        if self.with_reference:
            yield self._rate(LABEL, "reference", self.reference)
        yield self._rate(LABEL, models.default_backend(self.at.device), self.ours)

    def rival(self, label: str, build: Callable[[], nn.Module]) -> Rows:
        """Ours against another model."""
        attention = "eager attention" if label in _EAGER else "SDPA"
        work = Timed(_Lazy(lambda: self.mode.work(build(), self.video)))
        yield self._row(Peer(f"{label}, {attention}", work, None))
        yield self._rate(label, attention, work)

    def _peer(
        self, name: str, work: Work, like_ours: Callable[[Any], object] = lambda result: result
    ) -> Peer:
        return Peer(name, work, like_ours if self.exact else None)

    def _compiled(self) -> Work:
        return on("reference", self.mode.work(models.compiled_blocks(self.at, self.model), self.video))

    def _official(self) -> Work:
        peer = official_jax.Official(self.model, self.video)
        return peer.forward() if self.mode is _FORWARD else peer.train(models.classes(self.video))


def _built(label: str, video: Tensor) -> nn.Module:
    """Another model for videos of the same size; ImportError if transformers is missing."""
    make = baselines.BASELINES[label].build
    assert make is not None
    torch.manual_seed(0)
    return make(video.shape[1], video.shape[-1], "sdpa").to(video.device, video.dtype).eval()


class _Lazy:
    """A work that is made in its first call: what fails then fails as a peer, and memory is taken late."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self.make = make
        self.work: Work | None = None

    def __call__(self) -> object:
        if self.work is None:
            self.work = self.make()
        return self.work()
