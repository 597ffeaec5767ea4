"""Every op, backend, dtype and case against its peers and a copy of the same bytes, forward and forward + backward.

On the CPU the rows that have targets come first (ops/targets.py). The others grow by themselves with what the ops'
folders offer. They have no target: the ratio to the best peer, the GB/s and the share of the copy are for information.
What a row with a target compares with peers already is not compared again.

Two things make them a little different from the rows with targets. Inputs that would stay in the CPU's cache are there
several times, at other addresses, and calls take them in turn; the copy does the same. 16-bit peers compute in float32
and round their result, as ours does: recurrences everywhere, because in 16 bits the state of a long sequence would be
lost, and matrix products where the CPU has no instructions for them in 16 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu import timing as gpu_timing
from benchmarks.ops import targets as ops_targets
from benchmarks.ops.calls import inference_of, row_label, training_of
from benchmarks.ops.rivals import Own, check, rivals
from benchmarks.ops.rooms import Room, Turns, input_sets, rooms
from benchmarks.rows import Comparison, Key, Peer
from benchmarks.setting import Setting
from benchmarks.timing import Budget, Work

Make = Callable[[], list[Work]]  # the same work on every set of inputs

DIRECTIONS = ("forward", "forward + backward")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COPY, _EXACT = "copy of the same bytes", 1e-3
_USUAL, _QUICK = Budget(0.35, 3, 30), Budget(0.1, 2, 10)
# Sizes at which a GPU is busy, beside those of the ops' folders.
_ON_GPU: dict[str, list[Any]] = {
    "gated_lru": gpu_rows.GATED_LRU,
    "recurrent_mixer": gpu_rows.MIXER,
    "spatial_attention": gpu_rows.ATTENTION,
    "linear_scan": gpu_rows.LINEAR_SCAN,
}
# A backend that is PyTorch's own: its rows say so even where it is the only one.
_PYTORCHS = {"sdpa": "PyTorch's SDPA"}


def rows(at: Setting) -> Iterator[Comparison]:
    """All rows, each made when it is asked for, its tensors when its check runs."""
    dtypes = at.dtypes_or(*(_DTYPES[:1] if at.tiny else _DTYPES))
    compared, seen = set[str](), set[Key]()  # with peers, by rows with targets; these rows' keys
    if at.device == "cpu" and torch.float32 in dtypes:
        for row in ops_targets.rows(at):
            yield row
            seen.add(row.key)
            if not row.floor:
                compared.add(row.what)
            del row  # its tensors are large
    for room in rooms():
        named: dict[str, Any] = {}  # a label -> its case: two that differ in something else get their names
        names = [name for name in room.available(at.device) if name != "reference"]
        more = _ON_GPU.get(room.name, ()) if at.device == "cuda" else ()
        for case in room.sized(dtypes, at.tiny, more) if names else ():
            if not (at.quick or at.tiny):  # nothing is compiled then
                torch._dynamo.reset()  # its limit of recompilations counts per function
            label = row_label(room.name, case, "{}")
            if named.setdefault(label, case) is not case:
                label = f"{label}, {case.name}"
            for row in _case_rows(at, room, case, label, names):
                if row.key not in seen and (row.floor or row.what not in compared):
                    yield row


def _case_rows(at: Setting, room: Room, case: Any, label: str, names: list[str]) -> Iterator[Comparison]:
    bench = _Bench(at, room, case, names[0])
    for backend in names:
        right = functools.cache(functools.partial(bench.check, backend))
        suffix = f", {_PYTORCHS.get(backend, backend)}" if len(names) > 1 or backend in _PYTORCHS else ""
        for direction in DIRECTIONS:
            row = functools.partial(
                _row,
                label.format(direction) + suffix,
                functools.partial(bench.works, direction, room.function(backend)),
                check=right,
                nbytes=room.nbytes(case, direction),
                budget=at.budget(_USUAL, _QUICK),
                tolerance=gpu_rows.ROUNDED if case.dtype.itemsize == 2 else _EXACT,
            )
            yield row([(_COPY, functools.partial(bench.copies, direction), None)], floor=True)
            if not at.floors_only and (found := rivals(room, case, at, direction, backend)):
                makers = [functools.partial(bench.works, direction, r.function, r.own) for r in found]
                yield row([(r.name, make, r.back) for r, make in zip(found, makers)])


class _Bench:
    """An op at one case: the sets of its inputs, and calls on them. Tensors are made on first use."""

    def __init__(self, at: Setting, room: Room, case: Any, backend: str) -> None:
        self.room, self.case, self.device, self.backend = room, case, at.device, backend
        self.count = input_sets(room.nbytes(case, "forward"), at.device, at.tiny)

    @functools.cached_property
    def sets(self) -> list[dict[str, Any]]:
        """The same numbers at other addresses: results agree whichever set a call takes."""
        return [self.room.cases.make_inputs(self.case, device=self.device) for _ in range(self.count)]

    @functools.cached_property
    def gradients(self) -> list[Tensor]:
        """Gradients of the result, one for each set, with the same numbers too."""
        with torch.no_grad():
            dy = torch.randn_like(self.room.function(self.backend)(**self.sets[0]))
        return [dy, *(dy.clone() for _ in range(self.count - 1))]

    def check(self, backend: str) -> str:
        return check(self.room, backend, self.sets[0])

    def works(self, direction: str, function: Callable[..., Tensor], own: Own | None = None) -> list[Work]:
        """The call on every set; own: the layout that it wants, made here."""

        def laid_out(values: dict[str, Any]) -> dict[str, Any]:
            return {name: own(v) if own and isinstance(v, Tensor) else v for name, v in values.items()}

        sets = [laid_out(values) for values in self.sets]
        if direction == "forward":
            return [inference_of(function, values) for values in sets]
        gradients = [own(dy) for dy in self.gradients] if own else self.gradients
        return [training_of(function, values, dy) for values, dy in zip(sets, gradients)]

    def copies(self, direction: str) -> list[Work]:
        nbytes = self.room.nbytes(self.case, direction)
        return [gpu_timing.copy(nbytes, self.device) for _ in range(self.count)]


def _row(
    what: str,
    ours: Make,
    others: Sequence[tuple[str, Make, Callable[[object], object] | None]],
    *,
    check: Callable[[], str],
    **settings: Any,
) -> Comparison:
    """A row of group "ops" whose works are made once its check has passed."""
    turns, works = Turns(), {}

    def right() -> str:
        if not (wrong := check()):
            for name, make in (("", ours), *((name, make) for name, make, _ in others)):
                works[name] = turns.over(make())
        return wrong

    peers = [Peer(name, functools.partial(_call, works, name), back) for name, _, back in others]
    return Comparison("ops", what, functools.partial(_call, works, ""), peers, right, **settings)


def _call(works: Mapping[str, Work], name: str) -> object:
    return works[name]()
