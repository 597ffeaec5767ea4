"""The native backend reads views where they lie, if their lanes collapse to one stride: no copy is made of them."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trecvit_kernels import backends

if not backends.available()["native"].available:
    pytest.skip(backends.available()["native"].reason, allow_module_level=True)

from trecvit_kernels.ops import _native
from trecvit_kernels.ops._layouts import arrange
from trecvit_kernels.ops.gated_lru import native as gated_lru
from trecvit_kernels.ops.linear_scan import native as linear_scan
from trecvit_kernels.ops.recurrent_mixer import native as recurrent_mixer

from ._suite import OPS

READ_IN_PLACE = (
    "contiguous",
    "sliced",
    "shifted",
    "gapped",
    "time_first",
    "expanded_batch",
    "expanded_time",
    "expanded_lanes",
)
COPIED = ("time_last", "swapped")
OPERANDS = {"linear_scan": ("a", "b"), "gated_lru": ("x", "gate_x", "gate_a"), "recurrent_mixer": ("u", "v")}

pytestmark = pytest.mark.about("native")


def _inputs(op, layout, is_complex=False):
    half = 4 if is_complex else 8
    lanes = (3,) if layout == "expanded_lanes" else (3, 2)
    shapes = {name: (2, 6, *lanes, half if name.startswith("gate") else 8) for name in OPERANDS[op]}
    dtype = torch.complex64 if is_complex and op == "linear_scan" else torch.float32
    inputs = {name: arrange(torch.rand(shape).to(dtype), layout) for name, shape in shapes.items()}
    if op == "linear_scan":
        return inputs
    lru = {"a_param": torch.rand(half), "a_imag": torch.rand(half) if is_complex else None}
    if op == "gated_lru":
        return inputs | lru
    gates = {}
    for gate in ("gate_x", "gate_a"):
        gates |= {f"{gate}_weight": torch.rand(2, 4, half // 2), f"{gate}_bias": torch.rand(2, half // 2)}
    return inputs | {"conv_weight": torch.rand(4, 8), "conv_bias": torch.rand(8)} | gates | lru


@pytest.fixture
def addresses(monkeypatch):
    """Where the views lie that launchers are given."""
    seen: list[int] = []
    run = _native.CPU.run

    def recorded(launcher, device, *arguments):
        seen.extend(a[0] for a in arguments if isinstance(a, tuple))
        run(launcher, device, *arguments)

    monkeypatch.setattr(_native.CPU, "run", recorded, raising=False)
    return seen


@pytest.mark.parametrize("is_complex", (False, True), ids=("real", "complex"))
@pytest.mark.parametrize("layout", (*READ_IN_PLACE, *COPIED))
@pytest.mark.parametrize("op", OPERANDS)
def test_launchers_get_the_operands_themselves(op, layout, is_complex, addresses):
    """In both passes, the gradient that comes in too."""
    inputs = _inputs(op, layout, is_complex)
    operands = {name: inputs[name] for name in OPERANDS[op]}
    leaves = {name: value.detach().requires_grad_() for name, value in operands.items()}
    result = OPS[op].function(**(inputs | leaves), backend="native")[0]
    for name, operand in operands.items():
        assert (operand.data_ptr() in addresses) == (layout in READ_IN_PLACE), name
    addresses.clear()
    gradient = arrange(torch.rand_like(result), layout)
    result.backward(gradient)
    for name, operand in {**operands, "gradient": gradient}.items():
        assert (operand.data_ptr() in addresses) == (layout in READ_IN_PLACE), name


class _NewTensors(TorchDispatchMode):
    """Shapes of tensors of at least ``numel`` elements in memory that was not there before."""

    def __init__(self, numel, known):
        super().__init__()
        self.numel, self.shapes = numel, []
        self.alive = list(known)  # kept, so that no later tensor gets an address again

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.numel:
            if result.untyped_storage().data_ptr() not in {
                t.untyped_storage().data_ptr() for t in self.alive
            }:
                self.shapes.append(tuple(result.shape))
            self.alive.append(result)
        return result


@pytest.mark.parametrize("layout", READ_IN_PLACE)
@pytest.mark.parametrize("op", OPERANDS)
def test_a_forward_pass_allocates_its_results_alone(op, layout):
    """The mixer also the convolution's output and the two gates."""
    inputs = _inputs(op, layout)
    tensors = [value for value in inputs.values() if value is not None]
    numel = tensors[0].numel()
    with torch.no_grad(), _NewTensors(numel, tensors) as new:
        if op == "linear_scan":
            linear_scan.linear_scan_forward(*inputs.values(), None, False, False)
        elif op == "gated_lru":
            gated_lru.gated_lru_forward(*inputs.values(), None, None, True, "sqrt", False)
        else:
            recurrent_mixer.recurrent_mixer_forward(*_in_order(inputs), None, None, None, True, False)
    assert len(new.shapes) == (4 if op == "recurrent_mixer" else 1), new.shapes


def _in_order(inputs):
    names = ("u", "v", "conv_weight", "conv_bias", "gate_x_weight", "gate_x_bias", "gate_a_weight")
    return [inputs[name] for name in (*names, "gate_a_bias", "a_param", "a_imag")]
