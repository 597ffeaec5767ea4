"""The Triton kernels move the bytes that their floors count (DESIGN, section 7), and little else.

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
# Several saved states, and lanes that do not fill the last program.
_CASES = {
    "linear_scan-bf16": ("linear_scan", {"lanes": (9, 24), "dtype": BF16}),
    "linear_scan-reverse": ("linear_scan", {"lanes": (9, 24), "dtype": F32, "reverse": True}),
    "linear_scan-complex": ("linear_scan", {"lanes": (5, 24), "dtype": C64}),
    "gated_lru-bf16": ("gated_lru", {"lanes": (9,), "channels": 24, "dtype": BF16}),
    "gated_lru-resets": ("gated_lru", {"lanes": (9,), "channels": 24, "dtype": F32, "reset": "random"}),
    "gated_lru-complex": ("gated_lru", {"lanes": (9,), "channels": 24, "dtype": BF16, "complex": True}),
    "recurrent_mixer-bf16": ("recurrent_mixer", {"lanes": (37,), "channels": 64, "dtype": BF16}),
    "recurrent_mixer-complex": (
        "recurrent_mixer",
        {"lanes": (37,), "channels": 64, "dtype": BF16, "complex": True},
    ),
}
_FRAMES = 50
# What a floor counts once: (inputs and outputs as large as x).
_LARGE = {
    "linear_scan": (("a", "b"), "h"),
    "gated_lru": (("x", "gate_x", "gate_a"), "y"),
    "recurrent_mixer": (("u", "v"), "z"),
    "spatial_attention": (("qkv",), "out"),
}
_AGAIN = {"recurrent_mixer": 0.25}  # share read twice in a pass: the convolution's taps where chunks meet
# Beside the floor: states, parameters, partial sums; chunked also summaries, of segments as short as they get.
_REST = {"serial": 0.1, "chunked": 0.35}
_SCRATCH = {"serial": 0.15, "chunked": 0.25}  # of x's bytes, the largest that is neither input nor output


def _run(op, inputs, schedule):
    """Outputs, gradients by name and the traffic of forward and backward pass."""
    inputs = map_tensors(inputs, lambda t: t if t.dtype == torch.bool else t.detach().requires_grad_())
    wanted = leaves(inputs)
    with _schedule.force(schedule):
        with counted() as forward:
            outputs = named_outputs(op, op.function(**inputs, backend="triton"))
        cotangents = cotangents_for(outputs)
        used = [name for name, value in outputs.items() if value.requires_grad]
        with counted() as backward:
            found = torch.autograd.grad(
                [outputs[name] for name in used], list(wanted.values()), [cotangents[name] for name in used]
            )
    return wanted, outputs, cotangents, dict(zip(wanted, found, strict=True)), forward, backward


@pytest.mark.parametrize("schedule", _schedule.SCHEDULES)
@pytest.mark.parametrize("name", _CASES)
def test_recurrent_ops_move_the_floors_bytes(name, schedule):
    op, sizes = OPS[_CASES[name][0]], _CASES[name][1]
    case = type(op.cases[0])("traffic", 2, _FRAMES, **sizes)
    wanted, outputs, cotangents, gradients, forward, backward = _run(op, op.make_inputs(case), schedule)
    inputs, result = _LARGE[op.name]
    read, written = [wanted[key] for key in inputs], [outputs[result]]
    _check(op, case, "forward", schedule, forward, read, written, [*wanted.values(), *outputs.values()])
    read, written = [*read, cotangents[result]], [gradients[key] for key in inputs]
    known = [*wanted.values(), *outputs.values(), *gradients.values(), *cotangents.values()]
    _check(op, case, "backward", schedule, backward, read, written, known)


def _check(op, case, direction, schedule, traffic, read, written, known):
    """Inputs read whole, once in a pass; outputs written once, never read; no other large memory."""
    # The chunked schedule reads the recurrence's inputs once more, for the summaries of the segments.
    passes = 1 if schedule == "serial" else 2
    most = passes * (1 + _AGAIN.get(op.name, 0.0))
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
    floor = importlib.import_module(f"trecvit_kernels.ops.{op.name}.cases").bytes_moved(case, direction)
    large = sum(memory.touched for memory in (*read, *written))
    assert large == floor if op.name != "recurrent_mixer" else large <= floor  # that one counts weights too
    largest = max(len(memory.storage) for memory in (*read, *written))
    rest = [memory for memory in traffic.memories.values() if memory not in (*read, *written)]
    for memory in rest:
        if not any(memory.of(tensor) for tensor in known):
            size = len(memory.storage)
            assert size <= largest * _SCRATCH[schedule], (
                f"{direction}: intermediate {memory.arguments} is large"
            )
    spent = sum(memory.touched for memory in rest)
    assert spent <= _REST[schedule] * floor, f"{direction}: {spent} bytes beside the floor's {floor}"


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
