"""Memorisation: the frame that is drawn, PSNR by hand, clips of several lengths, every temporal module."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from trecvit_kernels.models import TRecViTConfig
from trecvit_kernels.modules.temporal import CHOICES
from trecvit_kernels.tasks.memorisation import MemorisationTask, Memoriser, psnr

PAGE = Path(__file__).resolve().parents[2] / "docs" / "memorisation.md"
OPTIONS: dict[str, Any] = {
    "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "patch_size": 8, "image_size": 16, "pool": "mean",
    "posemb": "sincos2d",
}  # fmt: skip


def _task(**fields: Any) -> MemorisationTask:
    options = {**OPTIONS, **fields.pop("overrides", {})}
    return MemorisationTask(**{"k": 2, **fields}, overrides=options)


def _clips(batch: int, frames: int) -> torch.Tensor:
    """A colour per frame and patch, so that frames are easy to tell apart."""
    return torch.rand(batch, frames, 3, 2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_streaming_draws_what_the_clip_draws(name: str, pool: str) -> None:
    model = _task(overrides={"temporal": name, "pool": pool}, decoder_depth=1).build().double().eval()
    video = _clips(2, 6).double()
    with torch.no_grad():
        state = model.init_state(2)
        for t in range(6):
            drawn, state = model.step(video[:, t], state)
            torch.testing.assert_close(drawn, model(video[:, : t + 1]), rtol=1e-10, atol=1e-10)
    assert drawn.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", CHOICES)
def test_gradient_reaches_the_frame_to_remember(name: str) -> None:
    """Of the frames before the last it does so through the temporal module alone."""
    task = _task(overrides={"temporal": name})
    model, video = task.build(), _clips(1, 5).requires_grad_()
    loss, logged = task.loss(model, {"video": video})
    loss.backward()
    for name_, parameter in model.named_parameters():
        assert parameter.grad is not None, name_
    assert logged["psnr"].shape == () and not logged["psnr"].requires_grad
    other = video.detach().requires_grad_()
    model(other).sum().backward()
    assert other.grad is not None
    assert bool(other.grad[:, 2].abs().sum() > 0) == (name != "none")


def test_last_output_has_the_pixels_in_place() -> None:
    """A last layer that copies its input draws the patches where they were."""
    model = Memoriser(TRecViTConfig(**OPTIONS))
    frame = torch.rand(2, 3, 16, 16)
    patches = model.encoder.patches(frame.unsqueeze(1))[:, 0]
    with torch.no_grad():
        model.to_pixels.weight.zero_()
        model.to_pixels.bias.copy_(patches[0, 3])
        drawn = model(frame.unsqueeze(1))
    torch.testing.assert_close(drawn[0, :, 8:, 8:], frame[0, :, 8:, 8:])
    torch.testing.assert_close(drawn[0, :, :8, :8], frame[0, :, 8:, 8:])


def test_which_frame_is_meant() -> None:
    video = _clips(1, 6)
    assert torch.equal(_task(k=2).target_frame(video), video[:, 3])
    assert torch.equal(_task(k=0).target_frame(video), video[:, 5])
    assert torch.equal(_task(k=5).target_frame(video), video[:, 0])
    assert torch.equal(_task(k=2, target="fixed").target_frame(video), video[:, 2])
    for target in ("before_last", "fixed"):
        with pytest.raises(ValueError, match=r"video must have at least k \+ 1 = 7 frames .*, got 6"):
            _task(k=6, target=target).loss(_task().build(), {"video": video})


def test_psnr_by_hand() -> None:
    target = torch.zeros(4, 3, 2, 2)
    prediction = torch.stack([torch.full((3, 2, 2), value) for value in (0.1, 1.0, 0.0, -3.0)])
    torch.testing.assert_close(psnr(prediction, target), torch.tensor([20.0, 0.0, 100.0, 100.0]))
    half = target.clone()
    half[0, 0] = 0.2  # a third of the values: mse = 0.04 / 3
    assert psnr(half, target)[0].item() == pytest.approx(10 * math.log10(75), rel=1e-5)
    with pytest.raises(
        ValueError, match=r"psnr: prediction must have shape \(4, 3, 2, 2\), got \(3, 3, 2, 2\)"
    ):
        psnr(prediction[:3], target)


def test_evaluation_over_clips_of_several_lengths() -> None:
    task = _task(k=1)
    model = task.build().train()
    batches = [
        {"video": (255 * _clips(2, 3)).to(torch.uint8)},
        {"video": _clips(1, 8)},
        {"video": _clips(3, 3)},
    ]
    result = task.evaluate(model, batches)
    assert list(result) == ["psnr", "psnr_of_last_frame", "l2_error", "videos", "psnr_at_3", "psnr_at_8"]
    assert model.training and result["videos"] == 6
    assert result["psnr"] == pytest.approx((5 * result["psnr_at_3"] + result["psnr_at_8"]) / 6)
    with torch.no_grad():
        drawn = model.eval()(batches[1]["video"])
    assert result["psnr_at_8"] == pytest.approx(psnr(drawn, batches[1]["video"][:, 6]).item(), rel=1e-5)
    still = _clips(1, 1).expand(1, 4, 3, 16, 16)
    assert task.evaluate(model, [{"video": still}])["psnr_of_last_frame"] == 100


@pytest.mark.parametrize("name", ["gated_lru", "none"])
def test_learns_to_remember(name: str) -> None:
    """Trained on three frames, tested on six too; without a temporal module no better than grey, 10.8 dB.

    Values are uniform in [0, 1] and independent: always saying 0.5 has a mean squared error of 1/12.
    """
    task = _task(k=1, overrides={"depth": 1, "temporal": name})
    model = task.build()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss, _ = task.loss(model, {"video": _clips(16, 3)})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    result = task.evaluate(model, [{"video": _clips(64, 3)}, {"video": _clips(64, 6)}])
    if name == "none":
        assert result["psnr"] < 12
    else:
        assert result["psnr_at_3"] > 20 and result["psnr_at_6"] > 16


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"target": "first"}, ValueError, "target must be one of before_last, fixed, got 'first'"),
        ({"k": -1}, ValueError, "k must be at least 0, got -1"),
        ({"k": 1.0}, TypeError, "k must be an int, got float"),
        ({"model": "vit"}, ValueError, "model must be one of trecvit_tiny, .*, got 'vit'"),
        ({"overrides": {"temporal": "gru"}}, ValueError, "temporal must be one of gated_lru, .*, got 'gru'"),
        ({"overrides": {"kernel": 1}}, ValueError, "MemorisationTask: unknown field kernel; known are width"),
        ({"overrides": 3}, TypeError, "overrides must be a mapping, got int"),
        ({"decoder_depth": True}, TypeError, "decoder_depth must be an int, got bool"),
    ],
)
def test_options_that_do_not_fit(fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MemorisationTask(**fields)


def test_batches_that_do_not_fit() -> None:
    task = _task()
    model = task.build()
    with pytest.raises(ValueError, match="batch must have video, got label"):
        task.loss(model, {"label": torch.zeros(1)})
    with pytest.raises(ValueError, match="batches must hold at least one video, got none"):
        task.evaluate(model, [])
    with pytest.raises(TypeError, match="model must be a Memoriser, got Linear"):
        task.loss(torch.nn.Linear(1, 1), {"video": _clips(1, 4)})
    with pytest.raises(ValueError, match="video must have 2 x 2 patches"):
        task.loss(model, {"video": torch.rand(1, 4, 3, 32, 32)})


def test_docs_run() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["drawn"].shape == (2, 3, 64, 64) and {"psnr_at_16", "psnr_at_48"} <= set(names["result"])
