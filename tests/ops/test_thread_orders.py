"""The CUDA kernels give the same bits in whatever order their threads and blocks run (in tests/simt)."""

from __future__ import annotations

import pytest
import torch

from trecvit_kernels import backends
from trecvit_kernels.ops import _cuda

from ._suite import OPS, cotangents_for, run

pytestmark = [
    pytest.mark.about("cuda"),
    pytest.mark.skipif(not backends.simulated(), reason="the CUDA kernels are not simulated here: make simt"),
]

_CASES = {
    "linear_scan": ("video-f32", "video-bf16", "video-c64", "odd"),
    "gated_lru": ("video-real-bf16", "video-complex-f32", "reset-chunks-real"),
    "recurrent_mixer": ("video-real-f32", "video-complex-bf16", "one-frame-real"),
    "spatial_attention": ("video-bf16", "video-f32", "patches-and-cls", "odd"),
}


@pytest.mark.parametrize(
    "room,name", [(room, name) for room, names in _CASES.items() for name in names], ids=lambda value: value
)
def test_order_of_threads_changes_nothing(room, name):
    op = OPS[room]
    simulator = _cuda.load_simulator(_cuda.SIMULATOR)
    inputs = op.make_inputs(op.case(name))
    cotangents = cotangents_for(run(op, inputs, "cuda", None).outputs)
    for schedule in op.schedules("cuda"):
        simulator.set_order(0)
        expected = dict(run(op, inputs, "cuda", cotangents, schedule).items())
        for seed in (1, 2, 3):
            simulator.set_order(seed)
            for output, got in run(op, inputs, "cuda", cotangents, schedule).items():
                assert torch.equal(got.view(torch.uint8), expected[output].view(torch.uint8)), (output, seed)
