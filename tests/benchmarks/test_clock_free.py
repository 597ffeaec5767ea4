"""What can become worse without a clock noticing: scratch memory of ops; memory, calls and FLOPs of a streamed frame.

Elsewhere: bytes saved by autograd and FLOPs of each op (tests/ops/test_memory.py), launches of a streamed frame on a
GPU (tests/models/test_cuda_streaming.py), registers and spills (tests/ops/test_triton_aot.py,
tests/test_cuda_build.py), FLOPs of whole models (tests/test_accounting.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import trecvit_kernels as tk
from trecvit_kernels import TRecViT, TRecViTConfig, accounting, backends
from trecvit_kernels.ops import _products

from ..ops._suite import OPS

pytestmark = pytest.mark.about("native")
needs_native = pytest.mark.skipif(
    not backends.available()["native"].available, reason="the compiled extension is missing"
)


def _bytes(tree: Any) -> int:
    return sum(t.nbytes for t in tree_leaves(tree) if isinstance(t, Tensor))


def _peak(work: Callable[[], Any]) -> tuple[int, Any]:
    """The most that PyTorch's CPU allocator held at once for ``work``, in bytes, and what ``work`` returns.

    Outputs of our ops from 1 MiB on are not the allocator's.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = work()
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert peak >= _bytes(result)
    return peak, result


@needs_native
@pytest.mark.parametrize(
    "name, case, forward, backward",  # at most so many times the first input, beside results and gradients
    [
        ("linear_scan", "video-f32", 0, 0.1),
        ("linear_scan", "video-bf16", 0, 0.2),
        ("gated_lru", "video-real-f32", 0, 0.15),
        ("gated_lru", "video-complex-f32", 0, 0.15),
        ("gated_lru", "video-real-bf16", 0, 0.3),
        ("recurrent_mixer", "video-real-f32", 3, 4.5),
        ("recurrent_mixer", "video-complex-f32", 3, 4.5),
    ],
)
def test_scratch_memory_of_an_op(name: str, case: str, forward: float, backward: float) -> None:
    op = OPS[name]
    inputs = op.make_inputs(op.case(case))

    def leaf(value: Any) -> Any:
        real = isinstance(value, Tensor) and value.dtype != torch.bool
        return value.detach().requires_grad_() if real else value

    unit = tree_leaves(inputs)[0].nbytes
    peak, results = _peak(lambda: op.function(**inputs, backend="native"))
    assert peak - _bytes(results) <= forward * unit

    inputs = tree_map(leaf, inputs)
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.requires_grad]
    output = op.function(**inputs, backend="native")[0]
    cotangent = torch.ones_like(output)
    peak, gradients = _peak(lambda: torch.autograd.grad(output, leaves, cotangent))
    assert peak - _bytes(gradients) <= backward * unit


# A streamed frame.


def _config(depth: int, name: str = "trecvit_base", **more: Any) -> TRecViTConfig:
    """A few blocks of a model."""
    with torch.device("meta"):
        return tk.create_model(name, depth=depth, **more).config


@needs_native
def test_a_streamed_frame_needs_no_more_after_many_frames_or_in_a_deeper_model() -> None:
    """Beside the new state. In real memory, with the compiled kernels."""
    needed = set()
    for depth in (2, 3):
        model = TRecViT(_config(depth, "trecvit_tiny", image_size=(64, 64))).eval()
        state, frame = model.init_state(1), torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            for index in range(8):
                if index in (2, 7):
                    peak, (_, state) = _peak(lambda: model.step(frame, state))  # noqa: B023
                    needed.add(peak - _bytes(list(state.layers)) - state.mean.nbytes)
                else:
                    _, state = model.step(frame, state)
    assert len(needed) == 1, sorted(needed)


class _Step(nn.Module):
    """``model.step`` as a module; the tensors of the state are named as inputs, so that they count as such."""

    def __init__(self, model: TRecViT, state: Any) -> None:
        super().__init__()
        self.model, self.state = model, state

    def forward(self, frame: Tensor, *_: Tensor) -> Any:
        return self.model.step(frame, self.state)


@pytest.mark.parametrize(
    "dtype, widened, most",
    [(torch.float32, False, 14), (torch.bfloat16, False, 14), (torch.bfloat16, True, 17)],
    ids=("float32", "bfloat16", "bfloat16-widened"),
)
def test_temporaries_of_a_streamed_frame(
    dtype: torch.dtype, widened: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the peak, in the MLP: 4 activations wide before and behind its GELU, and six more.

    Where a CPU has no bfloat16 products it is in attention: q, k, v and the result in float32, and nine more.
    """
    monkeypatch.setattr(_products, "WIDENED", frozenset([torch.bfloat16] if widened else []))
    config = _config(2)
    with FakeTensorMode(), torch.no_grad():
        model = accounting.fake_model(lambda: TRecViT(config), dtype=dtype).eval()
        frame = torch.empty(1, 3, *config.image_size, dtype=dtype)
        _, state = model.step(frame, model.init_state(1))  # type: ignore[operator]
        tensors = [t for t in tree_leaves([*state.layers, state.mean]) if isinstance(t, Tensor)]
        memory = accounting.memory(_Step(model, state), frame, *tensors, training=False)  # type: ignore[arg-type]
    one = config.tokens * config.width * dtype.itemsize
    assert memory.activations - _bytes(tensors) <= most * one


class _Calls(TorchDispatchMode):
    """Counts operators that compute or copy something."""

    _FREE = ("prim.", "aten.view", "aten.transpose", "aten.slice", "aten.unbind", "aten.unsqueeze", "aten.select",
             "aten.alias", "aten.permute", "aten.expand", "aten._unsafe_view", "aten.t.", "aten.empty",
             "aten.detach", "aten.squeeze", "aten.split", "aten.as_strided")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if not name.startswith(self._FREE):
            self.names[name.removeprefix("trecvit_kernels.").removesuffix(".default")] += 1
        return function(*args, **(kwargs or {}))


def _calls(depth: int, frames: int) -> Counter[str]:
    """Of the last of so many streamed frames, under fake CPU tensors."""
    config = _config(depth)
    with FakeTensorMode(), torch.no_grad():
        model = accounting.fake_model(lambda: TRecViT(config)).eval()
        state = model.init_state(1)  # type: ignore[operator]
        for _ in range(frames):
            with _Calls() as calls:
                _, state = model.step(torch.empty(1, 3, *config.image_size), state)  # type: ignore[operator]
    return calls.names


@needs_native
def test_operator_calls_of_a_streamed_frame() -> None:
    """On the CPU. A block: 7 linear layers, mixer, attention, 3 norms, GELU, 3 sums, 1 tail; no copied tokens."""
    one, two = _calls(1, frames=2), _calls(2, frames=2)
    assert two == _calls(2, frames=4)
    block = two - one
    assert block.total() <= 17, block
    assert not {"aten.clone", "aten.copy_", "aten._to_copy"} & block.keys(), block


def test_flops_of_streamed_frames() -> None:
    """Frames one by one cost what they cost at once, and the classifier's product for every frame."""
    config, frames = _config(1), 3
    with FakeTensorMode(), torch.no_grad():
        model = accounting.fake_model(lambda: TRecViT(config)).eval()
        video = torch.empty(1, frames, 3, *config.image_size)
        whole = accounting.flops(lambda: model(video))
        state, steps = model.init_state(1), []  # type: ignore[operator]
        for t in range(frames):
            with FlopCounterMode(display=False) as counter:
                _, state = model.step(video[:, t], state)  # type: ignore[operator]
            steps.append(counter.get_total_flops())
    assert len(set(steps)) == 1
    classifier = 2 * config.feature_width * config.num_classes
    assert sum(steps) == whole + (frames - 1) * classifier
