"""Every temporal module, alone and inside TRecViT: streaming equals the clip, state, switches, errors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import trecvit_kernels as tk
from trecvit_kernels.models import save_official_checkpoint
from trecvit_kernels.modules import RecurrentBlock, temporal

SMALL: dict[str, Any] = {
    "width": 32, "depth": 2, "mlp_dim": 48, "num_heads": 4, "patch_size": 8, "image_size": 16, "lru_width": 48,
    "head_width": 24, "num_classes": 5,
}  # fmt: skip
PAGE = Path(__file__).resolve().parents[2] / "docs" / "ablations.md"
# Every choice, and every switch of the recurrent block.
CHOICES: dict[str, dict[str, Any]] = {
    "gated_lru": {},
    "complex": {"complex_lru": True},
    "attention": {"temporal": "attention"},
    "attention, window": {"temporal": "attention", "temporal_window": 3},
    "lstm": {"temporal": "lstm"},
    "conv1d": {"temporal": "conv1d", "conv1d_width": 3},
    "none": {"temporal": "none"},
    "no gates": {"lru_gates": False},
    "no gates, complex": {"lru_gates": False, "complex_lru": True},
    "no gates, convex": {"lru_gates": False, "lru_normalizer": "convex"},
    "no convolution": {"conv1d_width": 0},
    "no skip": {"temporal_skip": False},
    "no skip, lstm": {"temporal": "lstm", "temporal_skip": False},
    "convex": {"lru_normalizer": "convex"},
    "radius": {"min_radius": 0.9, "max_radius": 0.99},
}
every_choice = pytest.mark.parametrize("fields", CHOICES.values(), ids=CHOICES)


def _model(fields: dict[str, Any]) -> tk.TRecViT:
    torch.manual_seed(0)
    return tk.TRecViT(tk.TRecViTConfig(**{**SMALL, **fields})).double().eval()


def _video(batch: int = 2, frames: int = 7) -> torch.Tensor:
    return torch.rand(batch, frames, 3, 16, 16, dtype=torch.float64)


@every_choice
@pytest.mark.parametrize("chunks", [(1,) * 7, (3, 4), (5, 1, 1)], ids=str)
def test_streaming_gives_what_the_clip_gives(fields: dict, chunks: tuple[int, ...]) -> None:
    model, video = _model(fields), _video()
    with torch.no_grad():
        encoded, logits, state, parts = model.forward_features(video), model(video), model.init_state(2), []
        for chunk in video.split(chunks, dim=1):
            part, state = model.step_features(chunk, state)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), encoded, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model._classify(state.mean), logits, rtol=1e-10, atol=1e-10)


@every_choice
def test_no_frame_knows_of_a_later_one(fields: dict) -> None:
    model, video = _model(fields), _video()
    other = video.clone()
    other[:, 4:] = torch.rand_like(other[:, 4:])
    with torch.no_grad():
        first, second = model.forward_features(video), model.forward_features(other)
    assert torch.equal(first[:, :4], second[:, :4])
    other = video.clone()
    other[:, 3] = torch.rand_like(other[:, 3])
    with torch.no_grad():
        changed = (model.forward_features(other) - first)[:, 4].abs().max()
    assert bool(changed > 0) == (fields.get("temporal") != "none")


@every_choice
def test_gradients_reach_every_parameter(fields: dict) -> None:
    # The cls token starts at 0. Without skip it is 0 behind the first recurrent block too, a product of two zeros.
    model, video = _model({**fields, "pool": "mean"}).train(), _video()
    model(video).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@every_choice
def test_activation_checkpointing_changes_no_gradient(fields: dict) -> None:
    model, video = _model(fields).train(), _video()
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        model.set_activation_checkpointing(enabled)
        model(video).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@every_choice
def test_saved_and_loaded(fields: dict, tmp_path: Path) -> None:
    model, video = _model(fields).float(), _video().float()
    model.save_pretrained(tmp_path)
    again = tk.TRecViT.from_pretrained(tmp_path)
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again.eval()(video), model(video))


@every_choice
def test_stream_saves_and_goes_on(fields: dict, tmp_path: Path) -> None:
    model, video = _model(fields), _video(1)
    stream = tk.Stream(model)
    for frame in video[0, :4]:
        stream.push(frame)
    stream.save(tmp_path / "state.safetensors")
    other = tk.Stream(model)
    other.load(tmp_path / "state.safetensors")
    for frame in video[0, 4:]:
        assert torch.equal(stream.push(frame), other.push(frame))


@pytest.mark.parametrize("name", temporal.CHOICES)
def test_autocast(name: str) -> None:
    model, video = _model({"temporal": name}).float(), _video().float()
    with torch.no_grad():
        exact = model(video)
        with torch.autocast("cpu", torch.bfloat16):
            rough, state = model(video), model.init_state(2)
            for frame in video.unbind(1):
                logits, state = model.step(frame, state)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.1)


def test_state_of_another_module_is_refused() -> None:
    video = _video(1)
    lstm, attention = _model({"temporal": "lstm"}), _model({"temporal": "attention"})
    with pytest.raises(
        ValueError, match=r"state must come from a model with temporal = lstm \(state: attention\)"
    ):
        lstm.step(video[:, 0], attention.init_state(1))
    x = torch.rand(2, 3, 5, 32)
    block = temporal.LSTMBlock(32, 48)
    with pytest.raises(ValueError, match=r"LSTMBlock: state must be a tuple \(h, c\) .*, got 1 tensors"):
        block(x, state=temporal.Conv1dBlock(32, 48).init_state(2, 5))
    with pytest.raises(
        ValueError, match=r"LSTMBlock: state h must have shape \(2, 5, 48\), got \(2, 0, 5, 32\)"
    ):
        block(x, state=temporal.TemporalAttention(32, 4).init_state(2, 5))
    with pytest.raises(ValueError, match=r"TemporalAttention: state must be a tuple .*, got Tensor"):
        temporal.TemporalAttention(32, 4)(x, state=torch.zeros(2))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"temporal": "gru"}, ValueError, "temporal must be one of gated_lru, .*, none, got 'gru'"),
        ({"lru_normalizer": "none"}, ValueError, "lru_normalizer must be one of sqrt, convex, got 'none'"),
        ({"temporal": "lstm", "complex_lru": True}, ValueError, "complex_lru must be False unless temporal = "),
        ({"temporal": "conv1d", "lru_gates": False}, ValueError, "lru_gates must be True unless temporal = "),
        ({"temporal_window": 4}, ValueError, "temporal_window must be None unless temporal = 'attention', got 4"),
        ({"temporal": "attention", "temporal_window": 0}, ValueError, "temporal_window must be at least 1, got 0"),
        ({"temporal": "attention", "num_heads": 32, "lru_width": 32}, ValueError, r"width must be a multiple of 2 \*"),
        ({"temporal": "none", "temporal_skip": False}, ValueError, "temporal_skip must be True with temporal = 'none'"),
        ({"temporal": "conv1d", "conv1d_width": 0}, ValueError, "conv1d_width must be at least 1 unless temporal = "),
        ({"max_radius": 1.0}, ValueError, "max_radius must be between 0 and 1, got 1.0"),
        ({"max_radius": 0.5}, ValueError, "min_radius must be between 0 and 0.5, got 0.6"),
        ({"lru_gates": 1}, TypeError, "lru_gates must be a bool, got int"),
    ],
)  # fmt: skip
def test_configurations_that_do_not_fit(fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tk.TRecViTConfig(**{**SMALL, **fields})


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="name must be one of gated_lru, attention, lstm, conv1d, none, got 'mamba'"
    ):
        temporal.create("mamba", 32, 48, 4)


def test_default_is_the_fused_block_and_old_configurations_load() -> None:
    model = tk.TRecViT(tk.TRecViTConfig(**SMALL))
    assert all(type(block.time) is RecurrentBlock for block in model.blocks)
    new = ("temporal", "max_radius", "lru_gates", "lru_normalizer", "temporal_skip", "temporal_window")
    old = {name: value for name, value in model.config.to_dict().items() if name not in new}
    assert tk.TRecViTConfig.from_dict(old) == model.config


@pytest.mark.parametrize("complex_lru", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_composed_block_computes_what_the_fused_one_does(
    complex_lru: bool, with_state: bool, backend: str
) -> None:
    fused = RecurrentBlock(32, 48, 4, complex_lru=complex_lru).double()
    composed = temporal.AblatedRecurrentBlock(32, 48, 4, complex_lru=complex_lru).double()
    composed.load_state_dict(fused.state_dict())
    x = torch.randn(2, 6, 3, 32, dtype=torch.float64)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[0, 2] = reset[1, 4] = True
    state = tuple(torch.randn_like(part) for part in fused.init_state(2, 3)) if with_state else None
    torch.testing.assert_close(composed(x, state=state, reset=reset), fused(x, state=state, reset=reset))
    torch.testing.assert_close(composed(x, state=state), fused(x, state=state))


def test_both_blocks_start_alike() -> None:
    torch.manual_seed(1)
    fused = RecurrentBlock(32, 48, 4).state_dict()
    torch.manual_seed(1)
    composed = temporal.AblatedRecurrentBlock(32, 48, 4).state_dict()
    assert list(fused) == list(composed) and all(torch.equal(fused[name], composed[name]) for name in fused)


@pytest.mark.parametrize("normalizer", ["sqrt", "convex"])
def test_plain_lru_is_the_gated_one_with_constant_gates(normalizer: str, backend: str) -> None:
    plain = temporal.PlainLRU(6, normalizer=normalizer).double()
    x, h0 = torch.randn(2, 5, 3, 6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    # sigmoid(40) is 1 and sigmoid(-log 7) is 1/8.
    gates = torch.full_like(x, 40.0), torch.full_like(x, -math.log(7.0))
    reset = torch.tensor([[False, False, True, False, False], [True, False, False, False, True]])
    for arguments in ({}, {"h0": h0}, {"h0": h0, "reset": reset}):
        expected = tk.ops.gated_lru(x, *gates, plain.a_param, **arguments, normalizer=normalizer)
        torch.testing.assert_close(plain(x, **arguments), expected)


def test_plain_complex_lru_by_hand() -> None:
    lru = temporal.PlainLRU(4, complex_lru=True).double()
    x = torch.randn(1, 3, 1, 4, dtype=torch.float64)
    assert lru.a_imag_param is not None
    a = torch.exp(torch.complex(-F.softplus(lru.a_param), lru.a_imag_param))
    z = torch.complex(*x.chunk(2, dim=-1))
    h, expected = z[:, 0], []
    for t in range(3):
        h = h if t == 0 else a * h + (1 - a.abs().square()).sqrt() * z[:, t]
        expected.append(torch.cat([h.real, h.imag], dim=-1))
    y, last = lru(x)
    torch.testing.assert_close(y, torch.stack(expected, dim=1))
    torch.testing.assert_close(last, y[:, -1])


def test_plain_lru_starts_on_its_ring() -> None:
    radius = torch.exp(-F.softplus(temporal.PlainLRU(4096, min_radius=0.7, max_radius=0.9).a_param))
    assert 0.7 <= radius.min() < 0.71 and 0.89 < radius.max() <= 0.9001
    gated = tk.modules.GatedLRU(4096, 4, min_radius=0.7, max_radius=0.9)
    radius = torch.exp(-F.softplus(gated.a_param))
    assert 0.7 <= radius.min() < 0.71 and 0.89 < radius.max() <= 0.9001


def test_attention_by_hand() -> None:
    """Against a softmax over pairs of frames, the rotation as a product of complex numbers."""
    block = temporal.TemporalAttention(8, 2, window=3).double()
    x = torch.randn(1, 5, 1, 8, dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x)).chunk(3, dim=-1)
    expected = torch.zeros(5, 8, dtype=torch.float64)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        turned = []
        for tensor in (q, k):
            rows = tensor[0, :, 0, part]
            angle = torch.arange(5).double()[:, None] * torch.tensor([1.0, 0.01]).double()
            z = torch.complex(rows[:, :2], rows[:, 2:]) * torch.polar(torch.ones_like(angle), angle)
            turned.append(torch.cat([z.real, z.imag], dim=-1))
        for t in range(5):
            seen = slice(max(t - 2, 0), t + 1)
            weights = (turned[1][seen] @ turned[0][t] / 2).softmax(dim=0)
            expected[t, part] = weights @ v[0, seen, 0, part]
    y, (keys, values) = block(x)
    torch.testing.assert_close(y[0, :, 0], x[0, :, 0] + block.out(expected), rtol=1e-6, atol=1e-6)
    assert keys.shape == values.shape == (1, 2, 1, 8)


def test_state_of_attention_grows_up_to_its_window() -> None:
    for window, expected in ((None, [1, 2, 3, 4, 5]), (3, [1, 2, 2, 2, 2]), (1, [0, 0, 0, 0, 0])):
        block, state, kept = temporal.TemporalAttention(8, 2, window=window), None, []
        for _ in range(5):
            _, state = block(torch.randn(2, 1, 3, 8), state=state)
            kept.append(state[0].shape[1])
        assert kept == expected


def test_no_skip_is_the_branch_alone() -> None:
    for name in ("gated_lru", "attention", "lstm", "conv1d"):
        torch.manual_seed(2)
        with_skip = temporal.create(name, 32, 48, 4)
        without = temporal.create(name, 32, 48, 4, skip=False)
        without.load_state_dict(with_skip.state_dict())  # type: ignore[attr-defined]
        x = torch.randn(1, 3, 2, 32)
        torch.testing.assert_close(without(x)[0], with_skip(x)[0] - x, rtol=1e-4, atol=1e-5)


def test_conv1d_restarts_at_a_reset_and_others_refuse_it() -> None:
    block, x = temporal.Conv1dBlock(32, 48).double(), torch.randn(1, 6, 2, 32, dtype=torch.float64)
    reset = torch.tensor([[False, False, True, False, False, False]])
    torch.testing.assert_close(block(x, reset=reset)[0][:, 2:], block(x[:, 2:])[0])
    for other in (temporal.LSTMBlock(32, 48).double(), temporal.TemporalAttention(32, 4).double()):
        with pytest.raises(
            ValueError, match="reset must be None, this module cannot start again inside a call"
        ):
            other(x, reset=reset)


@pytest.mark.parametrize("name", temporal.CHOICES)
def test_bad_input_of_the_module(name: str) -> None:
    module = temporal.create(name, 32, 48, 4)
    with pytest.raises(ValueError, match="x must have"):
        module(torch.rand(2, 32))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        module([1.0])
    if name != "none":
        with pytest.raises(ValueError, match=r"x must have shape \(2, 3, 4, 32\), got \(2, 3, 4, 31\)"):
            module(torch.rand(2, 3, 4, 31))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temporal": "lstm"}, "temporal must be 'gated_lru' for an official checkpoint, got 'lstm'"),
        ({"lru_gates": False}, "lru_gates must be True for an official checkpoint, got False"),
        ({"conv1d_width": 0}, "conv1d_width must be at least 1 for an official checkpoint, got 0"),
        ({"lru_normalizer": "convex"}, "lru_normalizer must be 'sqrt' for an official checkpoint"),
        ({"temporal_skip": False}, "temporal_skip must be True for an official checkpoint"),
    ],
)
def test_official_checkpoints_are_for_the_default(
    fields: dict, message: str, golden: Path, tmp_path: Path
) -> None:
    path = golden / "trecvit" / "trecvit_tiny_ckpt.npz"
    with pytest.raises(ValueError, match=message):
        tk.load_official_checkpoint(path, image_size=32, **fields)
    with pytest.raises(ValueError, match=message):
        save_official_checkpoint(_model(fields), tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


def test_weights_of_another_module_are_refused_by_name(tmp_path: Path) -> None:
    _model({}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"missing blocks.0.time.lstm.weight_ih_l0.*unexpected blocks.0.time.linear_x"
    ):
        tk.TRecViT.from_pretrained(tmp_path, temporal="lstm")


def test_graphs_hold_no_growing_state() -> None:
    with pytest.raises(
        ValueError, match=r"needs a model whose step a graph can hold, got temporal = 'attention'"
    ):
        tk.Stream(_model({"temporal": "attention"}), cuda_graph=True)


def test_docs_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["ablated"].config.conv1d_width == 0
    assert re.findall(r'^\| `"(\w+)"` \|', text, re.MULTILINE) == list(temporal.CHOICES)
