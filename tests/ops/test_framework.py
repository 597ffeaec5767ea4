"""The ops inside PyTorch's machinery: compile, export, autocast, checkpoints; numbers as in eager."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import trecvit_kernels as tk

from ._suite import assert_matches, cotangents_for, leaves, map_tensors, named_outputs, on, run, truth

# One case per op: tracing is slow.
_CASE = {
    "linear_scan": "video-f32",
    "gated_lru": "resets-complex-f32",
    "recurrent_mixer": "resets-real-f32",
    "spatial_attention": "video-f32",
}
RECURRENT = ("linear_scan", "gated_lru", "recurrent_mixer")
_TIME = {"a", "b", "x", "gate_x", "gate_a", "u", "v", "reset"}


def _inputs(op, device, name=None):
    expected = truth(op, op.case(name or _CASE[op.name]))
    return on(device, expected.inputs), on(device, expected.cotangents)


def _call(op, inputs, backend):
    """(function of the floating tensors only, those tensors): what transforms want to see."""
    names = list(leaves(inputs))

    def function(*tensors):
        values = dict(zip(names, tensors, strict=True))
        arguments = {
            name: tuple(values[f"{name}[{i}]"] for i in range(len(value)))
            if isinstance(value, tuple)
            else values.get(name, value)
            for name, value in inputs.items()
        }
        return tuple(named_outputs(op, op.function(**arguments, backend=backend)).values())

    return function, tuple(leaves(inputs).values())


def _gradients(function, tensors, cotangents):
    tensors = [t.detach().requires_grad_() for t in tensors]
    outputs = function(*tensors)
    return outputs, torch.autograd.grad(
        [value for value in outputs if value.requires_grad],
        tensors,
        [c for value, c in zip(outputs, cotangents.values(), strict=True) if value.requires_grad],
    )


def _assert_close(got, expected):
    """What a compiler may change: the order of a sum, a fused multiply-add."""
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))


@pytest.mark.kernels_only
@pytest.mark.parametrize("dynamic", (False, True), ids=("static", "dynamic"))
def test_compile_whole_graph(op, backend, device, dynamic):
    """fullgraph, forward and backward; with dynamic shapes one graph serves another length of time."""
    torch._dynamo.reset()
    inputs, cotangents = _inputs(op, device)
    function, tensors = _call(op, inputs, backend)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    _check_compiled(compiled, function, tensors, cotangents)
    if dynamic and op.name != "spatial_attention":
        shorter = {n: v[:, :18] if n in _TIME and v is not None else v for n, v in inputs.items()}
        if shorter.get("reset") is not None:  # the closure holds it: leave it out of the graph's assumptions
            shorter["reset"] = None
        function, tensors = _call(op, shorter, backend)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
        for frames in (18, 11):
            cut = [t[:, :frames] if n in _TIME else t for n, t in zip(leaves(shorter), tensors, strict=True)]
            _check_compiled(compiled, function, cut, cotangents_for(named_outputs(op, function(*cut))))


def _check_compiled(compiled, function, tensors, cotangents):
    with torch.no_grad():
        _assert_close(compiled(*tensors), function(*tensors))
    outputs, gradients = _gradients(compiled, tensors, cotangents)
    expected_outputs, expected = _gradients(function, tensors, cotangents)
    _assert_close(outputs, expected_outputs)
    _assert_close(gradients, expected)


@pytest.mark.slow
@pytest.mark.kernels_only
@pytest.mark.ops("gated_lru")
def test_compile_with_inductor(op, backend, device):
    """The real compiler once, with ordinary operations fused around the op."""
    torch._dynamo.reset()
    inputs, cotangents = _inputs(op, device, "start-real-f32")
    inner, tensors = _call(op, inputs, backend)

    def function(*values):
        y, h_last = inner(*(torch.tanh(v) * 1.5 for v in values))
        return torch.sigmoid(y) * y, h_last

    compiled = torch.compile(function, fullgraph=True)
    _check_compiled(compiled, function, tensors, cotangents)


@pytest.mark.kernels_only
@pytest.mark.ops(*RECURRENT)
def test_opcheck(op, backend, device):
    """Schema, fake kernel and dispatch of the raw forward and backward ops."""
    for name in _RAW_CASES[op.name]:
        inputs, cotangents = _inputs(op, device, name)
        forward, backward, arguments, raw_cotangents = _raw(op, inputs, cotangents, backend)
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic")
        for save_states in (False, True):
            torch.library.opcheck(forward, (*arguments, save_states, backend), test_utils=tests)
        states = forward(*arguments, True, backend)[-1]
        torch.library.opcheck(backward, (*raw_cotangents, *arguments, states, backend), test_utils=tests)
        if op.name == "recurrent_mixer" and backend != "triton":  # ops/recurrent_mixer/op.py, recipe
            again, backward_from = _raw_again()
            torch.library.opcheck(again, (*arguments, backend), test_utils=tests)
            made = again(*arguments, backend)[1:]
            torch.library.opcheck(
                backward_from, (*raw_cotangents, *arguments, states, *made, backend), test_utils=tests
            )


_RAW_CASES = {
    "linear_scan": ("video-f32", "start-reverse-bf16", "video-c64", "empty-batch"),
    "gated_lru": ("video-real-f32", "resets-complex-bf16", "start-real-f16", "empty-batch-real"),
    "recurrent_mixer": ("video-real-f32", "resets-complex-bf16", "start-real-f16", "empty-batch-real"),
}


def _raw_again():
    namespace = torch.ops.trecvit_kernels
    return namespace.recurrent_mixer_again.default, namespace.recurrent_mixer_backward_from.default


def _raw(op, inputs, cotangents, backend):
    namespace = torch.ops.trecvit_kernels
    forward = getattr(namespace, f"{op.name}_forward").default
    backward = getattr(namespace, f"{op.name}_backward").default
    values = dict(inputs)
    if op.name == "linear_scan":
        arguments = (values["a"], values["b"], values["h0"], values["reverse"])
    else:
        state = values.pop("state", (values.get("h0"),)) or (None, None)
        starts = values["reset"] is None and state[0] is None
        normalizer = values.pop("normalizer", None)
        reset = values.pop("reset")
        values.pop("h0", None)
        arguments = (*values.values(), *state, reset, starts, *([normalizer] if normalizer else []))
    return forward, backward, arguments, list(cotangents.values())[:2]


@pytest.mark.kernels_only
@pytest.mark.ops(*RECURRENT)
def test_meta_and_fake_tensors(op, backend, device):
    """Shapes, dtypes and strides of fake runs are those of real ones, gradients included."""
    from torch._subclasses import FakeTensorMode

    for name in _RAW_CASES[op.name]:
        inputs, cotangents = _inputs(op, device, name)
        real = dict(run(op, inputs, backend, cotangents).items())
        with FakeTensorMode() as mode:
            fake_inputs = map_tensors(inputs, mode.from_tensor)
            fake_cotangents = {key: mode.from_tensor(value) for key, value in cotangents.items()}
            fake = dict(run(op, fake_inputs, backend, fake_cotangents).items())
        assert fake.keys() == real.keys()
        for key, value in fake.items():
            expected = real[key]
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype), f"{name} {key}"
            assert value.numel() == 0 or value.stride() == expected.stride(), f"{name} {key}"


_META_CASES = {
    "linear_scan": ("deep-lanes", "video-c64"),
    "gated_lru": ("video-real-f32", "resets-complex-bf16"),
    "recurrent_mixer": ("video-real-f32", "resets-complex-bf16"),
    "spatial_attention": ("video-f32", "scaled-bf16"),
}


@pytest.mark.reference_only
@pytest.mark.parametrize("autocast", (False, True), ids=("plain", "autocast"))
def test_public_ops_on_meta(op, backend, autocast):
    """Shapes and dtypes as of real tensors, gradients included, by the backend that has autograd there.

    Autocast of the CPU does not concern them.
    """
    assert tk.backends.select(op.name, None, "meta", op.backends) == backend
    expected = truth(op, op.case(_META_CASES[op.name][autocast]))
    inputs = map_tensors(expected.inputs, lambda t: t.to("meta"))
    cotangents = {key: value.to("meta") for key, value in expected.cotangents.items()}
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        got = dict(run(op, inputs, None, cotangents).items())
    real = dict(expected.reference.items())
    assert got.keys() == real.keys()
    for key, value in got.items():
        like = real[key]
        assert (value.device.type, value.shape, value.dtype) == ("meta", like.shape, like.dtype), key


@pytest.mark.parametrize("temporal", ("gated_lru", "attention", "lstm", "conv1d", "none"))
def test_model_on_meta(temporal):
    """A training step and a stream cost nothing there, and have the shapes of real ones."""
    config = tk.TRecViTConfig(
        width=8,
        depth=1,
        mlp_dim=8,
        num_heads=2,
        patch_size=(4, 4),
        image_size=(8, 8),
        num_classes=5,
        temporal=temporal,
    )
    with torch.device("meta"):
        model = tk.TRecViT(config)
        logits = model(torch.rand(2, 3, 3, 8, 8))
        logits.sum().backward()
        stream, state = model.step(torch.rand(2, 3, 8, 8), model.init_state(2))
    assert (logits.device.type, logits.shape) == (stream.device.type, stream.shape) == ("meta", (2, 5))
    assert state.mean.shape == (2, config.feature_width)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name


def test_a_kernel_asked_for_on_meta_says_where_it_runs():
    x = torch.empty(1, 2, 3, device="meta")
    with pytest.raises(RuntimeError, match="linear_scan: backend 'native' cannot run here: "):
        tk.ops.linear_scan(x, x, backend="native")


@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpoint(op, backend, device, use_reentrant):
    inputs, cotangents = _inputs(op, device)
    function, tensors = _call(op, inputs, backend)

    def recomputed(*values):
        return checkpoint(function, *values, use_reentrant=use_reentrant)

    expected_outputs, expected = _gradients(function, tensors, cotangents)
    copies = [t.detach().requires_grad_() for t in tensors]
    outputs = recomputed(*copies)
    pairs = [(o, c) for o, c in zip(outputs, cotangents.values(), strict=True) if o.requires_grad]
    torch.autograd.backward(*zip(*pairs, strict=True))
    for one, other in zip(outputs, expected_outputs, strict=True):
        assert one.equal(other)
    for leaf, gradient in zip(copies, expected, strict=True):
        assert leaf.grad.equal(gradient)


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.kernels_only
def test_export(op, backend, device, strict):
    inputs, _ = _inputs(op, device)
    function, tensors = _call(op, inputs, backend)

    class Module(torch.nn.Module):
        def forward(self, *values):
            return function(*values)

    program = torch.export.export(Module(), tensors, strict=strict)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    if op.name != "spatial_attention":
        assert any(f"{op.name}_forward" in name for name in names), names
    with torch.no_grad():
        for one, other in zip(program.module()(*tensors), function(*tensors), strict=True):
            assert one.equal(other)


def test_autocast(op, backend, device):
    """Activations take the autocast dtype (but in a scan), states are float32, gradients as leaves."""
    inputs, _ = _inputs(op, device)
    function, tensors = _call(op, inputs, backend)
    leaves_of = [t.detach().requires_grad_() for t in tensors]
    with torch.autocast(device, dtype=torch.bfloat16):
        outputs = named_outputs(op, function(*leaves_of))
    gradients = torch.autograd.grad(sum(value.float().sum() for value in outputs.values()), leaves_of)
    assert all(g.dtype == t.dtype for g, t in zip(gradients, leaves_of, strict=True))
    if op.name == "linear_scan":
        assert outputs["h"].dtype == torch.float32
        assert outputs["h"].equal(function(*leaves_of)[0])
        return
    activations = {"x", "gate_x", "gate_a", "u", "v", "qkv"}
    cast = {
        name: value.to(torch.bfloat16) if name in activations else value for name, value in inputs.items()
    }
    expected = named_outputs(op, op.function(**cast, backend=backend))
    for name, value in outputs.items():
        assert value.dtype == (torch.float32 if name == "h_last" else torch.bfloat16), name
        if name != "tail" or inputs["state"] is not None:
            assert value.equal(expected[name]), name


@pytest.mark.ops("gated_lru", "recurrent_mixer")
def test_autocast_of_activations_in_several_dtypes(op, backend, device):
    """Some come from products that autocast has cast, others have not met one."""
    inputs, _ = _inputs(op, device)
    first, *others = ("x", "gate_x", "gate_a") if op.name == "gated_lru" else ("u", "v")
    mixed = inputs | {other: inputs[other].to(torch.bfloat16) for other in others}
    refused = f"{others[0]} must have dtype float{{}}, got bfloat16"
    with torch.autocast(device, dtype=torch.bfloat16):
        outputs, expected = (
            named_outputs(op, op.function(**call, backend=backend)) for call in (mixed, inputs)
        )
        assert all(value.equal(expected[name]) for name, value in outputs.items())
        with pytest.raises(TypeError, match=refused.format(64)):
            op.function(**mixed | {first: mixed[first].double()}, backend=backend)
    with pytest.raises(TypeError, match=refused.format(32)):
        op.function(**mixed, backend=backend)


def test_training_a_parameter_accumulates(op, backend, device):
    """Two backward passes into .grad, one of them through a non-contiguous leaf, add up."""
    inputs, cotangents = _inputs(op, device)
    function, tensors = _call(op, inputs, backend)
    tensors = [t.detach().mT.contiguous().mT if t.ndim > 1 else t.detach().clone() for t in tensors]
    _, once = _gradients(function, tensors, cotangents)
    tensors = [t.requires_grad_() for t in tensors]
    for _ in range(2):
        outputs = function(*tensors)
        pairs = [(o, c) for o, c in zip(outputs, cotangents.values(), strict=True) if o.requires_grad]
        torch.autograd.backward(*zip(*pairs, strict=True))
    for tensor, gradient in zip(tensors, once, strict=True):
        assert tensor.grad.equal(2 * gradient)


@pytest.mark.kernels_only
def test_compiled_public_function_matches_truth(op, backend, device):
    """Compiled with its checks and its choice of backend, an op is held to the same tolerance as in eager."""
    torch._dynamo.reset()
    name = _CASE[op.name]
    expected = truth(op, op.case(name))
    inputs, cotangents = on(device, expected.inputs), on(device, expected.cotangents)
    compiled = replace(op, function=torch.compile(op.function, fullgraph=True, backend="aot_eager"))
    assert_matches(run(compiled, inputs, backend, cotangents), expected, name)
