"""What autograd keeps, and what the flop counter counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import trecvit_kernels.accounting  # noqa: F401  (registers flop formulas)
from trecvit_kernels.ops._dtypes import state_dtype

from ._suite import leaves, map_tensors, on

RECURRENT = ("linear_scan", "gated_lru", "recurrent_mixer")


def _bytes(tensors):
    """Bytes of distinct memory behind the tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _kept(op, inputs, backend):
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    inputs = map_tensors(inputs, lambda t: t if t.dtype == torch.bool else t.detach().requires_grad_())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = op.function(**inputs, backend=backend)
    return kept, inputs, result


@pytest.mark.kernels_only
@pytest.mark.ops(*RECURRENT)
@pytest.mark.parametrize("frames", (1, 16, 17, 64))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_autograd_keeps_inputs_and_few_states(op, backend, device, frames, dtype):
    """The inputs themselves (no copies) and one state every few frames."""
    sizes = {"lanes": (5, 24)} if op.name == "linear_scan" else {"lanes": (5,), "channels": 24}
    case = type(op.cases[0])("kept", 2, frames, dtype=dtype, **sizes)
    kept, inputs, _ = _kept(op, on(device, op.make_inputs(case)), backend)
    given = {t.untyped_storage().data_ptr() for t in leaves(inputs).values()}
    extra = _bytes([t for t in kept if t.untyped_storage().data_ptr() not in given])
    states = (frames - 1) // (8 if (op.name, backend) == ("recurrent_mixer", "triton") else 16)
    one_state = 2 * 5 * 24 * torch.empty(0, dtype=state_dtype(dtype)).element_size()
    assert extra == states * one_state
    assert _bytes(kept) <= _bytes(leaves(inputs).values()) + states * one_state


@pytest.mark.kernels_only
@pytest.mark.ops("gated_lru", "recurrent_mixer")
def test_kernels_keep_less_than_the_reference(op, backend, device):
    inputs = on(device, op.make_inputs(op.case("video-real-f32")))
    assert 2 * _bytes(_kept(op, inputs, backend)[0]) < _bytes(_kept(op, inputs, "reference")[0])


# FLOPs: 2 per multiply-add, an elementary function counts one.


def _count(op, inputs, backend, backward):
    inputs = map_tensors(
        inputs, lambda t: t if t.dtype == torch.bool else t.detach().requires_grad_(backward)
    )
    with FlopCounterMode(display=False) as counter:
        result = op.function(**inputs, backend=backend)
        if backward:
            output = result[0]
            torch.autograd.backward(output, torch.ones_like(output))
    return counter.get_total_flops()


@pytest.mark.kernels_only
@pytest.mark.ops("linear_scan")
def test_flops_of_linear_scan(op, backend, device):
    inputs = on(device, op.make_inputs(op.case("video-f32")))
    elements = 2 * 20 * 5 * 24
    assert _count(op, inputs, backend, backward=False) == 2 * elements
    assert _count(op, inputs, backend, backward=True) == (2 + 5) * elements


@pytest.mark.kernels_only
@pytest.mark.ops("gated_lru")
def test_flops_of_gated_lru(op, backend, device):
    for kind, per_gate, gates in (("real", 15, 24), ("complex", 26, 12)):
        inputs = on(device, op.make_inputs(op.case(f"video-{kind}-f32")))
        forward = per_gate * 2 * 20 * 5 * gates
        assert _count(op, inputs, backend, backward=False) == forward
        assert _count(op, inputs, backend, backward=True) == 4 * forward


@pytest.mark.kernels_only
@pytest.mark.ops("recurrent_mixer")
def test_flops_of_recurrent_mixer(op, backend, device):
    """Two block-diagonal products per token, and 2 per tap + 23 per element; three times that backward."""
    inputs = on(device, op.make_inputs(op.case("video-real-f32")))
    tokens, channels, heads, taps = 2 * 20 * 5, 24, 2, 4
    products = 2 * (2 * tokens * heads * (channels // heads) ** 2)
    forward = products + (2 * taps + 23) * tokens * channels
    assert _count(op, inputs, backend, backward=False) == forward
    assert _count(op, inputs, backend, backward=True) == 4 * forward


@pytest.mark.ops("spatial_attention")
def test_flops_of_attention(op, backend, device):
    """Two products of N x N x D per frame and head (``accounting`` adds what the counter lacks)."""
    inputs = on(device, op.make_inputs(op.case("video-f32")))
    frames, tokens, heads, dim = 6, 17, 2, 16
    assert _count(op, inputs, backend, backward=False) == 2 * 2 * frames * heads * tokens * tokens * dim
