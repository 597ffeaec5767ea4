"""Frame by frame, in chunks and as a whole clip: the same numbers from a state of constant size."""

from __future__ import annotations

import gc
import itertools
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import trecvit_kernels as tk
from trecvit_kernels.models import TRecViTState

pytestmark = pytest.mark.usefixtures("one_thread")
OUTPUT = 1e-5  # absolute, as for parity


def make(seed: int = 0, **overrides: object) -> tk.TRecViT:
    torch.manual_seed(seed)
    fields = {
        "width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "patch_size": 4, "image_size": (8, 12),
        "lru_width": 24, "head_width": 20, "num_classes": 5, **overrides,
    }  # fmt: skip
    model = tk.TRecViT(tk.TRecViTConfig(**fields)).eval()
    with torch.no_grad():  # the official initial bias and scale values are 0: make every parameter count
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def frames(count: int, batch: int = 2, seed: int = 1, **options: object) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, count, 3, 8, 12, generator=generator).to(**options)


VARIANTS = [
    {},
    {"complex_lru": True},
    {"pool": "mean", "posemb": "sincos2d"},
    {"num_classes": 0},
    {"conv1d_width": 1},
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
@torch.no_grad()
def test_step_equals_the_clip_at_every_prefix(overrides: dict, backend: str) -> None:
    model, video = make(**overrides), frames(9)
    state = model.init_state(2)
    for t in range(video.shape[1]):
        logits, state = model.step(video[:, t], state)
        assert (logits - model(video[:, : t + 1])).abs().max() <= OUTPUT
        assert state.frames == t + 1


@pytest.mark.parametrize("cuts", [(1,), (8,), (3, 4), (2, 3, 5, 8), (1, 2, 3, 4, 5, 6, 7, 8)], ids=str)
@torch.no_grad()
def test_chunks_equal_the_clip(cuts: tuple[int, ...], backend: str) -> None:
    model, video = make(), frames(9)
    state, encoded = model.init_state(2), []
    for start, end in itertools.pairwise((0, *cuts, 9)):
        logits, ahead = model.step(video[:, start:end], state)
        features, state = model.step_features(video[:, start:end], state)
        assert all(
            torch.equal(a, b) for a, b in zip(ahead.tensors().values(), state.tensors().values(), strict=True)
        )
        encoded.append(features)
    assert (logits - model(video)).abs().max() <= OUTPUT
    assert (torch.cat(encoded, dim=1) - model.forward_features(video)).abs().max() <= OUTPUT


@torch.no_grad()
def test_golden_clip_frame_by_frame(golden: Path, backend: str) -> None:
    import numpy as np

    model = tk.load_official_checkpoint(golden / "trecvit" / "trecvit_tiny_ckpt.npz")
    with np.load(golden / "trecvit" / "trecvit_tiny.npz", allow_pickle=False) as file:
        video = torch.from_numpy(file["video"]).permute(0, 1, 4, 2, 3)
        expected = {name: torch.from_numpy(file[name]) for name in ("logits", "encoded")}
    state = model.init_state(2)
    for t in range(video.shape[1]):
        encoded, _ = model.step_features(video[:, t], state)
        logits, state = model.step(video[:, t], state)
        assert (encoded[:, 0] - expected["encoded"][:, t]).abs().max() <= OUTPUT
    assert (logits - expected["logits"]).abs().max() <= OUTPUT


def test_gradients_through_steps_equal_the_clip(backend: str) -> None:
    model, video = make(), frames(4)
    model(video).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    state = model.init_state(2)
    for t in range(4):
        logits, state = model.step(video[:, t], state)
    logits.square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 2e-5 * gradient.abs().max().clamp(min=1e-3)
    assert not any(tensor.requires_grad for tensor in state.detach().tensors().values())


@torch.no_grad()
def test_step_leaves_its_state_alone_and_the_size_is_constant(backend: str) -> None:
    model, video = make(), frames(6)
    state = model.init_state(2)
    sizes = {state.nbytes}
    for t in range(6):
        before = state.clone()
        _, new = model.step(video[:, t], state)
        for name, tensor in state.tensors().items():
            assert torch.equal(tensor, before.tensors()[name]), name
        state = new
        sizes.add(state.nbytes)
        # A view would keep a larger tensor alive.
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in state.tensors().values())
    assert len(sizes) == 1


def live_tensors() -> int:
    gc.collect()
    return sum(1 for item in gc.get_objects() if issubclass(type(item), torch.Tensor))


@torch.no_grad()
def test_ten_thousand_steps_neither_grow_nor_drift() -> None:
    """Memory before and after; the last outputs against float64 runs, on the tail alone and on everything."""
    steps, tail, compared = 10_000, 3_000, 50
    sizes = {"depth": 1, "width": 8, "mlp_dim": 8, "lru_width": 8, "head_width": 8, "image_size": 4}
    model = make(**sizes)
    video = torch.rand(1, steps, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    state = model.init_state(1)
    size, features = state.nbytes, []
    for t in range(steps):
        encoded, state = model.step_features(video[:, t], state)
        if t == 1_000:
            tensors, peak = live_tensors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if t >= steps - compared:
            features.append(encoded)
    assert state.nbytes == size and state.frames == steps
    assert live_tensors() <= tensors + compared
    # Peak resident memory in KiB (Linux): a state kept per step would be 9,000 states of over 1 KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 4_096

    double = make(**sizes).double()
    # Slowest decay 0.999^(8 r) per frame: gates around one half leave e^-12 of what was before the tail.
    fresh = double.forward_features(video[:, -tail:].double())[:, -compared:]
    assert (torch.cat(features, dim=1) - fresh).abs().max() <= OUTPUT
    whole, _ = double.step(video.double(), double.init_state(1))
    assert (model.cls_head(state.mean) - whole).abs().max() <= OUTPUT


def test_states_that_do_not_fit() -> None:
    model, frame = make(), frames(1)[:, 0]
    other_size, other_batch = make(depth=1).init_state(2), model.init_state(3)
    with pytest.raises(TypeError, match="state must be a TRecViTState, got tuple"):
        model.step(frame, (1, 2))
    with pytest.raises(ValueError, match=r"state must come from a model with depth = 2 \(state: 1\)"):
        model.step(frame, other_size)
    with pytest.raises(ValueError, match="state must have batch size 2, got 3"):
        model.step(frame, other_batch)
    with pytest.raises(ValueError, match="state mean must be on device cpu, got meta"):
        model.step(frame, model.init_state(2).to("meta"))
    cut = TRecViTState(model.config, model.init_state(2).layers[:1], model.init_state(2).mean)
    with pytest.raises(ValueError, match="state must have 2 layers, got 1"):
        model.step(frame, cut)
    for bad, error in ((0, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="batch_size must be"):
            model.init_state(bad)


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (torch.zeros(3, 8, 12), ValueError, "frame must have at least 4 dimensions"),
        (torch.zeros(2, 1, 8, 12), ValueError, r"frame must have shape \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8), ValueError, "frame must have 2 x 3 patches"),
        (torch.zeros(2, 0, 3, 8, 12), ValueError, "frame must have at least one frame"),
        (torch.zeros(2, 3, 8, 12, dtype=torch.int32), TypeError, "frame must have dtype"),
    ],
)
def test_frames_that_do_not_fit(frame: Tensor, error: type[Exception], message: str) -> None:
    model = make()
    with pytest.raises(error, match=message):
        model.step(frame, model.init_state(2))


def test_state_is_a_pytree_and_serialises() -> None:
    model = make()
    _, state = model.step(frames(3), model.init_state(2))
    leaves, _ = torch.utils._pytree.tree_flatten(state)
    assert len(leaves) == 2 * 2 + 1
    doubled = torch.utils._pytree.tree_map(lambda tensor: 2 * tensor, state)
    assert isinstance(doubled, TRecViTState) and torch.equal(doubled.mean, 2 * state.mean)
    again = TRecViTState.from_tensors(state.config, state.tensors(), state.frames)
    assert again.frames == 3 and torch.equal(again.layers[1][0], state.layers[1][0])
    with pytest.raises(ValueError, match="tensors must have mean, got none of that name"):
        TRecViTState.from_tensors(state.config, {k: v for k, v in state.tensors().items() if k != "mean"}, 3)
    with pytest.raises(ValueError, match="tensors must not have extra"):
        TRecViTState.from_tensors(state.config, {**state.tensors(), "extra": state.mean}, 3)


def test_stream_gives_the_logits_of_the_clip(backend: str) -> None:
    model, video = make(), frames(5)
    stream = tk.Stream(model, batch_size=2)
    for _ in range(2):
        for t in range(5):
            logits = stream.push(video[:, t])
            assert not logits.requires_grad
            assert (logits - model(video[:, : t + 1])).abs().max() <= OUTPUT
        assert stream.frames == 5
        stream.reset()
        assert stream.frames == 0


def test_stream_of_one_takes_bare_frames_of_either_kind() -> None:
    model = make()
    video = (frames(3, batch=1) * 255).round().to(torch.uint8)
    stream = tk.Stream(model)
    for t in range(3):
        logits = stream.push(video[0, t])
    assert logits.shape == (1, 5)
    assert (logits - model(video)).abs().max() <= OUTPUT


def test_stream_refuses_frames_that_do_not_fit() -> None:
    stream, video = tk.Stream(make(), batch_size=2), frames(3)
    expected = tk.Stream(stream.model, batch_size=2)
    stream.push(video[:, 0]), expected.push(video[:, 0])
    for frame, error, message in (
        (None, TypeError, "frame must be a torch.Tensor, got NoneType"),
        (video[:, :1], ValueError, r"frame must have shape \(B, 3, H, W\)"),
        (video[0, 1], ValueError, r"frame must have shape \(B, 3, H, W\), got \(3, 8, 12\)"),
        (video[:1, 1], ValueError, r"frame must have shape \(2, 3, 8, 12\), got \(1, 3, 8, 12\)"),
        (video[:, 1, :, :4], ValueError, "frame must have 2 x 3 patches"),
        (video[:, 1].long(), TypeError, "frame must have dtype"),
        (video[:, 1].to("meta"), ValueError, "frame must be on device cpu, got meta"),
        (
            video[:, 1].double(),
            ValueError,
            r"like the stream's first, shape \(2, 3, 8, 12\) float32, got .* float64",
        ),
    ):
        with pytest.raises(error, match=f"Stream.push: .*{message}"):
            stream.push(frame)
    assert torch.equal(stream.push(video[:, 1]), expected.push(video[:, 1]))


def test_stream_arguments() -> None:
    model = make()
    with pytest.raises(TypeError, match="model must be a TRecViT, got Linear"):
        tk.Stream(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match='cuda_graph must be True, False or "auto", got 1'):
        tk.Stream(model, cuda_graph=1)
    with pytest.raises(ValueError, match="cuda_graph=True needs a model on a CUDA device, got one on cpu"):
        tk.Stream(model, cuda_graph=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        tk.Stream(model, batch_size=0)
    dropping = make(dropout=0.5).train()
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        tk.Stream(dropping)
    tk.Stream(dropping.eval())


def test_stream_saves_and_restores(tmp_path: Path, backend: str) -> None:
    model, video = make(), frames(6)
    stream = tk.Stream(model, batch_size=2)
    for t in range(3):
        stream.push(video[:, t])
    stream.save(tmp_path / "state.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]
    restored = tk.Stream(model, batch_size=2)
    restored.push(video[:, 5])
    restored.load(tmp_path / "state.safetensors")
    assert restored.frames == 3
    for t in range(3, 6):
        assert torch.equal(stream.push(video[:, t]), restored.push(video[:, t]))
    fresh = tk.Stream(model, batch_size=2)
    fresh.save(tmp_path / "start.safetensors")
    restored.load(tmp_path / "start.safetensors")
    assert (restored.push(video[:, 0]) - model(video[:, :1])).abs().max() <= OUTPUT


def test_stream_under_autocast_saves_and_restores(tmp_path: Path, backend: str) -> None:
    model, video = make(), frames(4)
    stream, restored = tk.Stream(model, batch_size=2), tk.Stream(model, batch_size=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for t in range(3):
            stream.push(video[:, t])
        stream.save(tmp_path / "state")
        restored.load(tmp_path / "state")
        assert restored.state.layers[0][1].dtype == torch.bfloat16
        assert restored.state.layers[0][0].dtype == torch.float32
        assert torch.equal(stream.push(video[:, 3]), restored.push(video[:, 3]))


def test_stream_refuses_a_state_of_another_dtype(tmp_path: Path) -> None:
    model = make()
    tk.Stream(model.double(), batch_size=2).save(tmp_path / "state")
    with pytest.raises(
        ValueError, match=r"Stream.load: .*state: state mean must have dtype float32, got float64"
    ):
        tk.Stream(model.float(), batch_size=2).load(tmp_path / "state")


def test_stream_refuses_foreign_states(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    model, video = make(), frames(2)
    stream = tk.Stream(model, batch_size=2)
    stream.push(video[:, 0])
    stream.save(path)
    for other, message in (
        (tk.Stream(make(depth=1), batch_size=2), r"a model with depth = 1 \(state: 2\)"),
        (tk.Stream(make(seed=5), batch_size=2), "got one of a model with other weights"),
        (tk.Stream(model, batch_size=3), "state must have batch size 3, got 2"),
    ):
        before = other.state
        with pytest.raises(ValueError, match=f"Stream.load: .*{message}"):
            other.load(path)
        assert other.frames == before.frames
    with pytest.raises(FileNotFoundError, match="found no file"):
        stream.load(tmp_path / "nowhere")
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        stream.load(path)
    safetensors.torch.save_file({"mean": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="got another safetensors file"):
        stream.load(path)


class _Replayed:
    """Stand-in for CUDA streams and graphs: a replay runs the captured step again, into the same logits."""

    replays = 0
    stream: tk.Stream

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait_stream(self, _: object) -> None:
        pass

    def replay(self) -> None:
        _Replayed.replays += 1
        graphed = _Replayed.stream._graphed
        graphed.logits.copy_(graphed._step())


def test_graphed_step_keeps_its_books(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What surrounds the CUDA graph (static buffers, warm-up, reset, load), with the graph itself replaced.

    It does not show that a capture works on a GPU.
    """
    for name in ("Stream", "CUDAGraph", "graph", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, _Replayed)
    model, video = make(), frames(7)
    stream = _Replayed.stream = tk.Stream(model, batch_size=2)
    stream._use_graph = True
    plain = tk.Stream(model, batch_size=2, cuda_graph=False)
    results = []
    for t in range(5):
        results.append(stream.push(video[:, t]))
        assert torch.equal(results[-1], plain.push(video[:, t]))
    assert _Replayed.replays == 4 and stream.frames == 5
    assert not torch.equal(results[-1], results[-2])  # logits are copies, not the buffer
    saved = stream.state
    stream.save(tmp_path / "state")
    stream.push(video[:, 5])
    assert torch.equal(saved.mean, plain.state.mean)  # a snapshot, not the buffers
    stream.load(tmp_path / "state")
    assert torch.equal(stream.push(video[:, 6]), plain.push(video[:, 6]))
    stream.reset(), plain.reset()
    for t in (3, 2, 1):
        assert torch.equal(stream.push(video[:, t]), plain.push(video[:, t]))
    stream.reset(), plain.reset()
    for t in (3, 2, 1):  # another dtype: captured again
        frame = (255 * video[:, t]).to(torch.uint8)
        assert torch.equal(stream.push(frame), plain.push(frame))
    assert stream._graphed.frame.dtype == torch.uint8
