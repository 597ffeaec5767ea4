"""hypothesis: shapes, strides and options nobody thought of, against the reference."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trecvit_kernels.ops._layouts import LAYOUTS

from ._suite import assert_agree, assert_matches, on, run, truth_of

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_DIMS = st.integers(1, 9)
_OPTIONS = {
    "batch": st.integers(0, 3),
    "frames": st.integers(1, 40),
    "lanes": st.lists(_DIMS, min_size=0, max_size=3).map(tuple),
    "dtype": st.sampled_from(_FLOATS),
    "layout": st.sampled_from(LAYOUTS),
    "h0": st.booleans(),
    "state": st.booleans(),
    "reverse": st.booleans(),
    "complex": st.booleans(),
    "reset": st.sampled_from(("none", "random", "first", "last", "chunks", "all")),
    "normalizer": st.sampled_from(("sqrt", "convex")),
    "gates": st.sampled_from(("typical", "saturated")),
    "taps": st.integers(1, 6),
    "heads": st.integers(1, 3),
    "parameters": st.sampled_from((None, torch.float32, torch.bfloat16)),
    "lead": st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple),
    "tokens": st.integers(1, 40),
    "head_dim": st.integers(1, 20),
    "scale": st.sampled_from((None, 0.1)),  # PyTorch's kernels round probabilities: no peaked ones in 16 bits
}


@st.composite
def _case(draw, op):
    case = type(op.cases[0])
    options = {f.name: draw(_OPTIONS[f.name]) for f in fields(case) if f.name in _OPTIONS}
    if op.name == "linear_scan":
        options["dtype"] = draw(st.sampled_from((*_FLOATS, torch.complex64, torch.complex128)))
        options["decay"] = draw(st.sampled_from(("mixed", "near_one")))
    elif op.name == "spatial_attention":
        if len(options["lead"]) < 2:
            options["layout"] = "contiguous"
    else:
        options["decay"] = draw(st.sampled_from(("typical", "near_one")))
        blocks = options.get("heads", 1) * (2 if options["complex"] else 1)
        options["channels"] = blocks * draw(st.integers(1, 40 // blocks))
    if options["layout"] == "expanded_batch" and options.get("batch") == 0:
        options["layout"] = "contiguous"
    return case("random", **options)


@pytest.mark.sanitize
@pytest.mark.kernels_only
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(
    max_examples=int(os.environ.get("TRECVIT_EXAMPLES", "40")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_any_case_matches_reference(op, backend, device, data, seed):
    case = data.draw(_case(op))
    expected = truth_of(op, op.make_inputs(case, seed))
    inputs, cotangents = on(device, expected.inputs), on(device, expected.cotangents)
    results = [run(op, inputs, backend, cotangents, schedule) for schedule in op.schedules(backend)]
    for schedule, got in zip(op.schedules(backend), results, strict=True):
        assert_matches(got, expected, f"{case} {schedule}")
    for other in results[1:]:
        assert_agree(results[0], other, expected, f"{case}, schedules")
