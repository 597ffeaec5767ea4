"""The Triton kernels move the bytes that their floors count (docs/design.md), and little else.

Counted load by load in the interpreter: an element read twice counts twice, a masked lane not at all.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from trecvit_kernels import backends
from trecvit_kernels.ops import _schedule

from ._suite import OPS, cotangents_for, leaves, map_tensors, named_outputs
from ._traffic import counted

pytestmark = [
    pytest.mark.about("triton"),
    pytest.mark.skipif(not backends.interpreted(), reason="counts the loads of Triton's interpreter"),
]

BF16, F32, C64 = torch.bfloat16, torch.float32, torch.complex64
_FRAMES = 50  # several saved states, the last step not full
_SIZES = {"linear_scan": {}, "gated_lru": {"channels": 24}, "recurrent_mixer": {"channels": 64}}
_CASES = {
    "linear_scan-bf16": ("linear_scan", {"lanes": (9, 24), "dtype": BF16}),
    "linear_scan-reverse": ("linear_scan", {"lanes": (9, 24), "dtype": F32, "reverse": True}),
    "linear_scan-complex": ("linear_scan", {"lanes": (5, 24), "dtype": C64}),
    "gated_lru-bf16": ("gated_lru", {"lanes": (9,), "dtype": BF16}),
    "gated_lru-resets": ("gated_lru", {"lanes": (9,), "dtype": F32, "reset": "random"}),
    "gated_lru-complex": ("gated_lru", {"lanes": (9,), "dtype": BF16, "complex": True}),
    "recurrent_mixer-bf16": ("recurrent_mixer", {"lanes": (32,), "dtype": BF16}),
    "recurrent_mixer-complex": ("recurrent_mixer", {"lanes": (32,), "dtype": BF16, "complex": True}),
}
# What a floor counts: (inputs, output) as large as x.
_LARGE = {
    "linear_scan": (("a", "b"), "h"),
    "gated_lru": (("x", "gate_x", "gate_a"), "y"),
    "recurrent_mixer": (("u", "v"), "z"),
}
# How often an input's elements may be read in one pass, on average. The gated LRU's backward kernel walks half of the
# frames between two saved states twice, at once and by the same program: the second time out of its cache.
_READS = {("gated_lru", "backward"): 1.5}
# Beside the floor: states, parameters, partial sums; chunked also summaries, of segments as short as they get.
_REST = {"serial": 0.1, "chunked": 0.35}
_SCRATCH = {"serial": 0.15, "chunked": 0.25}  # of x's bytes, the largest that is neither input nor output
# The mixer's distance from its floor. Complex heads read u for their products and for their recurrence. The backward
# pass is two kernels: the first hands the gradients of the convolution and of both gates to the second through memory,
# which with u read by both makes 12 tensors of u's size instead of 5.
_MIXER = {"forward-real": 1.2, "forward-complex": 1.6, "backward-real": 2.85, "backward-complex": 2.75}


def _run(op, inputs, schedule):
    """Outputs, gradients by name and the traffic of forward and backward pass."""
    inputs = map_tensors(inputs, lambda t: t if t.dtype == torch.bool else t.detach().requires_grad_())
    wanted = leaves(inputs)
    with _schedule.force(schedule):
        with counted() as forward:
            outputs = named_outputs(op, op.function(**inputs, backend="triton"))
        cotangents = cotangents_for(outputs)
        # The mixer's tail is a slice of u: its gradient would be added to du by PyTorch.
        used = [name for name, value in outputs.items() if value.requires_grad and name != "tail"]
        with counted() as backward:
            found = torch.autograd.grad(
                [outputs[name] for name in used], list(wanted.values()), [cotangents[name] for name in used]
            )
    return wanted, outputs, cotangents, dict(zip(wanted, found, strict=True)), forward, backward


def _case(name):
    op, settings = OPS[_CASES[name][0]], _CASES[name][1]
    return op, type(op.cases[0])("traffic", 2, _FRAMES, **_SIZES[op.name], **settings)


def _floor(op, case, direction):
    return importlib.import_module(f"trecvit_kernels.ops.{op.name}.cases").bytes_moved(case, direction)


@pytest.mark.parametrize("schedule", _schedule.SCHEDULES)
@pytest.mark.parametrize("name", [name for name in _CASES if "mixer" not in name])
def test_scans_move_the_floors_bytes(name, schedule):
    """Inputs read whole, once in a pass; outputs written once, never read; no other large memory."""
    op, case = _case(name)
    wanted, outputs, cotangents, gradients, forward, backward = _run(op, op.make_inputs(case), schedule)
    inputs, result = _LARGE[op.name]
    read, written = [wanted[key] for key in inputs], [outputs[result]]
    _check(op, case, "forward", schedule, forward, read, written, [*wanted.values(), *outputs.values()])
    read, written = [*read, cotangents[result]], [gradients[key] for key in inputs]
    known = [*wanted.values(), *outputs.values(), *gradients.values(), *cotangents.values()]
    _check(op, case, "backward", schedule, backward, read, written, known)


def _check(op, case, direction, schedule, traffic, read, written, known):
    # The chunked schedule reads the recurrence's inputs once more, for the summaries of the segments.
    most = _READS.get((op.name, direction), 1.0) + (schedule == "chunked")
    read, written = ([traffic.of(tensor) for tensor in tensors] for tensors in (read, written))
    for memory in read:
        assert not memory.written, f"{direction}: {memory.arguments} is an input and was written"
        assert memory.loads.min() >= 1, f"{direction}: {memory.arguments} was not read whole"
        assert memory.loads.mean() <= most, (
            f"{direction}: {memory.arguments} was read {memory.loads.mean()} times"
        )
    for memory in written:
        assert not memory.read, f"{direction}: {memory.arguments} is an output and was read"
        assert memory.stores.min() == memory.stores.max() == 1, f"{direction}: {memory.arguments}, stores"
    floor = _floor(op, case, direction)
    assert sum(memory.touched for memory in (*read, *written)) == floor
    largest = max(memory.size for memory in (*read, *written))
    rest = [memory for memory in traffic.memories.values() if memory not in (*read, *written)]
    for memory in rest:
        if not any(memory.of(tensor) for tensor in known):
            assert memory.size <= largest * _SCRATCH[schedule], f"{direction}: {memory.arguments} is large"
    spent = sum(memory.touched for memory in rest)
    assert spent <= _REST[schedule] * floor, f"{direction}: {spent} bytes beside the floor's {floor}"


@pytest.mark.parametrize("kind", ("real", "complex"))
def test_mixer_stays_at_its_distance_from_the_floor(kind):
    op, case = _case("recurrent_mixer-" + ("bf16" if kind == "real" else kind))
    wanted, outputs, cotangents, gradients, forward, backward = _run(op, op.make_inputs(case), "serial")
    inputs, result = _LARGE[op.name]
    for direction, traffic, read, written in (
        ("forward", forward, [wanted[key] for key in inputs], [outputs[result]]),
        (
            "backward",
            backward,
            [*(wanted[key] for key in inputs), cotangents[result]],
            [gradients[key] for key in inputs],
        ),
    ):
        assert all(traffic.of(tensor).loads.min() >= 1 for tensor in read)
        stored = [traffic.of(tensor) for tensor in written]
        assert all(memory.stores.min() == memory.stores.max() == 1 and not memory.read for memory in stored)
        large = traffic.of(wanted["u"]).size
        moved = sum(
            memory.read + memory.written if 4 * memory.size >= large else memory.touched
            for memory in traffic.memories.values()
        )
        floor = _floor(op, case, direction)
        assert moved <= _MIXER[f"{direction}-{kind}"] * floor, f"{direction}: {moved / floor} of the floor"
        if (
            direction == "forward"
        ):  # one pass: nothing as large as u but u, v and z; float32 states are the next
            others = [m for m in traffic.memories.values() if not any(m.of(t) for t in (*read, *written))]
            assert all(2 * memory.size < large for memory in others)


@pytest.mark.parametrize("schedule", _schedule.SCHEDULES)
@pytest.mark.parametrize("tokens,head_dim", ((49, 32), (197, 64)))
def test_attention_moves_the_floors_bytes(tokens, head_dim, schedule):
    """Forward every value once where a program walks its frame; tiles that are programs read all keys each."""
    op = OPS["spatial_attention"]
    case = type(op.cases[0])("traffic", (1, 2), tokens, 2, head_dim, BF16)
    wanted, outputs, cotangents, gradients, forward, backward = _run(op, op.make_inputs(case), schedule)
    qkv, out = wanted["qkv"], outputs["out"]
    read = [(forward, [qkv], [out]), (backward, [qkv, out, cotangents["out"]], [gradients["qkv"]])]
    for direction, (traffic, inputs, results) in zip(("forward", "backward"), read, strict=True):
        inputs, results = ([traffic.of(tensor) for tensor in tensors] for tensors in (inputs, results))
        assert all(memory.loads.min() >= 1 and not memory.written for memory in inputs)
        assert all(memory.stores.min() == memory.stores.max() == 1 and not memory.read for memory in results)
        if schedule == "serial":  # backward a program walks its frame twice, for dq and for dk, dv
            most = 1 if direction == "forward" else 2
            assert all(memory.loads.max() <= most for memory in inputs), [
                memory.arguments for memory in inputs
            ]
        floor = _floor(op, case, direction)
        assert sum(memory.touched for memory in (*inputs, *results)) == floor
        rest = [memory for memory in traffic.memories.values() if memory not in (*inputs, *results)]
        assert sum(memory.touched for memory in rest) <= _REST["serial"] * floor  # the scores' log-sum-exp


def test_a_second_read_would_be_seen():
    """The count itself: 3 elements of 5 read, one of them twice, 2 written."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(x_ptr, y_ptr):
        i = tl.arange(0, 4)
        x = tl.load(x_ptr + i, mask=i < 3) + tl.load(x_ptr)
        tl.store(y_ptr + i, x, mask=i < 2)

    x, y = torch.arange(5.0), torch.zeros(5)
    with counted() as traffic:
        kernel[(1,)](x, y)
    assert traffic.of(x).loads.tolist() == [2, 1, 1, 0, 0]
    assert traffic.of(x).read == 16
    assert traffic.of(x).touched == 12
    assert traffic.of(y).stores.tolist() == [1, 1, 0, 0, 0]
    assert y.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
