"""The streaming step of the CUDA backend: what it launches, and that it gives what the others give."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trecvit_kernels as tk
from trecvit_kernels import backends
from trecvit_kernels.modules._residual import Residual
from trecvit_kernels.ops import _cuda
from trecvit_kernels.ops.recurrent_mixer import cases as mixer_cases

from ..ops._suite import OPS, assert_matches, run, run_without_grad, truth

simulated = pytest.mark.skipif(
    not backends.simulated(), reason="the CUDA kernels are not simulated here: make simt"
)
pytestmark = pytest.mark.about("cuda")
_NO_LAUNCH = {
    "aten.view",
    "aten.t",
    "aten.empty",
    "aten.empty_like",
    "aten.new_empty",
    "aten.slice",
    "aten.expand",
}
_PRODUCTS = {"aten.addmm", "aten.mm", "aten.bmm"}


class _Calls(TorchDispatchMode):
    """Names of the operators that are called, without those that launch nothing."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).rpartition(".")[0]
        if name not in _NO_LAUNCH:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_a_block_launches_six_kernels_besides_its_products(monkeypatch):
    """On meta tensors, which take the way of a GPU's."""
    monkeypatch.setattr(backends, "_why_not", lambda name, device=None: "")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)  # knows no meta tensors
    with torch.device("meta"), torch.no_grad(), backends.use("cuda"):
        model = tk.create_model("trecvit_base").to(torch.bfloat16).eval()
        x = torch.empty(1, 1, model.config.tokens, model.config.width, dtype=torch.bfloat16)
        (state, *_) = model.init_state(1).layers
        with _Calls() as calls:
            model.blocks[0].mix(Residual(x, x), state)
    assert [name for name in calls.names if name not in _PRODUCTS] == [
        "trecvit_kernels.residual_norm",
        "trecvit_kernels.recurrent_mixer_step",
        "trecvit_kernels.residual_norm",
        "trecvit_kernels.spatial_attention_forward",
        "trecvit_kernels.residual_norm",
        "aten.gelu",
    ]
    assert sum(name in _PRODUCTS for name in calls.names) == 7


@simulated
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_mixers_step_is_one_launch(dtype):
    """No parameter is converted, no tail is put together on the way."""
    from trecvit_kernels.ops.recurrent_mixer import cuda

    made = mixer_cases.make_inputs(mixer_cases.Case("step", 2, 1, (5,), 16, 2, dtype=dtype))
    parameters = [made[name].to(dtype) for name in ("conv_weight", "conv_bias", "gate_x_weight", "gate_x_bias",
                                                    "gate_a_weight", "gate_a_bias", "a_param")]  # fmt: skip
    simulator = _cuda.load_simulator(_cuda.SIMULATOR)
    before = simulator.statistics()["launches"]
    with _Calls() as calls:
        got = cuda.recurrent_mixer_step(made["u"], made["v"], *parameters, None, *made["state"], None, False)
    assert simulator.statistics()["launches"] == before + 1
    assert calls.names == []
    wide = [parameter.float() for parameter in parameters]  # the same numbers, converted on the way
    expected = cuda.recurrent_mixer_step(made["u"], made["v"], *wide, None, *made["state"], None, False)
    assert all(one.equal(other) for one, other in zip(got, expected, strict=True))


@simulated
@pytest.mark.parametrize("complex_lru", (False, True), ids=("real", "complex"))
@pytest.mark.parametrize("posemb", ("learned",))
def test_stream_gives_what_the_reference_gives(complex_lru, posemb):
    torch.manual_seed(3)
    model = tk.create_model("trecvit_tiny", depth=2, width=32, mlp_dim=64, num_heads=2, image_size=(32, 32),
                            num_classes=7, lru_width=48, complex_lru=complex_lru, posemb=posemb).eval()  # fmt: skip
    frames = torch.rand(5, 2, 3, 32, 32)
    results = {}
    for name, kind in (("reference", torch.float64), ("reference", torch.float32), ("cuda", torch.float32)):
        run = copy.deepcopy(model).to(kind)
        with torch.no_grad(), backends.use(name):
            state, logits = run.init_state(2), []
            for frame in frames.to(kind):
                one, state = run.step(frame, state)
                logits.append(one)
            whole = run(frames.to(kind).transpose(0, 1))
        results[name, kind] = torch.stack(logits).double(), whole.double()
    for exact, plain, ours in zip(*results.values()):
        allowed = 2 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()
        assert (ours - exact).abs().max() <= allowed


@simulated
@pytest.mark.parametrize("is_complex", (False, True), ids=("real", "complex"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_step_with_wide_heads(dtype, is_complex):
    """Heads that do not fit into shared memory at once are multiplied in parts."""
    op = OPS["recurrent_mixer"]
    expected = truth(op, mixer_cases.Case("wide", 2, 1, (19,), 2 * 272, 2, dtype=dtype, complex=is_complex))
    simulator = _cuda.load_simulator(_cuda.SIMULATOR)
    for seed in (0, 1, 2):
        simulator.set_order(seed)
        got = run_without_grad(op, expected.inputs, "cuda")
        for name, value in run(op, expected.inputs, "cuda", expected.cotangents).outputs.items():
            assert value.equal(got[name]), name
        assert_matches(run(op, expected.inputs, "cuda", expected.cotangents), expected, f"order {seed}")
