"""The suite ``ops`` covers every op, backend, dtype and direction, and times nothing that is wrong."""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import trecvit_kernels as tk
from benchmarks.gpu import peers as gpu_peers
from benchmarks.ops import checks as ops_checks
from benchmarks.ops import rivals as ops_peers
from benchmarks.ops import rooms as ops_rooms
from benchmarks.ops import targets as ops_targets
from benchmarks.ops.calls import row_label
from benchmarks.rows import Comparison, measure
from benchmarks.setting import Setting
from benchmarks.suites import ops
from trecvit_kernels.ops import _products

_DTYPES = ("float32", "bfloat16", "float16")
_TINY = Setting(tiny=True)


@pytest.fixture(autouse=True, scope="module")
def _collect_fast() -> Iterator[None]:
    """Every timing begins with a garbage collection, which need not look at all of PyTorch each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def generic(monkeypatch: pytest.MonkeyPatch) -> list[Comparison]:
    """All rows at their real sizes but those with targets. Listing them makes no tensors."""
    monkeypatch.setattr(ops_targets, "rows", lambda at: [])
    return list(ops.rows(Setting(quick=True)))


def test_every_op_backend_dtype_and_direction_appears(generic: list[Comparison]) -> None:
    for name in tk.ops.__all__:
        room = next(room for room in ops_rooms.rooms() if room.name == name)
        assert set(room.available("cpu")) - {"reference"}, f"no backend of {name} on the CPU"
        for direction, dtype, case in itertools.product(ops.DIRECTIONS, _DTYPES, room.cases.BENCHMARK_CASES):
            if case.dtype.is_complex:
                dtype = "complex64"
            what = row_label(name, dataclasses.replace(case, dtype=getattr(torch, dtype)), direction)
            if name == "recurrent_mixer" and dtype == "float16" and case.frames > 16:
                continue  # takes minutes
            found = [row for row in generic if row.what.startswith(what)]
            assert {row.floor for row in found} == {True, False}, what


def test_rows_are_unique_have_bytes_and_no_target(generic: list[Comparison]) -> None:
    assert len({row.key for row in generic}) == len(generic)
    for row in generic:
        assert row.group == "ops"
        assert row.nbytes is not None and row.nbytes > 0
        assert row.limit is None
        assert row.peers
        assert row.floor == (row.peers[0].name == "copy of the same bytes")


def test_the_settings_dtypes_are_kept_to() -> None:
    rows = list(ops.rows(Setting(quick=True, dtypes=(torch.bfloat16,))))
    assert rows
    assert all(", bfloat16, " in row.what and row.limit is None for row in rows)
    floors = list(ops.rows(Setting(quick=True, dtypes=(torch.bfloat16,), floors_only=True)))
    assert [row.key for row in floors] == [row.key for row in rows if row.floor]


def test_every_tiny_row_is_measured_against_peers_that_agree() -> None:
    seen = set()
    for row in ops.rows(_TINY):
        result = measure(row)
        assert result.ratio is not None, (row.what, result.note)
        assert not result.note, (row.what, result.note)
        assert row.key not in seen
        seen.add(row.key)
    assert any("PyTorch's SDPA" in str(what) for _, what, _ in seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_peers_agree(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(ops, "DIRECTIONS", ("forward + backward",))
    for row in ops.rows(dataclasses.replace(_TINY, dtypes=(dtype,))):
        if not row.floor:
            assert not measure(row).note, row.what


@pytest.mark.parametrize("has", [False, True], ids=["emulated", "instructions"])
def test_16_bit_peers_multiply_as_ours_does(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    """In float32 where the CPU has no instructions for 16-bit products."""
    monkeypatch.setattr(_products, "WIDENED", frozenset() if has else frozenset([torch.bfloat16]))
    seen: set[tuple[str, torch.dtype]] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.einsum, torch.nn.functional.scaled_dot_product_attention):
                seen.update((name, t.dtype) for t in tree_leaves(args) if isinstance(t, torch.Tensor))
            return func(*args, **(kwargs or {}))

    for name in ("recurrent_mixer", "spatial_attention"):
        room = next(room for room in ops_rooms.rooms() if room.name == name)
        (case, *_) = room.sized([torch.bfloat16], tiny=True)
        arguments = room.cases.make_inputs(case)
        for rival in ops_peers.rivals(room, case, _TINY, "forward", room.available("cpu")[0]):
            with Watch():
                assert rival.function(**arguments).dtype == torch.bfloat16, rival.name
    wanted = torch.bfloat16 if has else torch.float32
    assert seen == {("recurrent_mixer", wanted), ("spatial_attention", wanted)}


def test_what_a_target_compares_is_compared_once() -> None:
    """Rows with targets have all the peers that the others would have."""
    rows = [row for row in ops.rows(_TINY) if not row.floor]
    pairs = [(row.what, peer.name) for row in rows for peer in row.peers]
    assert len(set(pairs)) == len(pairs)
    judged = {row.what for row in rows if row.limit is not None}
    case = ops_rooms.shrunk(ops_targets.GATED_LRU[0][0])
    room = next(room for room in ops_rooms.rooms() if room.name == "gated_lru")
    for direction in ops.DIRECTIONS:
        what = row_label("gated_lru", case, direction)
        assert what in judged
        names = {rival.name for rival in ops_peers.rivals(room, case, _TINY, direction, "native")}
        assert names <= {name for label, name in pairs if label == what}


def test_what_is_compiled_on_a_cpu() -> None:
    """Both directions, as far as it is worth the wait."""
    at, found = Setting(), set()
    for room in ops_rooms.rooms():
        for case in room.sized([torch.float32, torch.bfloat16, torch.float16]):
            for direction in ops.DIRECTIONS:
                rivals = ops_peers.rivals(room, case, at, direction, "native")
                if any(rival.name.startswith("torch.compile") for rival in rivals):
                    frames = getattr(case, "frames", 1)
                    kind = getattr(case, "complex", case.dtype.is_complex)
                    found.add((room.name, str(case.dtype), kind, direction, frames))
    for name, dtype, is_complex, forward, training in (
        ("gated_lru", "torch.float32", False, 32, 16),  # with targets also 32
        ("gated_lru", "torch.bfloat16", False, 16, 16),
        ("gated_lru", "torch.float32", True, 16, 16),
        ("linear_scan", "torch.float32", False, 32, 32),
        ("recurrent_mixer", "torch.float32", False, 32, 8),
        ("recurrent_mixer", "torch.bfloat16", False, 8, 8),
        ("spatial_attention", "torch.float32", False, 1, 1),
    ):
        for direction, most in zip(ops.DIRECTIONS, (forward, training), strict=True):
            key = (name, dtype, is_complex, direction)
            assert max(frames for *other, frames in found if tuple(other) == key) == most
    assert not any(dtype in ("torch.float16", "torch.complex64") for _, dtype, *_ in found)


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: torch.Tensor) -> torch.Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 1.05 * gradient


@pytest.mark.parametrize("name", tk.ops.__all__)
@pytest.mark.parametrize("spoil", [lambda y: 1.05 * y, _WrongGradient.apply], ids=["value", "gradient"])
def test_a_wrong_op_is_not_timed(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Any) -> None:
    right = getattr(tk.ops, name)

    def wrong(*args: Any, **arguments: Any) -> Any:
        result = right(*args, **arguments)
        return spoil(result) if isinstance(result, torch.Tensor) else (spoil(result[0]), *result[1:])

    monkeypatch.setattr(tk.ops, name, wrong)
    monkeypatch.setattr("benchmarks.rows.interleave", lambda *_: pytest.fail("timed"))
    found = [row for row in ops.rows(_TINY) if row.what.startswith(f"{name} ")]
    for row in (found[0], found[-1]):  # of those with targets, where there are any, and of the others
        result = measure(row)
        assert result.note.startswith("not timed, wrong result:")
        assert result.ratio is None and result.ours is None


def test_an_op_that_no_peer_knows_has_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op that is added later appears without a change here, checked everywhere against its reference."""
    room = dataclasses.replace(
        next(room for room in ops_rooms.rooms() if room.name == "linear_scan"), name="new"
    )
    monkeypatch.setattr(tk.ops, "new", tk.ops.linear_scan, raising=False)
    monkeypatch.setattr(ops, "rooms", lambda: [room])
    monkeypatch.setattr(ops_targets, "rows", lambda at: [])
    rows = list(ops.rows(_TINY))
    assert {peer.name for row in rows for peer in row.peers} == {"copy of the same bytes", "eager reference"}
    for row in rows:
        assert row.what.startswith(("new ", "complex new "))
        assert not measure(row).note
    (case, *_) = room.sized([torch.float32], tiny=True)
    arguments = room.cases.make_inputs(case)
    wrong = ops_checks.check_whole(
        arguments, lambda a, b, **_: 1.01 * room.reference(a=a, b=b), room.reference
    )
    assert wrong.startswith("result 0 is off by")


def test_peers_on_a_gpu() -> None:
    """Everything that others offer there is asked for; whether it can run is found out on the GPU."""
    at = Setting(device="cuda", quick=True)
    found: dict[tuple[str, bool], set[str]] = {}
    for room in ops_rooms.rooms():
        for case in room.sized([torch.bfloat16, torch.float32], more=ops._ON_GPU[room.name]):
            is_complex = getattr(case, "complex", case.dtype.is_complex)
            names = {rival.name for rival in ops_peers.rivals(room, case, at, "forward + backward", "triton")}
            found[room.name, is_complex] = found.get((room.name, is_complex), set()) | names
    assert found["gated_lru", False] >= {
        "associative_scan",
        "gates + fused_recurrent_hgrn",
        "gates + chunk_hgrn",
        "gates + accelerated_scan.scalar",
        "gates + accelerated_scan.warp",
    }
    assert found["linear_scan", False] >= {
        "accelerated_scan.scalar",
        "accelerated_scan.warp",
        "associative_scan",
    }
    assert found["linear_scan", True] >= {"accelerated_scan.complex", "eager, fused multiply-adds"}
    assert found["spatial_attention", False] >= {f"SDPA {name}" for name in gpu_peers.SDPA}
    assert "eager conv, gate products, our gated_lru, GELU gate" in found["recurrent_mixer", False]


def test_calls_take_the_sets_of_inputs_in_turn() -> None:
    taken: list[int] = []
    turns = ops_rooms.Turns()
    ours, theirs = (turns.over([functools.partial(taken.append, i) for i in range(3)]) for _ in range(2))
    for _ in range(3):
        ours()
        theirs()
    assert all(a != b for a, b in itertools.pairwise(taken))
    assert set(taken) == {0, 1, 2}


def test_sets_of_inputs_fill_the_cache_twice() -> None:
    cache = ops_rooms.last_level_cache()
    assert cache >= 2**15
    assert ops_rooms.input_sets(2 * cache, "cpu") == 1
    assert ops_rooms.input_sets(cache // 2, "cpu") == 4
    assert ops_rooms.input_sets(1, "cpu") == 64
    assert ops_rooms.input_sets(1, "cuda") == 1


def test_two_cases_with_one_label_get_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    room = next(room for room in ops_rooms.rooms() if room.name == "recurrent_mixer")
    case = room.cases.BENCHMARK_CASES[0]
    cases = [case, dataclasses.replace(case, heads=2 * case.heads, name="more heads")]
    monkeypatch.setattr(room.cases, "BENCHMARK_CASES", cases)
    monkeypatch.setattr(ops, "rooms", lambda: [room])
    rows = list(ops.rows(Setting(quick=True, dtypes=(torch.bfloat16,))))
    assert len({row.key for row in rows}) == len(rows) == 8
    assert sum("more heads" in row.what for row in rows) == 4
