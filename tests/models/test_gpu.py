"""The model on a GPU: the kernels' numbers, and a stream whose frames are replays of one CUDA graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import trecvit_kernels as tk
from trecvit_kernels import backends

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")


def _model(dtype: torch.dtype = torch.float32, **overrides: object) -> tk.TRecViT:
    torch.manual_seed(0)
    settings = {"depth": 2, "width": 96, "mlp_dim": 192, "num_heads": 3, "image_size": 64, "num_classes": 11}
    return tk.create_model("trecvit_tiny", **{**settings, **overrides}).to("cuda", dtype).eval()


def _video(frames: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, frames, 3, 64, 64, generator=generator).to("cuda", dtype)


def _exact(model: tk.TRecViT) -> tk.TRecViT:
    exact = tk.TRecViT(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    return exact


@pytest.mark.parametrize("complex_lru", (False, True), ids=("real", "complex"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("f32", "bf16"))
def test_values_and_gradients(dtype: torch.dtype, complex_lru: bool) -> None:
    """Logits and the gradients of all parameters: the worst error is at most twice that of the reference on the CPU."""
    model, video = _model(dtype, complex_lru=complex_lru), _video(18, dtype)
    target = torch.tensor([3, 7])

    def gradients(m: tk.TRecViT, clip: torch.Tensor) -> list[torch.Tensor]:
        logits = m(clip)
        loss = F.cross_entropy(logits, target.to(clip.device))
        return [logits.detach(), *torch.autograd.grad(loss, list(m.parameters()))]

    previous = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        got = gradients(model, video)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = previous
    with backends.use("reference"):
        exact = gradients(_exact(model), video.cpu().double())
        reference = gradients(_exact(model).to(dtype), video.cpu())

    def worst(found: list[torch.Tensor]) -> float:
        return max(
            ((f.cpu().double() - e).abs().max() / e.abs().max()).item()
            for f, e in zip(found, exact, strict=True)
        )

    assert worst(got) <= 2 * worst(reference) + 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("f32", "bf16"))
def test_graphed_stream(dtype: torch.dtype, tmp_path: Path) -> None:
    """The same logits as without a graph, also after a reset, a saved state and another dtype of frames."""
    model, video = _model(dtype), _video(7, dtype)
    stream, plain = (tk.Stream(model, batch_size=2, cuda_graph=graph) for graph in (True, False))

    def agree(frame: torch.Tensor) -> None:
        torch.testing.assert_close(stream.push(frame), plain.push(frame), rtol=1e-5, atol=1e-5)

    for t in range(5):
        agree(video[:, t])
    assert stream._graphed is not None
    stream.save(tmp_path / "state")
    stream.push(video[:, 5])
    stream.load(tmp_path / "state")
    agree(video[:, 6])
    for frames in (video, (255 * video).to(torch.uint8)):
        stream.reset(), plain.reset()
        for t in (3, 2, 1):
            agree(frames[:, t])


def test_stream_is_the_whole_clip() -> None:
    model, video = _model(), _video(6)
    stream = tk.Stream(model, batch_size=2)
    for frame in video.unbind(1):
        logits = stream.push(frame)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(video), rtol=1e-4, atol=1e-4)
