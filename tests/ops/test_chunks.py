"""A sequence at once, in chunks, or frame by frame: the same numbers, and gradients through the state."""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from trecvit_kernels import backends

from ._suite import OPS, assert_matches, largest, on, run, truth, truth_of

FRAMES = 35
CUTS = {
    "frame-by-frame": [1] * FRAMES,
    "uneven": [5, 1, 17, 12],
    "sixteens": [16, 16, 3],  # reset kind "chunks" puts resets on the first frame of each
}
_OVER_TIME = {"a", "b", "x", "gate_x", "gate_a", "u", "v", "reset"}


def _in_chunks(op, sizes):
    """The op's function, cut along time; what one chunk leaves behind is handed to the next."""
    carried_name = "state" if op.name == "recurrent_mixer" else "h0"

    def call(*, backend, **inputs):
        carried = inputs.pop(carried_name)
        edges = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        pieces = list(pairwise(edges))
        backwards = inputs.get("reverse", False)
        outputs = []
        for start, stop in reversed(pieces) if backwards else pieces:
            chunk = {
                name: value[:, start:stop] if name in _OVER_TIME and value is not None else value
                for name, value in inputs.items()
            }
            output, carried = op.function(**chunk, **{carried_name: carried}, backend=backend)
            outputs.append(output)
        return torch.cat(outputs[::-1] if backwards else outputs, dim=1), carried

    return replace(op, function=call)


def _cases():
    scan, lru, mixer = (type(OPS[name].cases[0]) for name in ("linear_scan", "gated_lru", "recurrent_mixer"))
    f32, bf16, c64 = torch.float32, torch.bfloat16, torch.complex64
    for reverse in (False, True):
        yield "linear_scan", scan(f"reverse-{reverse}", 2, FRAMES, (3, 4), f32, reverse=reverse)
    yield "linear_scan", scan("complex", 2, FRAMES, (3, 4), c64, decay="near_one")
    yield "linear_scan", scan("bf16-no-h0", 2, FRAMES, (3, 4), bf16, h0=False)
    for reset, is_complex, carried in (
        ("none", False, True),
        ("none", True, False),
        ("random", True, True),
        ("random", False, False),
        ("chunks", False, True),
        ("last", True, True),
    ):
        name = f"{'complex' if is_complex else 'real'}-reset-{reset}-{'state' if carried else 'start'}"
        dtype = f32 if carried else bf16
        yield "gated_lru", lru(name, 2, FRAMES, (2,), 6, dtype, is_complex, carried, reset)
        yield (
            "recurrent_mixer",
            mixer(name, 1, FRAMES, (2,), 8, complex=is_complex, state=carried, reset=reset),
        )


_CASES = list(_cases())


@functools.cache
def _truth_in_chunks(op, case, cut):
    """Chunked truth and tolerance (more roundings); in float64 it must be the truth of the whole."""
    whole, chunked = truth(op, case), truth_of(_in_chunks(op, CUTS[cut]), op.make_inputs(case))
    exact = dict(whole.exact.items())
    for name, value in chunked.exact.items():
        assert largest(value - exact[name]) <= 1e-12 * largest(exact[name]), f"{case.name} {cut} {name}"
    return chunked


@pytest.mark.ops("linear_scan", "gated_lru", "recurrent_mixer")
@pytest.mark.parametrize("cut", CUTS)
def test_chunks_equal_whole(op, backend, device, cut):
    cases = [case for name, case in _CASES if name == op.name]
    if backends.interpreted():  # slow: real and complex, with a state and without, with resets and without
        cases = cases[2 if cut == "frame-by-frame" else 1 : 3]
    for case in cases:
        expected = _truth_in_chunks(op, case, cut)
        inputs, cotangents = on(device, expected.inputs), on(device, expected.cotangents)
        chunked = run(_in_chunks(op, CUTS[cut]), inputs, backend, cotangents)
        assert_matches(chunked, expected, f"{case.name} {cut}")
