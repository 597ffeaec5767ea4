"""What only a GPU can show about its kernels: CUDA graphs, streams, no synchronisation, very large tensors."""

from __future__ import annotations

import pytest
import torch

from trecvit_kernels import backends

from ._suite import OPS, cotangents_for, named_outputs, on, run, truth
from .test_framework import _call

pytestmark = [
    pytest.mark.parametrize("backend", ("triton", "cuda")),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]
_CASES = {
    "linear_scan": "long-f32",
    "gated_lru": "resets-complex-bf16",
    "recurrent_mixer": "video-real-bf16",
    "spatial_attention": "patches-and-cls",
}


@pytest.fixture(autouse=True)
def _available(backend):
    if reason := backends.available()[backend].reason:
        pytest.skip(f"not available: {reason}")


def _step(op, backend):
    """(function of tensors giving outputs and gradients, those tensors), on the GPU."""
    expected = truth(op, op.case(_CASES[op.name]))
    function, tensors = _call(op, on("cuda", expected.inputs), backend)
    cotangents = list(on("cuda", expected.cotangents).values())

    def step(*values):
        leaves = [value.detach().requires_grad_() for value in values]
        outputs = function(*leaves)
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        gradients = torch.autograd.grad([o for o, _ in pairs], leaves, [c for _, c in pairs])
        return (*(o.detach() for o in outputs), *gradients)

    return step, [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("name", _CASES)
def test_cuda_graph(name, backend):
    """Forward and backward, captured and replayed on other values in the same memory."""
    step, tensors = _step(OPS[name], backend)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(*tensors)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*tensors)
    for scale in (1.0, 0.75):
        for tensor in tensors:
            tensor.mul_(scale)
        graph.replay()
        for got, expected in zip(captured, step(*tensors), strict=True):
            assert got.equal(expected)


@pytest.mark.parametrize("name", _CASES)
def test_nothing_synchronises(name, backend):
    step, tensors = _step(OPS[name], backend)
    expected = step(*tensors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = step(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(got, expected, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("name", _CASES)
def test_other_streams(name, backend):
    """Kernels run on the stream that is current, after what it holds already."""
    step, tensors = _step(OPS[name], backend)
    expected = step(*tensors)
    torch.cuda.synchronize()
    late = [torch.zeros_like(tensor) for tensor in tensors]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        for target, tensor in zip(late, tensors, strict=True):
            target.copy_(tensor)
        got = step(*late)
    side.synchronize()
    for one, other in zip(got, expected, strict=True):
        assert one.equal(other)


@pytest.mark.large
@pytest.mark.parametrize("name", _CASES)
def test_more_than_2_to_the_31_elements(name, backend):
    """Contiguous tensors of so many elements; the last tokens (frames) as if they were alone."""
    op = OPS[name]
    if torch.cuda.get_device_properties().total_memory < 100e9:
        pytest.skip("needs a GPU with 100 GB")
    case = type(op.cases[0])
    bf16, few = torch.bfloat16, 3
    if name == "spatial_attention":
        small = op.make_inputs(case("small", (1, few), 196, 12, 64, bf16), device="cuda")
        count, dim = 2**31 // (196 * 2304) + few, 1
    else:
        sizes = {"linear_scan": {"lanes": (few, 1024)}, "gated_lru": {"lanes": (few,), "channels": 1024}}
        settings = sizes.get(name, {"lanes": (few,), "channels": 1024, "heads": 8})
        small = op.make_inputs(case("small", 1, 2, dtype=bf16, **settings), device="cuda")
        count, dim = 2**30 // 1024 + few, 2
    activations = {"a", "b", "x", "gate_x", "gate_a", "u", "v", "qkv"}
    large = {}
    for key, value in small.items():
        if key in activations:
            shape = list(value.shape)
            shape[dim] = count
            large[key] = torch.zeros(shape, dtype=bf16, device="cuda")
            large[key].narrow(dim, count - few, few).copy_(value)
            assert large[key].numel() > 2**31
        else:
            large[key] = None if key in ("h0", "state") else value
    alone = {key: None if key in ("h0", "state") else value for key, value in small.items()}
    with torch.no_grad():
        got = named_outputs(op, op.function(**large, backend=backend))[op.outputs[0]]
        expected = named_outputs(op, op.function(**alone, backend=backend))[op.outputs[0]]
    # Not bit for bit: the number of sequences may choose another launch.
    torch.testing.assert_close(got.narrow(dim, count - few, few), expected)
    assert not got.narrow(dim, 0, few).isnan().any()


def test_results_do_not_change_from_run_to_run(backend):
    """Races show as bits that change; sums have a fixed order."""
    for name in _CASES:
        op = OPS[name]
        inputs = on("cuda", truth(op, op.case(_CASES[name])).inputs)
        cotangents = cotangents_for(run(op, inputs, backend, None).outputs)
        for schedule in op.schedules(backend):
            first = dict(run(op, inputs, backend, cotangents, schedule).items())
            for _ in range(20):
                again = run(op, inputs, backend, cotangents, schedule)
                assert all(value.equal(first[key]) for key, value in again.items()), (name, schedule)
