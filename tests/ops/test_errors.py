"""Every argument of every op, wrong in every way: the right exception, naming op and argument."""

from __future__ import annotations

import pytest
import torch

from trecvit_kernels.ops import _schedule, gated_lru, linear_scan, recurrent_mixer, spatial_attention

from ._suite import OPS

_CASES = {
    ("linear_scan", "real"): "video-f32",
    ("linear_scan", "complex"): "video-c64",
    ("gated_lru", "real"): "resets-real-f32",
    ("gated_lru", "complex"): "resets-complex-bf16",
    ("recurrent_mixer", "real"): "resets-real-f32",
    ("recurrent_mixer", "complex"): "resets-complex-bf16",
    ("spatial_attention", "real"): "video-f32",
}


def _inputs(op, kind="real"):
    return OPS[op].make_inputs(OPS[op].case(_CASES[op, kind]))


def _flat(inputs):
    """Argument names with those of the state's parts, and how to replace one."""
    for name, value in inputs.items():
        if isinstance(value, tuple):
            for index in range(len(value)):
                yield f"{name}[{index}]", value[index]
        elif isinstance(value, torch.Tensor):
            yield name, value


def _with(inputs, name, value):
    if "[" not in name:
        return dict(inputs, **{name: value})
    outer, index = name[:-1].split("[")
    parts = list(inputs[outer])
    parts[int(index)] = value
    return dict(inputs, **{outer: tuple(parts)})


def _wrong(tensor):
    """(what is wrong, the value, exception)"""
    yield "type", "not a tensor", TypeError
    yield "type", tensor.float().tolist() if not tensor.is_complex() else [1.0], TypeError
    yield "integers", torch.zeros(tensor.shape, dtype=torch.int32), TypeError
    yield "dtype", tensor.to(torch.float32 if tensor.dtype == torch.bool else torch.bool), TypeError
    yield "rank", tensor.unsqueeze(-1).unsqueeze(0), ValueError
    yield "rank", tensor.flatten()[0], ValueError
    yield "shape", torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1] + 1], ValueError
    yield "shape", torch.cat([tensor, tensor], dim=0), ValueError
    yield "device", tensor.to("meta"), ValueError


_ARGUMENTS = [
    pytest.param(op, kind, name, id=f"{op}-{kind}-{name}")
    for op, kind in _CASES
    for name, _ in _flat(_inputs(op, kind))
]
_FIRST = {"linear_scan": "a", "gated_lru": "x", "recurrent_mixer": "u", "spatial_attention": "qkv"}


@pytest.mark.parametrize("op,kind,name", _ARGUMENTS)
def test_wrong_tensor(op, kind, name):
    inputs = _inputs(op, kind)
    good = dict(_flat(inputs))[name]
    for what, value, exception in _wrong(good):
        if name == _FIRST[op]:
            # The first argument sets shape and device; others disagree with it.
            if what in ("device", "shape") or (what == "rank" and value.ndim > 1):
                continue
            message = rf"{op}: {name} must"
        elif name == "gate_x_weight" and what == "shape" and value.shape[0] > good.shape[0]:
            message = rf"{op}: (gate_x_weight|gate_x_bias|u) must"  # sets the number of heads
        elif name == "conv_weight" and what == "shape" and value.shape[0] > good.shape[0]:
            message = rf"{op}: (conv_weight|state\[1\]) must"  # sets the number of taps
        else:
            message = rf"{op}: {name.replace('[', chr(92) + '[')} must"
        with pytest.raises(exception, match=message):
            OPS[op].function(**_with(inputs, name, value), backend="reference")


@pytest.mark.parametrize("op,kind", [pair for pair in _CASES if pair[0] != "spatial_attention"])
def test_first_argument_sets_the_shape(op, kind):
    """A longer first argument is reported as a disagreement of the next, with both shapes."""
    inputs = _inputs(op, kind)
    first = inputs[_FIRST[op]]
    with pytest.raises(
        ValueError, match=rf"{op}: \w+ must have shape \({first.shape[0]}, {2 * first.shape[1]}, .*got"
    ):
        OPS[op].function(**dict(inputs, **{_FIRST[op]: torch.cat([first, first], dim=1)}))
    with pytest.raises(ValueError, match=rf"{op}: \w+ must be on device meta, got cpu"):
        OPS[op].function(**dict(inputs, **{_FIRST[op]: first.to("meta")}))


@pytest.mark.parametrize("op", ("linear_scan", "gated_lru", "recurrent_mixer"))
def test_no_frames(op):
    inputs = _inputs(op)
    empty = inputs[_FIRST[op]][:, :0]
    with pytest.raises(ValueError, match=f"{op}: {_FIRST[op]} must have at least one frame"):
        OPS[op].function(**dict(inputs, **{_FIRST[op]: empty}))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64))
@pytest.mark.parametrize("op", ("gated_lru", "recurrent_mixer", "linear_scan"))
def test_activations_of_two_dtypes(op, dtype):
    inputs = _inputs(op)
    second = {"gated_lru": "gate_x", "recurrent_mixer": "v", "linear_scan": "b"}[op]
    with pytest.raises(TypeError, match=f"{op}: {second} must have dtype float32, got"):
        OPS[op].function(**dict(inputs, **{second: inputs[second].to(dtype)}))


def test_state_must_have_the_state_dtype():
    inputs = _inputs("gated_lru", "complex")  # bfloat16 activations
    with pytest.raises(TypeError, match="gated_lru: h0 must have dtype float32, got bfloat16"):
        gated_lru(**dict(inputs, h0=inputs["h0"].to(torch.bfloat16)))


def test_state_of_another_batch_size():
    inputs = _inputs("recurrent_mixer")
    smaller = tuple(part[:1] for part in inputs["state"])
    with pytest.raises(ValueError, match=r"recurrent_mixer: state\[0\] must have shape \(2, .*got \(1, "):
        recurrent_mixer(**dict(inputs, state=smaller))


def test_state_of_another_number_of_taps():
    inputs = _inputs("recurrent_mixer")
    h, tail = inputs["state"]
    with pytest.raises(
        ValueError, match=r"recurrent_mixer: state\[1\] must have shape \(2, 3, .*got \(2, 2, "
    ):
        recurrent_mixer(**dict(inputs, state=(h, tail[:, 1:])))


@pytest.mark.parametrize("state", ("neither", 3, (), (None,), torch.zeros(3)))
def test_state_that_is_no_pair(state):
    with pytest.raises(TypeError, match="recurrent_mixer: state must be a pair"):
        recurrent_mixer(**dict(_inputs("recurrent_mixer"), state=state))


def test_odd_width_for_complex():
    inputs = _inputs("gated_lru", "complex")
    odd = inputs["x"][..., :-1]
    with pytest.raises(ValueError, match=r"gated_lru: x must have an even number of channels .* got 11"):
        gated_lru(**dict(inputs, x=odd))
    inputs = _inputs("recurrent_mixer", "complex")
    with pytest.raises(ValueError, match="recurrent_mixer: u must have an even number of channels"):
        recurrent_mixer(**dict(inputs, u=inputs["u"][..., :-2], v=inputs["v"][..., :-2]))


def test_heads_that_do_not_divide_the_channels():
    inputs = _inputs("recurrent_mixer")
    weight = torch.zeros(5, 2, 2)
    with pytest.raises(
        ValueError, match="recurrent_mixer: gate_x_weight must have a number of heads that divides 12"
    ):
        recurrent_mixer(**dict(inputs, gate_x_weight=weight))


@pytest.mark.parametrize("shape", ((2,), (40,), (1, 40), (2, 39), (2, 40, 1)), ids=str)
def test_reset_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"gated_lru: reset must have shape \(2, 40\), got"):
        gated_lru(**dict(_inputs("gated_lru"), reset=torch.zeros(shape, dtype=torch.bool)))


def test_normalizer():
    with pytest.raises(ValueError, match="gated_lru: normalizer must be one of sqrt, convex, got 'linear'"):
        gated_lru(**dict(_inputs("gated_lru"), normalizer="linear"))


@pytest.mark.parametrize("op", OPS)
def test_backend(op):
    inputs = _inputs(op)
    with pytest.raises(ValueError, match=f"{op}: unknown backend 'nativ'; known are reference"):
        OPS[op].function(**inputs, backend="nativ")
    missing = "sdpa" if op != "spatial_attention" else "native"
    with pytest.raises(ValueError, match=f"{op}: backend must be one of reference, .* got '{missing}'"):
        OPS[op].function(**inputs, backend=missing)


def test_attention_settings():
    qkv = _inputs("spatial_attention")["qkv"]
    for heads in ("2", 2.0, True, None):
        with pytest.raises(TypeError, match="spatial_attention: num_heads must be an int"):
            spatial_attention(qkv, heads)
    for heads in (0, -1):
        with pytest.raises(ValueError, match="spatial_attention: num_heads must be at least 1"):
            spatial_attention(qkv, heads)
    with pytest.raises(
        ValueError, match=r"spatial_attention: qkv must have 3 \* num_heads \* D = 15 \* D channels"
    ):
        spatial_attention(qkv, 5)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="spatial_attention: scale must be finite"):
            spatial_attention(qkv, 2, scale=scale)


@pytest.mark.parametrize("scale", ("x", "0.5", [1.0], True, 1j), ids=repr)
def test_attention_scale_of_another_type(scale):
    with pytest.raises(TypeError, match="spatial_attention: scale must be a float or None, got"):
        spatial_attention(_inputs("spatial_attention")["qkv"], 2, scale=scale)


@pytest.mark.parametrize("reverse", ("yes", 1, None, torch.tensor(True)), ids=repr)
def test_reverse_of_another_type(reverse):
    with pytest.raises(TypeError, match="linear_scan: reverse must be a bool, got"):
        linear_scan(**dict(_inputs("linear_scan"), reverse=reverse))


def test_linear_scan_refuses_integers():
    for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn):
        bad = torch.ones(1, 2, 3).to(dtype)
        with pytest.raises(TypeError, match="linear_scan: a must have dtype"):
            linear_scan(bad, bad)


def test_unknown_schedule():
    with (
        pytest.raises(ValueError, match="schedule must be one of serial, chunked"),
        _schedule.force("neither"),
    ):
        pass
