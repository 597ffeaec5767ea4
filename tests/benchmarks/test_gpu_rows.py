"""``python -m benchmarks.gpu`` at full size without a GPU: nothing large on the CPU, and one row's fault is its own."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import trecvit_kernels as tk
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import cuda as gpu_cuda
from benchmarks.gpu import inputs as gpu_inputs
from benchmarks.gpu import limits
from benchmarks.gpu import models as gpu_models
from benchmarks.gpu import peers as gpu_peers
from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu.once import Once, lazily
from benchmarks.gpu.rows import Setting
from benchmarks.models import common as models
from benchmarks.ops import checks
from benchmarks.ops.calls import value_and_gradients
from benchmarks.rows import Comparison, Peer
from benchmarks.timing import Budget, seconds
from trecvit_kernels.models import SIZES
from trecvit_kernels.ops.gated_lru import cases as gated_lru_cases
from trecvit_kernels.ops.linear_scan import cases as linear_scan_cases

_ONCE = Budget(0.0, 1, 1)


class _Counted(TorchDispatchMode):
    """How many operations ran, how many elements their results had, and how many of these lay on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.elements = self.on_cpu = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                self.elements += t.numel()
                self.on_cpu += t.numel() * (t.device.type == "cpu")
        return result


@pytest.mark.parametrize("name", command.GROUPS)
def test_making_the_rows_does_nothing(name: str) -> None:
    """Here is no GPU: whatever was made on it would raise."""
    with _Counted() as counted:
        rows = list(command.GROUPS[name].rows(Setting("cuda")))
    assert counted.elements == 0
    assert rows and len({row.key for row in rows}) == len(rows)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops that return what has the right shape, and no comparison of what has no values."""
    monkeypatch.setattr(tk.ops, "gated_lru", lambda x, *_, **__: (x.clone(), None))
    monkeypatch.setattr(tk.ops, "linear_scan", lambda a, b, **_: (b.clone(), None))
    monkeypatch.setattr(tk.ops, "recurrent_mixer", lambda u, *_, **__: (u.clone(), None))
    monkeypatch.setattr(
        tk.ops, "spatial_attention", lambda qkv, *_, **__: qkv[..., : qkv.shape[-1] // 3].clone()
    )
    monkeypatch.setattr(checks, "within_reference", lambda *_: "")


@pytest.mark.usefixtures("stubs")
def test_inputs_and_checks_of_the_full_sizes_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is walked on the CPU, and what is launched: both were most of part 2 before they were bounded."""
    monkeypatch.setattr(gpu_rows, "GATED_LRU", gpu_rows.GATED_LRU[1:])  # one of two video sizes is enough
    monkeypatch.setattr(gpu_rows, "MIXER", gpu_rows.MIXER[1:])
    monkeypatch.setattr(gpu_cuda, "_STEPS", gpu_cuda._STEPS[1:])
    for row in gpu_cuda.cuda(Setting("meta")):  # has the sizes of all groups, and one more
        with _Counted() as counted:
            assert row.check() == ""
        assert counted.on_cpu < 2**16, row.what
        assert counted.operations < 5000, row.what  # some 10 us each
        for work in (row.ours, *(peer.run for peer in row.peers)):
            work()


def test_inputs_are_drawn_on_the_device_and_as_they_were() -> None:
    case = gated_lru_cases.Case("drawn", 2, 400, (3,), 64, torch.bfloat16, h0=False)
    made, again, usual = (
        gpu_inputs.make(gated_lru_cases, case, "cpu"),
        gpu_inputs.make(gated_lru_cases, case, "cpu"),
        gated_lru_cases.make_inputs(case),
    )
    for name in ("x", "gate_x", "gate_a", "a_param"):
        assert made[name].equal(again[name])
        assert made[name].dtype == usual[name].dtype
        assert abs(made[name].float().std() / usual[name].float().std() - 1) < 0.1
    scan = gpu_inputs.make(
        linear_scan_cases, linear_scan_cases.Case("large", 8, 65_536, (1536,), h0=False), "meta"
    )
    assert scan["a"].device.type == scan["b"].device.type == "meta"


@pytest.mark.parametrize("is_complex", [False, True])
def test_scanning_by_doubling_is_the_reference(is_complex: bool) -> None:
    case = gated_lru_cases.Case("doubled", 2, 50, (3,), 16, torch.float64, is_complex, h0=False)
    made = gated_lru_cases.make_inputs(case)
    values = [made[name] for name in ("x", "gate_x", "gate_a", "a_param", "a_imag")]
    _same(checks._gated_lru_reference, checks._gated_lru_by_doubling, values)
    dtype = torch.complex128 if is_complex else torch.float64
    made = linear_scan_cases.make_inputs(linear_scan_cases.Case("doubled", 2, 50, (3, 8), dtype, h0=False))
    _same(checks._linear_scan_reference, checks._linear_scan_by_doubling, [made["a"], made["b"]])


def _same(one: Callable[..., Tensor], other: Callable[..., Tensor], values: list[Any]) -> None:
    dy = torch.randn_like(values[0])
    for a, b in zip(
        value_and_gradients(one, values, dy), value_and_gradients(other, values, dy), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_late_fault_in_a_long_scan_is_found(dtype: torch.dtype) -> None:
    made = linear_scan_cases.make_inputs(linear_scan_cases.Case("long", 1, 3000, (16,), dtype, h0=False))
    a, b = made["a"], made["b"]
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    assert checks.check_linear_scan(a, b) == ""
    late = torch.ones(3000, 1)
    late[2990:] = 1.01
    assert checks.check_linear_scan(a, b, lambda a, b: tk.ops.linear_scan(a, b)[0] * late)


def test_composed_peers_compute_the_gated_lru() -> None:
    made = gated_lru_cases.make_inputs(gated_lru_cases.Case("peer", 2, 64, (3,), 8, h0=False))
    inputs = [made[name] for name in ("x", "gate_x", "gate_a", "a_param")]
    peer = gpu_peers.accelerated_scan_gates("ref", gpu_peers.gates_lanes_first)
    torch.testing.assert_close(peer(*inputs), tk.ops.gated_lru(*inputs, backend="reference")[0])
    (row,) = (
        row
        for row in command.GROUPS["gated_lru"].rows(Setting("cuda"))
        if row.limit == 3.0 and "65536" in row.what
    )
    names = [peer.name for peer in row.peers]
    assert [name for name in names if "accelerated_scan" in name] == [
        "compiled gates + accelerated_scan.scalar",
        "compiled gates + accelerated_scan.warp",
    ]


def test_flops_of_two_frames_give_those_of_all() -> None:
    config = SIZES["trecvit_base"].replace("test", **models.TINY)
    assert gpu_models.matmul_flops(config, 3, 5) == 3 * gpu_models._clip_flops(config, 5)


def test_once_remembers_what_was_raised() -> None:
    calls = itertools.count()

    def fail() -> int:
        next(calls)
        raise limits.OutOfTime("longer than 60 s")

    once = Once(fail)
    for _ in range(2):
        with pytest.raises(limits.OutOfTime, match="60 s"):
            once()
    assert next(calls) == 1


def test_every_group_has_its_share() -> None:
    until = limits.deadlines({"a": 1.0, "b": 3.0, "c": 4.0}, begins=100.0, ends=180.0)
    assert until == {"a": 110.0, "b": 140.0, "c": 180.0}
    names = list(command.GROUPS)
    assert names.index("cuda") > max(names.index("streaming"), names.index("training"))
    for group in command.GROUPS.values():
        assert group.longest < group.share


def test_the_alarm_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow peer's place in the row swallows the first one."""
    alarms = []
    monkeypatch.setattr(signal, "setitimer", lambda _, *times: alarms.append(times))
    with limits.at_most(60.0):
        assert len(alarms[0]) == 2 and alarms[0][0] == 60.0 and alarms[0][1] > 0
        handler = signal.getsignal(signal.SIGALRM)
    assert callable(handler)
    with pytest.raises(limits.OutOfTime, match="60 s"):
        handler(signal.SIGALRM, None)
    with pytest.raises(limits.OutOfTime), limits.at_most(0.5):
        pytest.fail("there is no time left")


@pytest.mark.parametrize(
    ("error", "note"),
    [(limits.OutOfTime("slow"), "not measured"), (ValueError("wrong size"), "failed: ValueError")],
)
def test_a_row_that_cannot_be_made_is_the_only_one_lost(
    monkeypatch: pytest.MonkeyPatch, error: Exception, note: str
) -> None:
    def broken() -> Any:
        raise error

    def rows(at: Setting) -> Iterator[Comparison]:
        for what, make in (("first", broken), ("second", lambda: lambda: torch.ones(1))):
            peer = Peer("the same", lambda: torch.ones(1))
            yield Comparison("ops", what, lazily(make), [peer], lambda: "", budget=_ONCE)

    monkeypatch.setitem(command.GROUPS, "gated_lru", command.Group(rows, 1, 30))
    at = Setting("cpu", tiny=True, budget=_ONCE)
    first, second = command._group("gated_lru", at, seconds, time.monotonic() + 60)
    assert first.what == "first" and first.note.startswith(note)
    assert second.ratio is not None and not second.note
