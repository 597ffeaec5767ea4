"""Counts of parameters, FLOPs and bytes: by hand where it can be done, and against the published figures."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import trecvit_kernels as tk
from trecvit_kernels import accounting

GIB = 2**30


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def test_a_shared_parameter_counts_once() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    assert accounting.parameters(nn.Sequential(first, second)) == 128
    second.weight = first.weight
    assert accounting.parameters(nn.Sequential(first, second)) == 64
    with FakeTensorMode():
        fake = accounting.fake_model(lambda: nn.Sequential(first, second))
        assert accounting.parameters(fake) == 64


@pytest.mark.parametrize(
    "name, count",  # DeepMind's own models at 400 classes
    [
        ("trecvit_tiny", 8_995_984),
        ("trecvit_small", 30_030_736),
        ("trecvit_base", 111_913_360),
        ("trecvit_large", 386_616_720),
        ("trecvit_base_k400", 136_778_128),
    ],
)
def test_parameters_of_the_released_sizes(name: str, count: int) -> None:
    with torch.device("meta"):
        assert accounting.parameters(tk.create_model(name)) == count


def test_flops_of_matrix_products() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7, requires_grad=True)
    assert accounting.flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert accounting.flops(lambda: a @ b, backward=True) == 2 * 2 * 3 * 5 * 7  # only b has a gradient
    assert b.grad is not None
    with pytest.raises(ValueError, match="must hold a tensor that requires a gradient"):
        accounting.flops(lambda: a @ a.T, backward=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_attention_is_counted_like_its_matrix_products(dtype: torch.dtype) -> None:
    """FlopCounterMode by itself skips the fused attention of the CPU."""
    batch, tokens, heads, dim = 2, 33, 4, 16

    def count(backend: str, backward: bool) -> int:
        qkv = torch.randn(batch, tokens, 3 * heads * dim, dtype=dtype, requires_grad=True)
        run = lambda: tk.ops.spatial_attention(qkv, heads, backend=backend)  # noqa: E731
        return accounting.flops(run, backward=backward)

    one_product = 2 * batch * heads * tokens * tokens * dim
    assert count("reference", False) == count("sdpa", False) == 2 * one_product
    assert count("reference", True) == 6 * one_product
    assert count("sdpa", True) == 7 * one_product  # the fused backward computes the scores again


def test_real_and_fake_tensors_count_the_same() -> None:
    config = tk.TRecViTConfig(
        width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=(8, 8), image_size=(16, 16), num_classes=5
    )

    def build() -> nn.Module:
        return tk.TRecViT(config)

    shape = (2, 3, 3, 16, 16)
    fake = accounting.costs(build, shape)
    real, video = build(), torch.rand(shape)
    assert fake.parameters == accounting.parameters(real)
    assert fake.flops_forward == accounting.flops(lambda: real(video)) > 0
    assert fake.flops_training == accounting.flops(lambda: real(video), backward=True)
    real.zero_grad(set_to_none=True)
    for fake_memory, training in ((fake.training, True), (fake.inference, False)):
        memory = accounting.memory(real.train(training), video, training=training)
        assert (memory.parameters, memory.inputs) == (fake_memory.parameters, fake_memory.inputs)
        # Small constants, wrapped numbers among them, live longer or shorter without data.
        assert memory.total == pytest.approx(fake_memory.total, rel=0.01)
        assert memory.saved == pytest.approx(fake_memory.saved, rel=0.01)
        real.zero_grad(set_to_none=True)


def test_memory_of_two_layers_by_hand() -> None:
    model, x = two_layers(), torch.zeros(32, 64)
    weights = 4 * (64 * 128 + 128 + 128 * 10 + 10)
    hidden, output = 4 * 32 * 128, 4 * 32 * 10
    inference = accounting.memory(model, x, training=False)
    assert inference.parameters == weights
    assert inference.inputs == x.nbytes
    assert inference.activations == 2 * hidden  # the input of the ReLU and its output
    assert (inference.gradients, inference.temporaries, inference.saved) == (0, 0, 0)
    assert sum(inference.breakdown().values()) == inference.total
    training = accounting.memory(model, x)
    assert training.saved == hidden + output  # the ReLU keeps its output, not its input
    assert sum(training.breakdown().values()) == training.total
    assert training.total > inference.total - 2 * hidden + hidden


def test_memory_of_an_optimizer() -> None:
    model = two_layers()
    adam = torch.optim.Adam(model.parameters())
    before = accounting.memory(model, torch.zeros(1, 64))
    assert before.optimizer == 0
    model.zero_grad(set_to_none=True)
    accounting.memory(model, torch.zeros(1, 64), optimizer=adam)  # the first step makes the states
    after = accounting.memory(model, torch.zeros(1, 64), optimizer=adam)
    steps = 4 * len(list(model.parameters()))
    assert after.optimizer >= 2 * after.parameters + steps


def test_dtype_of_the_fake_model() -> None:
    shape = (32, 64)
    full = accounting.costs(two_layers, shape)
    half = accounting.costs(two_layers, shape, dtype=torch.bfloat16)
    assert half.training.parameters * 2 == full.training.parameters
    assert half.training.saved * 2 == full.training.saved
    assert half.flops_training == full.flops_training


@pytest.mark.slow
@pytest.mark.parametrize("name, tera", [("trecvit_base", 1.407), ("trecvit_base_k400", 1.720)])
def test_trecvit_flops(name: str, tera: float) -> None:
    """Matrix products of the official model, 32 frames; ours count the elementwise recurrence too."""
    with FakeTensorMode(), torch.no_grad():
        model = accounting.fake_model(lambda: tk.create_model(name))
        count = accounting.flops(lambda: model(torch.empty(1, 32, 3, 224, 224)))
    assert count / 1e12 == pytest.approx(tera, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tubelet_frames, attention, forward, training, gib",
    [(1, "eager", 7.667, 22.99, 71.1), (1, "sdpa", 7.667, None, 10.5), (2, "eager", 2.872, 8.606, 20.9)],
)
def test_vivit_l_figures(
    tubelet_frames: int, attention: str, forward: float, training: float | None, gib: float
) -> None:
    pytest.importorskip("transformers", reason="transformers (extra 'benchmarks') is not installed")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    costs = accounting.costs(
        lambda: accounting.vivit_l(tubelet_frames=tubelet_frames, attention=attention),
        (1, 32, 3, 224, 224),
    )
    assert costs.flops_forward / 1e12 == pytest.approx(forward, abs=6e-4)
    if training is not None:
        assert costs.flops_training / 1e12 == pytest.approx(training, abs=6e-3)
    assert costs.training.total / GIB == pytest.approx(gib, abs=0.06)
    assert costs.parameters == {1: 309_933_456, 2: 307_508_624}[tubelet_frames]
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used < 2 * 1024**2  # KiB: seventy GiB were measured, none was needed


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'trecvit-kernels\[benchmarks\]'"):
        accounting.vivit_l()


def test_formulas_are_registered_by_the_import_and_once() -> None:
    code = (
        "import importlib, torch, trecvit_kernels.accounting as a\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "importlib.reload(a)\n"
        "assert torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
