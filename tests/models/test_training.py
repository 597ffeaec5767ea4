"""Training: in-place residuals, checkpointing, dtypes, autocast, compilation, layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import trecvit_kernels as tk
from trecvit_kernels import accounting
from trecvit_kernels.modules import _residual

pytestmark = pytest.mark.usefixtures("one_thread")


def make(**overrides: object) -> tk.TRecViT:
    torch.manual_seed(0)
    fields = {
        "width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "patch_size": 4, "image_size": (8, 12),
        "lru_width": 24, "head_width": 20, "num_classes": 5, **overrides,
    }  # fmt: skip
    return tk.TRecViT(tk.TRecViTConfig(**fields))


def video(batch: int = 2, frames: int = 5) -> Tensor:
    return torch.rand(batch, frames, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def gradients(model: tk.TRecViT, seed: int = 3) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    model(video()).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_in_place_residuals_change_no_gradient(
    dropout: float, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Autograd's version counters let them pass, and out-of-place additions give the same numbers."""
    model = make(dropout=dropout).train()
    in_place = gradients(model)
    monkeypatch.setattr(_residual, "add_residual", lambda branch, x: branch + x)
    for got, expected in zip(in_place, gradients(model), strict=True):
        assert torch.equal(got, expected)


def test_residual_is_written_over_the_branch() -> None:
    branch, x = torch.ones(3), torch.ones(3)
    assert _residual.add_residual(branch, x) is branch and torch.equal(branch, torch.full((3,), 2.0))
    low = torch.ones(3, dtype=torch.bfloat16)
    wide = _residual.add_residual(low, torch.full((3,), 1 / 512))
    assert wide.dtype == torch.float32 and (wide == 1 + 1 / 512).all()  # bfloat16 would round to 1


def test_dropout_acts_in_training_only(backend: str) -> None:
    model = make(dropout=0.4)
    with torch.no_grad():
        assert not torch.equal(model.train()(video()), model(video()))
        assert torch.equal(model.eval()(video()), model(video()))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_activation_checkpointing(dropout: float, backend: str) -> None:
    """Same gradients, dropout masks included; fewer bytes kept."""
    model = make(dropout=dropout).train()
    expected, plain_bytes = gradients(model), kept_bytes(model)
    model.set_activation_checkpointing()
    for got, want in zip(gradients(model), expected, strict=True):
        assert (got - want).abs().max() <= 2e-6 * want.abs().max().clamp(min=1e-3)
    assert kept_bytes(model) < plain_bytes / 3
    model.set_activation_checkpointing(False)
    assert kept_bytes(model) == plain_bytes


@pytest.mark.skipif(not tk.backends.available()["native"].available, reason="native")
def test_bytes_kept_by_the_model() -> None:
    """Inputs of norms, mixers, attention and GELUs, and what they say about them; nothing twice, no view of more."""
    rows, frames, width, hidden, lru, heads = 2 * 5 * 7, 2 * 5, 16, 32, 24, 2
    block = rows * (width + 2 * lru + width + 3 * width + width + width + hidden)
    statistics = rows * (2 + 2 + heads)  # of two norms, and the attention's log-sum-exp
    outside = frames * 6 * 48 + rows * (width + 2)  # patches; the last norm's input and statistics
    head = frames * (width + 20) + 2 * 20  # pre-logits: input and tanh; the classifier's input
    assert kept_bytes(make()) == 4 * (2 * (block + statistics) + outside + head)


@pytest.mark.slow
@pytest.mark.skipif(not tk.backends.available()["native"].available, reason="native")
def test_memory_of_the_base_model_in_training() -> None:
    """32 frames in float32: a third of ViViT-L's 10.5 GiB, and half of what plain eager PyTorch keeps."""
    with FakeTensorMode():
        model = accounting.fake_model(lambda: tk.create_model("trecvit_base"))
        memory = accounting.memory(model, torch.empty(1, 32, 3, 224, 224))
        assert memory.total <= 3.5 * 2**30
        assert memory.saved <= 7.28e9 / 2
        model.set_activation_checkpointing()
        model.zero_grad(set_to_none=True)
        assert accounting.memory(model, torch.empty(1, 32, 3, 224, 224)).total <= 1.4 * 2**30


def kept_bytes(model: tk.TRecViT) -> int:
    """Bytes of the distinct storages that autograd saves for one forward pass, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []  # so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(video()).sum()
    del loss
    return sum(kept.values())


def test_float64_all_the_way(backend: str) -> None:
    """float32 against the same model in float64."""
    model = make()
    double = copy.deepcopy(model).double()
    out, reference = model(video(), return_dict=True), double(video().double(), return_dict=True)
    for name in reference:
        assert reference[name].dtype == torch.float64
        assert (out[name] - reference[name]).abs().max() <= 1e-5
    logits, state = double.step(video()[:, 0].double(), double.init_state(2))
    assert logits.dtype == state.mean.dtype == state.layers[0][0].dtype == torch.float64


def test_bfloat16_model(backend: str) -> None:
    model = make()
    low = copy.deepcopy(model).bfloat16()
    logits, reference = low(video()), model(video())
    assert logits.dtype == torch.bfloat16
    # 8 bits of mantissa through about 20 roundings per path.
    assert (logits - reference).abs().max() <= 20 * 2**-8 * reference.abs().max()
    state = low.init_state(2)
    assert state.layers[0][0].dtype == torch.float32 and state.layers[0][1].dtype == torch.bfloat16
    for t in range(5):
        logits, state = low.step(video()[:, t], state)
    assert (logits - reference).abs().max() <= 20 * 2**-8 * reference.abs().max()
    assert state.layers[0][0].dtype == torch.float32 and state.mean.dtype == torch.float32


def test_autocast_keeps_the_residual_stream_in_float32(backend: str) -> None:
    model = make()
    reference = model(video())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(video(), return_dict=True, intermediates=model.intermediate_names)
    assert out["logits"].dtype == torch.bfloat16
    assert out["tokens"].dtype == torch.float32
    assert all(
        out[f"blocks.{i}.{part}"].dtype == torch.float32 for i in range(2) for part in ("time", "space")
    )
    assert (out["logits"] - reference).abs().max() <= 20 * 2**-8 * reference.abs().max()
    out["logits"].float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_tokens_stay_contiguous(backend: str) -> None:
    """(B, T, N, C) from the first kernel to the last: every block sees and gives contiguous tokens."""
    model = make()
    seen = []

    def look(_: object, inputs: tuple[Tensor, ...], output: object) -> None:
        tensors = [inputs[0], output if isinstance(output, Tensor) else output[0]]
        seen.extend(tensors)
        assert all(tensor.is_contiguous() for tensor in tensors)

    for block in model.blocks:
        block.time.register_forward_hook(look)
        block.space.register_forward_hook(look)
    model(video())
    assert len(seen) == 8 and {tuple(tensor.shape) for tensor in seen} == {(2, 5, 7, 16)}


def test_loss_falls(backend: str) -> None:
    """A few steps fit a tiny batch: gradients point downhill through the whole model."""
    model, labels = make(), torch.tensor([1, 3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(model(video()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_compiled_model_gives_the_same_numbers() -> None:
    model = make(depth=1).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(video()), model(video()), rtol=0, atol=1e-5)
    expected = gradients(model)
    model.zero_grad()
    compiled(video()).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 2e-5 * gradient.abs().max().clamp(min=1e-3)


def test_deepcopy_is_independent() -> None:
    model = make()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.embedding.weight.zero_()
    assert model.embedding.weight.abs().sum() > 0 and other.config == model.config
