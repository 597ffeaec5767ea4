"""The memory suite: bytes that can be computed by hand, growth with the frames, and the allocator's counters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu import allocator
from benchmarks.models.common import TINY
from benchmarks.models.held import saved_by_layer
from benchmarks.models.plain import plain
from benchmarks.rows import Counted, Measurement, find, measure
from benchmarks.setting import Setting
from benchmarks.suites import memory
from benchmarks.suites.memory import ADAMW, BY_LAYER, INFERENCE, TRAINING, Point
from trecvit_kernels import TRecViT, create_model


@pytest.fixture(autouse=True)
def fresh() -> None:
    memory.tracked.cache_clear()
    memory.allocated.cache_clear()


def tiny(mode: str = TRAINING, label: str = "TRecViT-B", **changes: Any) -> Point:
    return dataclasses.replace(Point(label, mode, frames=4, image=32, tiny=True), **changes)


def model(**changes: Any) -> TRecViT:
    torch.manual_seed(0)
    return create_model("trecvit_base", **{**TINY, **changes})


def test_rows_are_few_if_tiny_and_their_keys_are_unique() -> None:
    found = [
        find(row) if isinstance(row, Measurement) else measure(row) for row in memory.rows(Setting(tiny=True))
    ]
    record, *results = found
    assert record.at == {"frames": 2, "image": 32, "mode": TRAINING, "dtype": "float32"}
    assert record.values["total"] > record.values["saved"] > 0
    assert [(r.unit, r.floor, r.limit) for r in results] == [("B", True, 0.5), ("B", True, 0.6)]
    assert all(r.ratio == r.ours / r.theirs for r in results)
    for setting in (Setting(), Setting(quick=True), Setting(dtypes=(torch.float32, torch.bfloat16))):
        keys = [row.key for row in memory.rows(setting)]
        assert len(set(keys)) == len(keys)


def test_the_curves_have_every_size() -> None:
    points = list(memory.points(Setting(), torch.float32))
    for label in memory.MAIN:
        for mode in (INFERENCE, TRAINING):
            mine = [p for p in points if (p.label, p.mode) == (label, mode)]
            assert {p.frames for p in mine if p.image == 224} == {8, 16, 32, 64, 128}
            assert {p.image for p in mine if p.frames == 32} == {112, 224, 336, 448}
    assert {p.label for p in points if p.mode == ADAMW} == set(memory.MAIN)


def test_targets() -> None:
    limits = {
        (row.what.split(":")[0], row.peer): row.limit
        for row in memory.targets(Setting(), torch.float32)
        if row.limit is not None
    }
    ours, doubled = "TRecViT-B, 32 frames, float32", "TRecViT-B, doubled LRU, 32 frames, float32"
    assert limits == {
        (ours, "ViViT-L 1x16x16, eager attention"): 1 / 12,
        (ours, "ViViT-L 1x16x16, flash attention"): 1 / 3,
        **{(m, "same model, plain eager ops"): 0.5 for m in (ours, doubled)},
        **{(m, "same model, reference ops"): 0.6 for m in (ours, doubled)},
    }


@pytest.mark.parametrize("mode", [INFERENCE, TRAINING, ADAMW])
def test_the_parts_add_up_and_parameters_are_parameters(mode: str) -> None:
    found = memory.values(tiny(mode))
    categories = ("parameters", "gradients", "optimizer", "activations", "temporaries", "inputs", "buffers")
    assert sum(found[name] for name in categories) == found["total"]
    parameters = [4 * p.numel() for p in model().parameters()]
    assert found["parameters"] == sum(parameters)
    assert found["inputs"] == 4 * 4 * 3 * 32 * 32
    steps = 4 * len(parameters)
    assert found["optimizer"] == (2 * sum(parameters) + steps if mode == ADAMW else 0)
    if mode == INFERENCE:
        assert found["gradients"] == found["temporaries"] == found["saved"] == 0


def test_linear_layers_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights far larger than activations, so that the peak is where all gradients are there."""
    inputs, hidden, outputs = 3 * 16 * 16, 128, 2

    def build(_: Point) -> nn.Module:
        layers = (nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias=False))
        return nn.Sequential(nn.Flatten(), *layers)

    monkeypatch.setattr(memory, "build", build)
    point = Point("two layers", TRAINING, frames=1, image=16)
    weights = 4 * (inputs * hidden + hidden + hidden * outputs)
    training = memory.tracked(point)
    assert (training.parameters, training.inputs, training.buffers) == (weights, 4 * inputs, 0)
    assert training.saved == 4 * (hidden + outputs)  # the ReLU's output, and the result
    # The last gradient that is made is the first layer's: it counts as temporary until it is the parameter's.
    assert training.gradients == 4 * hidden * outputs
    assert training.gradients + training.temporaries == weights + 4 * hidden
    adamw = memory.tracked(dataclasses.replace(point, mode=ADAMW))
    assert (
        adamw.optimizer == 2 * weights + 3 * 4
    )  # two moments, and a count of steps for each of three parameters
    assert adamw.total == training.total + adamw.optimizer
    half = memory.tracked(dataclasses.replace(point, dtype=torch.bfloat16))
    assert 2 * half.parameters == training.parameters
    assert 2 * half.saved == training.saved


def saved(label: str, frames: int, **changes: Any) -> int:
    return memory.tracked(tiny(label=label, frames=frames, **changes)).saved


def test_ours_is_linear_in_frames_and_eager_attention_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    # Equal steps in frames are equal steps in bytes: what is per call, such as the logits, drops out.
    few, some, many = (saved("TRecViT-B", frames) for frames in (32, 64, 128))
    assert many - some == pytest.approx(2 * (some - few), rel=0.01)
    transformers = pytest.importorskip(
        "transformers", reason="transformers (extra 'benchmarks') is not installed"
    )

    def small_vivit(point: Point) -> nn.Module:
        config = transformers.VivitConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3,
            num_frames=point.frames, image_size=point.image, tubelet_size=[1, 16, 16],
            attn_implementation="eager" if "eager" in point.label else "sdpa",
        )  # fmt: skip
        return transformers.VivitForVideoClassification(config)

    monkeypatch.setattr(memory, "build", small_vivit)
    sizes = [saved("eager", frames, image=64) for frames in (64, 128, 256)]
    assert sizes[2] / sizes[1] == pytest.approx(4, rel=0.1)
    sizes = [saved("flash", frames, image=64) for frames in (64, 128, 256)]
    assert sizes[2] / sizes[1] == pytest.approx(2, rel=0.1)


def test_checkpointed_blocks_and_our_ops_need_less_than_plain_ones() -> None:
    size = {"frames": 4, "image": 128}
    totals = {
        kind: memory.tracked(tiny(label="TRecViT-B" + kind, **size))
        for kind in ("", ", checkpointed blocks", ", plain eager ops", ", reference ops")
    }
    ours = totals[""]
    assert totals[", checkpointed blocks"].saved < ours.saved < totals[", plain eager ops"].saved
    assert totals[", checkpointed blocks"].total <= ours.total <= totals[", plain eager ops"].total
    assert ours.saved < totals[", reference ops"].saved
    assert len({memory.parameters for memory in totals.values()}) == 1


def test_the_plain_model_computes_the_same() -> None:
    ours, video = model().eval(), torch.rand(2, 5, 3, 32, 32)
    logits = ours(video)
    parameters = dict(ours.named_parameters())
    gradients = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
    theirs = plain(ours)
    again = theirs(video)
    torch.testing.assert_close(again, logits)
    assert dict(theirs.named_parameters()) == parameters  # the same ones, of the same names
    for one, other in zip(
        torch.autograd.grad(again.square().sum(), list(parameters.values())), gradients, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())
    with pytest.raises(ValueError, match="it takes whole videos only"):
        theirs.init_state(1)


@pytest.mark.parametrize("label", ["TRecViT-B", "TRecViT-B, plain eager ops", "TRecViT-B, reference ops"])
def test_saved_by_layer_is_what_the_tracker_sees(label: str) -> None:
    by_layer = memory.layers(tiny(BY_LAYER, label, image=128))
    logits = 4 * TINY["num_classes"]
    tracked = memory.tracked(tiny(TRAINING, label, image=128)).saved
    assert sum(by_layer.values()) == pytest.approx(tracked - logits, rel=0.01)
    assert list(by_layer.values()) == sorted(by_layer.values(), reverse=True)
    if label == "TRecViT-B":
        assert any(name.startswith("blocks.*.time") and "recurrent_mixer" in name for name in by_layer)
        assert not any(".0." in name for name in by_layer)


def test_saved_by_layer_by_hand() -> None:

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            return self.third(self.second(h).exp()) + h.view(-1).square().sum()

    with FakeTensorMode():
        found = saved_by_layer(Shared(), torch.empty(3, 4))
    # h by second and by the model's own square, the exponential's result by the model and by third.
    assert found == {"second + model": 4 * 3 * 8, "model + third": 4 * 3 * 8}


class FakeCounter:
    """An allocator that knows what it is told, and says that every step needs 700 bytes more than what stays."""

    def __init__(self) -> None:
        self.calls = list[str]()
        self.here = 1000  # of somebody else

    def held(self) -> int:
        self.calls.append("held")
        return self.here

    def peak(self) -> int:
        self.calls.append("peak")
        return self.here + 700

    def reset(self) -> None:
        self.calls.append("reset")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("adamw", [False, True])
def test_the_allocators_peak_is_that_of_the_second_step(
    monkeypatch: pytest.MonkeyPatch, training: bool, adamw: bool
) -> None:
    """The counters are made up: none of this has an allocator to ask on the CPU."""
    monkeypatch.setattr(allocator.gc, "collect", lambda: 0)  # slow after large imports
    counter = FakeCounter()
    states = (
        2 * 4096 + 512 if adamw and training else 0
    )  # moments and a count of steps, rounded up to 512 bytes

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))
            counter.here += 4000

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.weight.grad is None
            if "step" not in counter.calls:
                counter.here += 64 + states
            counter.calls.append("step")
            return x.sum() * self.weight.sum()

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, fused=True)

    def video() -> torch.Tensor:
        counter.here += 400
        return torch.ones(100)

    found = allocator.peak(Model, video, counter, training=training, optimizer=optimizer if adamw else None)
    assert counter.calls == ["held", "held", "step", "held", "reset", "step", "peak"]
    assert found == {"workspace": 64, "allocator": 4000 + 400 + states + 700}


@pytest.mark.parametrize(
    "counted, met", [(100.0, True), (104.9, True), (95.3, True), (106.0, False), (94.0, False)]
)
def test_tracker_and_allocator_must_agree(monkeypatch: pytest.MonkeyPatch, counted: float, met: bool) -> None:
    point = tiny()
    tracked = memory.tracked(point).total
    monkeypatch.setattr(
        memory, "allocated", lambda _: {"allocator": round(tracked * counted / 100), "workspace": 0}
    )
    (row,) = memory.agreement([point])
    assert isinstance(row, Counted) and measure(row).met is met


def on_gpu(monkeypatch: pytest.MonkeyPatch, free: int, peak: Callable[..., dict[str, int]]) -> dict[str, Any]:
    """Values of a record on a GPU that is not there."""
    track = memory.tracked
    monkeypatch.setattr(memory, "tracked", lambda point: track(dataclasses.replace(point, device="cpu")))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(allocator, "peak", peak)
    return memory.values(tiny(device="cuda"))


def test_a_gpu_adds_the_allocators_peak_where_the_step_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def peak(build: Any, video: Any, counter: Any, **how: Any) -> dict[str, int]:
        calls.append(how)
        return {"allocator": 5, "workspace": 3}

    found = on_gpu(monkeypatch, 10**9, peak)
    assert (found["allocator"], found["workspace"]) == (5, 3) and "note" not in found
    assert calls == [{"training": True, "optimizer": None}]
    memory.allocated.cache_clear()
    found = on_gpu(monkeypatch, 1000, peak)
    assert "allocator" not in found and found["note"].startswith("allocator: about 0.0 GB needed")
    assert len(calls) == 1


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(KeyError, match="TRecViT-Z"):
        memory.build(Point("TRecViT-Z", TRAINING))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", [INFERENCE, TRAINING, ADAMW])
def test_tracker_and_allocator_agree_on_a_gpu(mode: str) -> None:
    point = Point("TRecViT-B", mode, frames=8, device="cuda")
    assert memory.tracked(point).total == pytest.approx(
        memory.allocated(point)["allocator"], rel=memory.AGREEMENT
    )
