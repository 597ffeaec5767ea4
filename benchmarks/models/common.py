"""TRecViT as the suites measure it: sizes, random videos, backends, and what its results are checked against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu import energy
from benchmarks.rows import Measurement, within_reference
from benchmarks.setting import Setting
from benchmarks.timing import Work
from trecvit_kernels import Stream, TRecViT, backends, create_model

# What every model becomes in a test of the suites.
TINY: dict[str, Any] = {
    "width": 32,
    "depth": 2,
    "mlp_dim": 64,
    "num_heads": 2,
    "image_size": 32,
    "head_width": 16,
    "num_classes": 10,
}
_KERNELS = {"cpu": ("native",), "cuda": ("triton", "cuda")}  # the default of each device first
_TRUTH_FRAMES = 2


def kernels(device: str) -> tuple[str, ...]:
    """Backends with kernels of their own that can run on the device, its default first."""
    status = backends.available()
    return tuple(name for name in _KERNELS[device] if status[name].available)


def default_backend(device: str) -> str:
    """What runs on the device if nobody chooses."""
    return next(iter(kernels(device)), "reference")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Place(Protocol):
    """What of a setting decides how a model is built."""

    @property
    def device(self) -> str: ...

    @property
    def tiny(self) -> bool: ...


def build(at: Place, name: str, dtype: torch.dtype, **overrides: Any) -> TRecViT:
    """A model of ``create_model`` in evaluation mode, always of the same random weights; small if ``at.tiny``."""
    torch.manual_seed(0)
    model = create_model(name, **{**(TINY if at.tiny else {}), **overrides})
    return model.to(at.device, dtype).eval()


def random_video(model: TRecViT, batch: int, frames: int) -> Tensor:
    """Frames in [0, 1] (batch, frames, 3, H, W) on the model's device, in its dtype."""
    weight = model.embedding.weight
    return torch.rand(batch, frames, 3, *model.config.image_size, device=weight.device).to(weight.dtype)


def on(backend: str | None, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` with the ops of one backend; None: as it is."""
    if backend is None:
        return run

    def chosen(*args: Any) -> Any:
        with backends.use(backend):
            return run(*args)

    return chosen


def classes(video: Tensor) -> Tensor:
    """A class for each video of the batch, at most 10 different ones."""
    return (torch.arange(video.shape[0], device=video.device) + 7) % 10


def training_step(model: nn.Module, video: Tensor) -> Callable[[], Tensor]:
    """Forward, cross-entropy, backward; gradients are fresh, as after ``zero_grad(set_to_none=True)``."""
    target = classes(video)

    def step() -> Tensor:
        for parameter in model.parameters():
            parameter.grad = None
        loss = F.cross_entropy(model(video).float(), target)
        loss.backward()
        return loss.detach()

    return step


class Timed:
    """A work that remembers how long its calls took, so that frames/s need no further calls where they are slow."""

    def __init__(self, work: Work) -> None:
        self.work, self.calls = work, list[float]()

    def __call__(self) -> object:
        began = time.perf_counter()
        result = self.work()
        self.calls.append(time.perf_counter() - began)
        return result

    def seconds(self, at: Setting) -> float:
        """Median of the calls so far without the first (on a GPU, and if there are none, of three new ones)."""
        if at.device == "cuda" or len(self.calls) < 2:
            self()
            return statistics.median(at.wall(self.work) for _ in range(1 if at.tiny else 3))
        return statistics.median(self.calls[1:])


def rate(
    suite: str, label: str, point: Mapping[str, int | str], work: Timed, frames: int, at: Setting
) -> Measurement:
    """Frames/s of ``work``, which is one pass over ``frames`` frames; on a GPU with the energy of a frame."""

    def run() -> dict[str, Any]:
        try:
            took = work.seconds(at)
        except Exception as error:  # a model of others that cannot run must not stop the report
            return {"note": f"left out, {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"}
        values = {"seconds": took, "frames_per_second": frames / took}
        if at.device == "cuda" and (found := energy.of(work.work)):
            values |= {"watts": found.watts, "joules_per_frame": found.joules / frames}
        return values

    return Measurement(suite, label, point, run)


def compiled_blocks(at: Place, model: TRecViT) -> TRecViT:
    """The same weights, every block compiled in its first call: one compilation serves all blocks."""
    torch._dynamo.config.recompile_limit = 64
    copy = TRecViT(model.config).to(model.embedding.weight.device, model.embedding.weight.dtype)
    copy.load_state_dict(model.state_dict())
    for block in copy.train(model.training).blocks:
        block.compile(fullgraph=True, dynamic=False, backend="aot_eager" if at.tiny else "inductor")
    return copy


def exact_copy(model: TRecViT) -> TRecViT:
    """The same weights in float64."""
    exact = TRecViT(model.config).double().to(model.embedding.weight.device).eval()
    exact.load_state_dict(model.state_dict())
    return exact


@torch.no_grad()
def check_forward(model: TRecViT) -> str:
    """Logits and tokens of two frames against the reference ops in float64."""
    return _check_outputs(model, lambda m, video: [m(video), m.forward_features(video)], _TRUTH_FRAMES)


@torch.no_grad()
def check_streaming(model: TRecViT) -> str:
    """Logits after each of some frames, one by one, against the reference ops in float64.

    On a GPU four frames: a graph replays the last two.
    """

    def run(m: TRecViT, video: Tensor) -> list[Tensor]:
        stream = Stream(m, batch_size=video.shape[0])
        return [stream.push(frame) for frame in video.unbind(1)]

    on_gpu = model.embedding.weight.is_cuda
    return _check_outputs(model, run, 4 if on_gpu else _TRUTH_FRAMES)


def _check_outputs(model: TRecViT, run: Callable[[TRecViT, Tensor], list[Tensor]], frames: int) -> str:
    video = random_video(model, 1, frames)
    ours = run(model, video)
    with backends.use("reference"):
        return within_reference(ours, run(model, video), run(exact_copy(model), video.double()))


def check_gradients(model: TRecViT) -> str:
    """Loss and the gradients of all parameters, two frames, against the reference ops in float64."""
    video = random_video(model, 1, _TRUTH_FRAMES)
    ours = _gradients(model, video)
    with backends.use("reference"):
        same = _gradients(model, video)
        truth = _gradients(exact_copy(model), video.double())
    # In shares of each tensor's largest element, and all tensors as one: the worst of ours against the worst
    # of the reference.
    scales = [t.abs().max() for t in truth]
    parts = [
        torch.cat([(t.double() / s).flatten() for t, s in zip(found, scales)])
        for found in (ours, same, truth)
    ]
    return within_reference([parts[0].to(video.dtype)], [parts[1].to(video.dtype)], [parts[2]])


def _gradients(model: TRecViT, video: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(video), torch.tensor([7], device=video.device))
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
