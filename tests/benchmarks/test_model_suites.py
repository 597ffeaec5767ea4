"""The suites model, streaming and scaling at sizes that take seconds: their numbers mean nothing, their paths do."""

from __future__ import annotations

import gc
import itertools
import math
import mmap
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import floors, rows
from benchmarks.gpu import energy
from benchmarks.models import baselines, official_jax
from benchmarks.models import common as models
from benchmarks.rows import Comparison, Measurement, Record, Result
from benchmarks.setting import Setting
from benchmarks.suites import model as model_suite
from benchmarks.suites import scaling, streaming
from trecvit_kernels import TRecViT, accounting, create_model
from trecvit_kernels.ops import _products

TINY = Setting(quick=True, tiny=True)


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    """One thread, and a garbage collector that need not look at all that was imported."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def small_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear classifier in the place of models that take seconds to build."""

    class Classifier(nn.Module):
        def __init__(self, frames: int, image: int, attention: str) -> None:
            super().__init__()
            self.linear = nn.Linear(frames * 3 * image * image, 10)

        def forward(self, video: Tensor) -> Tensor:
            return self.linear(video.flatten(1))

    for label in model_suite.RIVALS:
        monkeypatch.setitem(baselines.BASELINES, label, baselines.Baseline(label, Classifier))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_no_peers_where_products_have_no_instructions(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bfloat16 model of others would take hours there; the floors are those of float32 products."""
    monkeypatch.setattr(_products, "WIDENED", frozenset([torch.bfloat16]))
    at, widened = Setting(dtypes=(dtype,)), dtype == torch.bfloat16
    assert at.in_dtype(dtype).floors_only == widened
    model = models.build(TINY, model_suite.MODEL, dtype)
    least = floors.ModelFloor(model, 1, 1)
    assert {weight.dtype for _, weight, _ in least.linears} == {torch.float32}
    assert {weight.dtype for _, weight in least.gates} == {t.dtype for t in least.qkv} == {torch.float32}
    monkeypatch.setattr(_products, "WIDENED", frozenset())
    assert not at.in_dtype(dtype).floors_only
    assert floors.ModelFloor(model, 1, 1).linears[0][1].dtype == dtype


def measured(made: Iterator[Comparison | Measurement], at: Setting = TINY) -> list[Result | Record]:
    """Every row's result; no two rows have the same key."""
    results: list[Result | Record] = []
    keys = set()
    for row in made:
        assert row.key not in keys
        keys.add(row.key)
        results.append(rows.measure(row, at.clock) if isinstance(row, Comparison) else rows.find(row))
        assert results[-1].key == row.key
    return results


def assert_numbers(results: list[Result | Record]) -> None:
    """Every result has its numbers, finite and, but for slopes, positive."""
    for result in results:
        if isinstance(result, Result):
            assert not result.failed and "left out" not in result.note, result
            assert result.ours > 0 and result.theirs > 0 and math.isfinite(result.ratio), result
            continue
        assert result.values or "not measured" in result.note, result
        for name, value in result.values.items():
            assert np.isfinite(value).all(), (result, name)
            assert name.startswith("slope") or np.all(np.asarray(value) > 0), (result, name)


@pytest.mark.usefixtures("small_rivals")
def test_every_row_of_the_model_suite_has_numbers() -> None:
    results = measured(model_suite.rows(TINY))
    assert_numbers(results)
    peers = {result.peer for result in results if isinstance(result, Result)}
    assert {model_suite.PRODUCTS, model_suite.ONEDNN, model_suite.REFERENCE} < peers
    rates = {(r.what, r.at["mode"]) for r in results if isinstance(r, Record) and r.at}
    assert (model_suite.LABEL, "training") in rates and ("ViViT-B 1x16x16", "inference") in rates


def test_targets_are_on_the_floor_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The full-size labels and limits, which result files and README.md know; nothing is run."""

    def build(at: Setting, name: str, dtype: torch.dtype) -> TRecViT:
        with torch.device("meta"):
            return create_model(name).to(dtype)

    monkeypatch.setattr(models, "build", build)
    monkeypatch.setattr(streaming, "_under_way", lambda *args: lambda: None)
    suites = [suite.rows(Setting(floors_only=True)) for suite in (model_suite, streaming)]
    made = {
        (row.group, row.what, row.peers[0].name): row.limit
        for row in itertools.chain(*suites)
        if isinstance(row, Comparison)
    }
    floor = model_suite.PRODUCTS
    layer = "GatedLRU(1536, 12) forward + backward, float32, (1, 32, 196, 1536)"
    assert {key: limit for key, limit in made.items() if limit} == {
        ("layer", layer, "0.16 s at 220 GFLOP/s, scaled to the matmul rate"): 1.0,
        ("model", "TRecViT-B forward, 8 frames, float32", floor): 1.08,
        ("model", "TRecViT-B forward, 8 frames, bfloat16", floor): 1.15,
        ("model", "TRecViT-B training step, 8 frames, float32", floor): 1.08,
        ("streaming", "TRecViT-B streaming step, float32", floor): 1.06,
        ("streaming", "TRecViT-B streaming step, bfloat16", floor): 1.2,
    }


def test_compiled_model_gives_the_same_logits() -> None:
    at = Setting(dtypes=(torch.float32,), tiny=True)
    row = next(
        row
        for row in model_suite.rows(at)
        if isinstance(row, Comparison) and row.peers[0].name == model_suite.COMPILED
    )
    result = rows.measure(row)
    assert result.peer == model_suite.COMPILED and "left out" not in result.note


def test_a_rival_that_cannot_be_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(frames: int, image: int = 224, attention: str = "sdpa") -> nn.Module:
        raise ImportError("no transformers here")

    label = "ViViT-B 1x16x16"
    monkeypatch.setitem(baselines.BASELINES, label, baselines.Baseline(label, build))
    at = Setting(dtypes=(torch.bfloat16,), quick=True, tiny=True)
    results = [
        rows.measure(row) if isinstance(row, Comparison) else rows.find(row)
        for row in model_suite.rows(at)
        if row.what == label or (isinstance(row, Comparison) and row.peers[0].name.startswith(label))
    ]
    assert ["no transformers here" in result.note for result in results] == [True, True]
    assert not any(result.failed for result in results)


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "check_streaming", lambda model: "off by 1")
    monkeypatch.setattr(scaling, "_check_chunks", lambda model, chunk: "off by 1")
    made = [row for row in streaming.rows(TINY) if isinstance(row, Measurement)]
    made += [row for row in scaling.rows(TINY) if "frame by frame" in row.what]
    for row in made:
        record = rows.find(row)
        assert record.failed and "off by 1" in record.note and not record.values


def test_every_row_of_the_streaming_suite_has_numbers() -> None:
    results = measured(streaming.rows(TINY))
    assert_numbers(results)
    records = [result for result in results if isinstance(result, Record)]
    assert [record.what.split(",")[0] for record in records] == ["TRecViT-B", "TRecViT-S"]
    for record in records:
        assert len(record.values["latencies"]) == record.at["frames"] == streaming.TINY_FRAMES
        assert len(record.values["resident"]) == len(record.values["resident_at"])
        assert record.values["resident_at"][-1] == streaming.TINY_FRAMES
        assert record.values["p50"] <= record.values["p99"]
        assert record.values["frames_per_second"] == pytest.approx(1 / record.values["mean"])


def test_a_long_stream_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whose memory nothing of this one is."""
    ballast = torch.ones(2**27)  # 512 MiB
    found = streaming._in_a_process(TINY, "TRecViT-S", torch.float32, "reference", 8)
    assert len(found["latencies"]) == 8
    assert 0 < max(found["resident"]) < streaming.resident_bytes() - ballast.nbytes // 2
    with pytest.raises(RuntimeError, match="process ended with 1"):
        streaming._in_a_process(TINY, "no such model", torch.float32, "reference", 8)
    monkeypatch.setattr(streaming, "_in_a_process", lambda *arguments: {"arguments": arguments})
    monkeypatch.setattr(models, "check_streaming", lambda model: "")
    monkeypatch.setattr(models, "build", lambda *arguments: torch.nn.Linear(1, 1))
    at = Setting(quick=True)
    found = streaming._checked_stream(at, "TRecViT-S", torch.float32, "reference", 8)
    assert found["arguments"] == (at, "TRecViT-S", torch.float32, "reference", 8)


def test_state_bytes_are_those_of_the_model() -> None:
    model = models.build(TINY, "trecvit_base", torch.bfloat16)
    assert streaming.stream(model, 3)["state_bytes"] == model.init_state(1).nbytes


def test_percentiles() -> None:
    found = streaming.latency([float(value) for value in range(1, 102)])
    assert found == {"p50": 51.0, "p99": pytest.approx(100.0), "mean": 51.0}


@pytest.mark.parametrize(
    ("resident", "flat"),
    [
        ([0, 0, 10**9, 10**9, 10**9, 10**9, 10**9 + 9 * 10**6, 10**9 + 9 * 10**6], True),  # under 1 %
        ([0, 0, 10**8, 10**8, 0, 0, 10**8 + 8 * 10**6, 10**8 + 8 * 10**6], True),  # under 8 MiB
        ([0, 0, 10**8, 10**8, 0, 0, 2 * 10**8, 2 * 10**8], False),
    ],
)
def test_memory_counts_as_flat_within_a_share_or_some_megabytes(resident: list[int], flat: bool) -> None:
    assert streaming.flatness(resident).startswith("memory is flat" if flat else "memory IS NOT FLAT")


def test_resident_memory_follows_an_allocation() -> None:
    size, before = 2**26, streaming.resident_bytes()
    with mmap.mmap(-1, size) as block:  # not NumPy's, which may get memory that the process has already
        for byte in range(0, size, mmap.PAGESIZE):
            block[byte] = 1
        assert streaming.resident_bytes() - before > 0.9 * size


def test_every_row_of_the_scaling_suite_has_numbers() -> None:
    results = measured(scaling.rows(TINY))
    assert_numbers(results)
    by_axis = {record.at["axis"] for record in results if isinstance(record, Record)}
    assert by_axis == {"frames", "tokens", "batch"}
    slopes = {
        r.what: r.values["slope_bytes"]
        for r in results
        if r.what.endswith("slope") and r.at["axis"] == "frames"
    }
    for what, found in slopes.items():
        expected = 0.0 if "inference" in what else 1.0  # a stream's memory does not depend on its length
        assert found == pytest.approx(expected, abs=0.03), what


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_slope_of_a_power_is_its_exponent(power: float) -> None:
    sizes = [8, 16, 64, 100]
    assert scaling.slope(sizes, [3e-5 * size**power for size in sizes]) == pytest.approx(power, abs=1e-9)


def test_slope_is_that_of_least_squares() -> None:
    """By the textbook's formula on three points that lie on no line."""
    sizes, values = [1.0, math.e, math.e**2], [1.0, math.e, math.e**4]
    assert scaling.slope(sizes, values) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("sizes", "values"), [([1], [1.0]), ([4, 4], [1.0, 2.0]), ([1, 2], [0.0, 1.0]), ([1, 2], [1.0])]
)
def test_slope_refuses_what_has_none(sizes: list[int], values: list[float]) -> None:
    with pytest.raises(ValueError, match="slope: "):
        scaling.slope(sizes, values)


def test_slopes_use_the_upper_half_and_measure_what_is_missing() -> None:
    asked: list[int] = []

    def at(size: int) -> dict[str, float]:
        asked.append(size)
        return {"seconds": 1.0 if size < 8 else size / 8, "bytes": size**2}

    line = scaling.Line("made up", "frames", (1, 2, 4, 8, 16, 32), torch.float32, at, lambda: "")
    *_, last = line.rows()
    record = rows.find(last)
    assert asked == [8, 16, 32]
    assert record.values == {"slope_time": pytest.approx(1.0), "slope_bytes": pytest.approx(2.0)}


def test_saved_bytes_counts_every_block_once() -> None:
    x = torch.randn(100, requires_grad=True)
    assert scaling.saved_bytes(lambda: x.exp()) == 400  # the result
    assert scaling.saved_bytes(lambda: (x * x[:50].repeat(2)).sum()) == 800  # x and the repeated half
    assert scaling.saved_bytes(lambda: (x * x[:50].repeat(2)).sum(), without=[x]) == 400


def test_saved_bytes_of_the_model_are_those_of_the_memory_tracker() -> None:
    model = models.build(TINY, "trecvit_base", torch.float32).train()
    video = models.random_video(model, 1, 16)
    kept = scaling.saved_bytes(lambda: model(video), without=model.parameters())
    assert kept == pytest.approx(accounting.memory(model, video).saved, rel=0.1)


def test_bytes_of_a_step_hold_input_and_state() -> None:
    model = models.build(TINY, "trecvit_base", torch.float32)
    frame = models.random_video(model, 1, 1)
    with torch.no_grad():
        state = model.step(frame, model.init_state(1))[1]
        found = scaling.step_bytes(model, frame, state)
    assert found > state.nbytes + frame.nbytes


def test_frames_per_second_come_from_the_calls_already_made() -> None:
    calls: list[int] = []
    work = models.Timed(lambda: calls.append(1))
    for _ in range(3):
        work()
    work.calls = [5.0, 0.1, 0.3]
    record = rows.find(models.rate("model", "TRecViT-B", {"frames": 8}, work, 8, TINY))
    assert len(calls) == 3
    assert record.values == {"seconds": pytest.approx(0.2), "frames_per_second": pytest.approx(40.0)}


@pytest.fixture
def smi(tmp_path: Path) -> Callable[[str], list[str]]:
    """A stand-in for nvidia-smi that prints some text."""

    def make(text: str) -> list[str]:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\necho '{text}'\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return [str(path)]

    return make


def test_energy_is_power_times_time(smi: Callable[[str], list[str]]) -> None:
    calls: list[int] = []
    found = energy.of(lambda: calls.append(1), seconds=0.2, smi=smi("250.50"))
    assert found is not None and found.watts == pytest.approx(250.5)
    assert found.joules * len(calls) == pytest.approx(250.5 * 0.2, rel=0.5)


def test_energy_is_left_out_where_nobody_reports_it(smi: Callable[[str], list[str]]) -> None:
    assert energy.of(lambda: None, seconds=0.2, smi=smi("[N/A]")) is None
    assert energy.of(lambda: None, seconds=0.2, smi=["/no/such/program"]) is None


def test_the_jax_peer_says_why_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    assert "jax" in official_jax.problem("cpu")


@pytest.mark.skipif(bool(official_jax.problem("cpu")), reason=official_jax.problem("cpu") or "none")
def test_the_jax_peer_computes_the_same() -> None:
    model = models.build(TINY, model_suite.MODEL, torch.float32)
    assert isinstance(model, TRecViT)
    video = models.random_video(model, 2, 4)
    official = official_jax.Official(model, video)
    with torch.no_grad():
        torch.testing.assert_close(official_jax.logits_like_ours(official.forward()()), model(video))
    loss = models.training_step(model, video)()
    torch.testing.assert_close(official_jax.loss_like_ours(official.train(models.classes(video))()), loss)
