"""The SIMT harness finds what is wrong with a kernel, and only that; its primitives do what a GPU's do.

``make simt`` builds the module; the environment's TRECVIT_SIMT says where it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

SEEDS = (0, 1, 2, 3, 17, 12345)

pytestmark = pytest.mark.about("cuda")


@pytest.fixture(scope="module")
def module() -> Any:
    if not (path := os.environ.get("TRECVIT_SIMT")):
        pytest.skip("TRECVIT_SIMT does not name the harness' module (make simt builds it)")
    from trecvit_kernels.ops import _cuda

    return _cuda.load_simulator(path)


@pytest.fixture
def simt(module: Any) -> Iterator[Any]:
    module.set_order(0)
    yield module
    module.set_order(0)


# What the harness says of each fault in tests/simt/faults_*.cpp, in any order of threads.
FAULTS = {
    "missing_sync_block": r"race: (read|write) of .* of values \(512 bytes\), without a barrier after the",
    "missing_second_sync_block": "race: (read|write) of",
    "missing_sync_warp": "race: (read|write) of .* without a barrier after the (read|write) by",
    "shuffle_for_sync_warp": "race: read of .* without a barrier after the write by",
    "warp_skips_barrier": "divergent barrier: nobody can go on: .* at sync_block .*; 32 threads have ended",
    "lanes_skip_barrier": "divergence: .*(ended while|ended already)",
    "early_end": "divergence: .*(ended while|ended already)",
    "two_barriers": r"divergent barrier: warp \d at sync_block .*, warp \d at sync_block",
    "named_barrier_waits_for_too_many": r"divergent barrier: nobody can go on: .* at sync_named\(1, 96\)",
    "named_barrier_waits_for_too_few": "race: (read|write) of .* of values",
    "named_barrier_of_two_counts": r"divergent barrier: warp \d at sync_named\(3, \d+\)",
    "race_between_warps": "race: write of 4 bytes at byte 0 of sums .* after the write by thread",
    "race_within_a_warp": "race: write of 4 bytes at byte .* after the write by thread",
    "write_after_read": "race: write of 4 bytes .* after the read by|race: read of 4 bytes .* after the write by",
    "write_after_read_in_a_warp": "race: (read|write) of 4 bytes .* after the (read|write) by",
    "handed_over_to_others": "race: (read|write) of 4 bytes at byte 0 of value",
    "uninitialised_read": "thread 31 .* read of uninitialised shared memory: 4 bytes at byte 128 of values",
    "partly_uninitialised_read": "read of uninitialised shared memory: 16 bytes at byte",
    "left_by_the_block_before": "block 1, .* read of uninitialised shared memory",
    "out_of_bounds_read": r"thread 31 .* read out of bounds: 4 bytes at byte 128 of values \(128 bytes\)",
    "out_of_bounds_write": "thread 0 .* write out of bounds: 4 bytes at byte -4 of dynamic shared memory",
    "misaligned_shared": "misaligned write: 16 bytes at byte .* multiple of 16",
    "misaligned_global": "misaligned store16: 0x",
    "shared_as_global": "load16 of shared memory",
    "too_much_static": "many: more shared memory than a block may have",
    "unwaited_copy": "read of 16 bytes .* while the asynchronous copy of thread",
    "uncommitted_copy": "read of 4 bytes .* while the asynchronous copy of thread",
    "waited_for_too_few": "read of 16 bytes .* while the asynchronous copy of thread",
    "copy_of_another_thread": "race: (read|asynchronous copy) of 16 bytes|read of .* while the asynchronous copy",
    "barrier_before_wait": "read of 16 bytes .* while the asynchronous copy|race: read of 16 bytes",
    "write_into_a_copy": "write of 4 bytes .* while the asynchronous copy of thread",
    "copy_over_readers": "race: (read|asynchronous copy) of 16 bytes|while the asynchronous copy of thread",
    "copies_left_under_way": "the thread ended with asynchronous copies under way",
    "misaligned_copy": "misaligned source of an asynchronous copy",
    "divergent_shuffle": "divergence within a warp: at shuffle .*, while threads? .* at shuffle",
    "shuffle_without_some": "divergence: .*(ended while|ended already)",
    "flag_that_never_comes": "thread 0 .* wait_for a flag that nobody sets: it is 0, not 1",
    "spin_by_hand": "load_published reads the same address for ever",
    "order_by_block_index": "wait_for a flag that nobody sets",
}


@pytest.mark.parametrize("name", FAULTS)
def test_finds_the_fault(simt: Any, name: str) -> None:
    for seed in SEEDS:
        simt.set_order(seed)
        found = getattr(simt.faults, name)(False)
        if name == "order_by_block_index" and seed == 0:
            assert found is None, "ascending order is the one that hides this"
            continue
        assert found is not None, f"nothing found in order {seed}"
        assert re.match(rf"{name}: block \d+[:,] ", found), found
        assert re.search(FAULTS[name], found), f"order {seed}: {found}"


@pytest.mark.parametrize("name", FAULTS)
def test_is_content_without_the_fault(simt: Any, name: str) -> None:
    for seed in SEEDS:
        simt.set_order(seed)
        assert getattr(simt.faults, name)(True) is None, f"order {seed}"


def test_every_fault_has_its_text(simt: Any) -> None:
    assert {name for name in dir(simt.faults) if not name.startswith("_")} == FAULTS.keys()


def test_says_where(simt: Any) -> None:
    """Kernel, block, thread, bytes, file and line; and who came before."""
    assert re.fullmatch(
        r"write_after_read: block 0, thread 77 \(warp 2, lane 13\): race: write of 4 bytes at byte 0 of value "
        r"\(4 bytes\), without a barrier after the read by thread 127 \(faults_order\.cpp:\d+\)",
        simt.faults.write_after_read(False),
    )


def test_forgets_launches_before(simt: Any) -> None:
    """What a wider launch, or one that failed, did to the same bytes is no race with this one."""
    for before, correct in (
        ("missing_sync_block", True),
        ("missing_sync_block", False),
        ("unwaited_copy", False),
    ):
        getattr(simt.faults, before)(correct)
        assert simt.faults.race_within_a_warp(True) is None
        assert simt.faults.unwaited_copy(True) is None


@pytest.mark.parametrize(
    ("blocks", "threads", "shared", "complaint"),
    [
        (1, 48, 0, "multiple of 32"),
        (1, 1056, 0, "at most 1024"),
        (1, 0, 0, "multiple of 32"),
        (2**31, 32, 0, "a grid of 2147483648 blocks"),
        (1, 32, 228 * 1024, "bytes of dynamic shared memory"),
    ],
)
def test_refuses_launches_that_a_gpu_refuses(
    simt: Any, blocks: int, threads: int, shared: int, complaint: str
) -> None:
    simt.primitives.launch_empty(1, 1024, 227 * 1024)
    with pytest.raises(RuntimeError, match=complaint):
        simt.primitives.launch_empty(blocks, threads, shared)


def test_orders(simt: Any) -> None:
    """Order 0 is ascending; any other runs every thread of every block once, in an order of its own."""
    seen = []
    for seed in SEEDS:
        simt.set_order(seed)
        came = simt.primitives.arrival(5, 96)
        assert sorted(came.ravel()) == list(range(5 * 96))
        np.testing.assert_array_equal(came, simt.primitives.arrival(5, 96))
        one_by_one = all(block.max() - block.min() == 95 for block in came)
        assert one_by_one == (seed == 0)
        seen.append(tuple(came.ravel()))
    assert seen[0] == tuple(range(5 * 96))
    assert len(set(seen)) == len(SEEDS)


def test_blocks_take_turns(simt: Any) -> None:
    """Only blocks that are there at once show that one publishes before all its threads wrote, or reads too early."""
    expected = np.repeat(np.arange(1, 41, dtype=np.float32), 128).reshape(40, 128)
    seeds = range(1, 9)
    right: dict[int, list[bool]] = {}
    for hasty in (0, 1, 2):
        right[hasty] = []
        for seed in seeds:
            simt.set_order(seed)
            right[hasty].append(np.array_equal(simt.primitives.handover(hasty, 40), expected))
    assert all(right[0])
    several = [seed % 4 != 0 for seed in seeds]  # blocks there at once
    assert not any(np.array(right[1])[several]), right[1]
    assert not any(np.array(right[2])[several]), right[2]


# ---- Primitives ------------------------------------------------------------------------------------------------


def test_shuffles(simt: Any) -> None:
    values = np.random.default_rng(0).normal(size=32)
    lanes = np.arange(32)
    for seed in SEEDS:
        simt.set_order(seed)
        shuffle = simt.primitives.shuffle
        sources = (7 * lanes + 3) % 32
        np.testing.assert_array_equal(shuffle(0, values, sources), values[sources])
        for by in (1, 2, 16, 31):
            every = np.full(32, by)
            np.testing.assert_array_equal(shuffle(1, values, every), values[lanes ^ by])
            up = np.concatenate([values[:by], values[:-by]])
            np.testing.assert_array_equal(shuffle(2, values, every), up)
            down = np.concatenate([values[by:], values[-by:]])
            np.testing.assert_array_equal(shuffle(3, values, every), down)


@pytest.mark.parametrize("lanes", [[], [0], [31], [3, 17, 30], range(32)], ids=str)
def test_ballot_and_any(simt: Any, lanes: Any) -> None:
    conditions = np.zeros(32, dtype=np.int32)
    conditions[list(lanes)] = 1
    votes = simt.primitives.ballot(conditions)
    assert (votes == sum(1 << lane for lane in lanes)).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrix(simt: Any, transposed: bool) -> None:
    """PTX ISA, ldmatrix: 8x8 matrices of 16 bits; a register is a row's neighbours, or a column's with .trans."""
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    found = simt.primitives.load_matrix(transposed, matrices).view(np.uint16).reshape(32, 4, 2)
    rows = matrices.transpose(0, 2, 1) if transposed else matrices
    # Lanes 0-3 hold row 0, lanes 4-7 row 1, and so on: row-major order of pairs is the order of lanes.
    expected = rows.reshape(4, 32, 2).transpose(1, 0, 2)
    np.testing.assert_array_equal(found, expected)


def _bits16(values: Tensor) -> np.ndarray:
    return values.view(torch.int16).numpy().view(np.uint16)


def _c_places() -> Iterator[tuple[int, int, int, int]]:
    """PTX ISA, accumulators of m16n8k16 and m16n8k8: row and column of element i of a lane."""
    for lane in range(32):
        group, member = lane >> 2, lane % 4
        for i in range(4):
            yield lane, i, group if i < 2 else group + 8, member * 2 + (i & 1)


def _collect(results: np.ndarray) -> np.ndarray:
    d = np.full((16, 8), np.nan, dtype=np.float32)
    for lane, i, row, column in _c_places():
        d[row, column] = results[lane, i]
    return d


def _spread(c: Tensor) -> np.ndarray:
    fragments = np.empty((32, 4), dtype=np.float32)
    for lane, i, row, column in _c_places():
        fragments[lane, i] = c[row, column]
    return fragments


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_multiply_add_of_16_bits(simt: Any, dtype: torch.dtype) -> None:
    """PTX ISA, fragments of mma.m16n8k16: a lane's elements a0 to a7 and b0 to b3, two to a register."""
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    fa, fb = np.empty((32, 8), dtype=np.uint16), np.empty((32, 4), dtype=np.uint16)
    bits_a, bits_b = _bits16(a), _bits16(b)
    for lane in range(32):
        group, member = lane >> 2, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = member * 2 + (i & 1) + (8 if i >= 4 else 0)
            fa[lane, i] = bits_a[row, column]
        for i in range(4):
            fb[lane, i] = bits_b[member * 2 + (i & 1) + (8 if i >= 2 else 0), group]
    found = simt.primitives.multiply_add(
        0 if dtype is torch.bfloat16 else 1, fa.view(np.uint32), fb.view(np.uint32), _spread(c)
    )
    expected = c.double() + a.double() @ b.double()
    np.testing.assert_allclose(_collect(found), expected.numpy(), rtol=0, atol=2e-6 * 16)


def test_multiply_add_of_tf32(simt: Any) -> None:
    """PTX ISA, fragments of mma.m16n8k8; the lower 13 bits of a float are not read."""
    a, b, c = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8)
    fa, fb = np.empty((32, 4), dtype=np.float32), np.empty((32, 2), dtype=np.float32)
    for lane in range(32):
        group, member = lane >> 2, lane % 4
        for i in range(4):
            fa[lane, i] = a[group if i in (0, 2) else group + 8, member if i < 2 else member + 4]
        for i in range(2):
            fb[lane, i] = b[member if i == 0 else member + 4, group]
    found = simt.primitives.multiply_add(2, fa.view(np.uint32), fb.view(np.uint32), _spread(c))

    def cut(x: Tensor) -> Tensor:
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32).double()

    np.testing.assert_allclose(_collect(found), (c.double() + cut(a) @ cut(b)).numpy(), rtol=0, atol=2e-6 * 8)


def test_multiply_add_keeps_infinity_and_nan(simt: Any) -> None:
    a = np.zeros((32, 4), dtype=np.uint32)
    b = np.full((32, 2), 0x3F803F80, dtype=np.uint32)  # ones
    a[0, 0], a[4, 0] = 0x7F80, 0x7FC0  # row 0 has an infinity, row 1 a NaN
    d = _collect(simt.primitives.multiply_add(0, a, b, np.zeros((32, 4), dtype=np.float32)))
    assert np.isposinf(d[0]).all() and np.isnan(d[1]).all() and (d[2:] == 0).all()


def test_to_tf32(simt: Any) -> None:
    """To the nearest number of ten fraction bits, ties away from zero."""
    to = simt.primitives.to_tf32
    assert to(1 + 2**-11) == 1 + 2**-10
    assert to(-1 - 2**-11) == -1 - 2**-10
    assert to(1 + 2**-12) == 1
    assert to(float("-inf")) == float("-inf")
    assert np.isnan(to(float("nan")))


def test_sees_wrong_indices_in_a_product(simt: Any) -> None:
    """A matrix product by ldmatrix and mma.sync is right in every order, and wrong with each of four wrong indices."""
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    expected = (a.double() @ b.double()).numpy()

    def error(planted: int) -> float:
        return float(np.abs(simt.primitives.product(planted, _bits16(a), _bits16(b)) - expected).max())

    for seed in SEEDS:
        simt.set_order(seed)
        assert error(0) < 1e-5
    simt.set_order(0)
    for planted in (1, 2, 3, 4):
        assert error(planted) > 0.1
