"""Classification: loss against the official one, measures, the training interface, the docs page."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trecvit_kernels as tk
from trecvit_kernels.models import load_official_checkpoint
from trecvit_kernels.tasks.classification import (
    ClassificationTask,
    check_labels,
    evaluate_views,
    multi_view,
    predict_views,
    top_k_accuracy,
    top_k_correct,
)
from trecvit_kernels.tasks.task import Task

TINY = {
    "width": 16, "depth": 1, "mlp_dim": 24, "num_heads": 2, "patch_size": 8, "image_size": 16, "head_width": 12,
}  # fmt: skip
DOCS = Path(__file__).resolve().parents[2] / "docs" / "classification.md"


def task(**options: Any) -> ClassificationTask:
    return ClassificationTask(**{"num_classes": 7, "overrides": TINY, **options})


def batch(videos: int = 4, frames: int = 3, size: int = 16) -> dict[str, Tensor]:
    video = torch.randint(0, 256, (videos, frames, 3, size, size), dtype=torch.uint8)
    return {"video": video, "label": torch.arange(videos) % 7}


# The loss


def test_loss_is_the_official_one(golden: Path, backend: str) -> None:
    """Without smoothing; loss and the gradient of the classifier."""
    with np.load(golden / "trecvit" / "trecvit_tiny.npz", allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    model = load_official_checkpoint(
        golden / "trecvit" / "trecvit_tiny_ckpt.npz", image_size=32, frames_per_clip=6
    )
    video = arrays["video"].movedim(-1, -3)
    plain = task(num_classes=model.config.num_classes, label_smoothing=0.0)
    loss, logged = plain.loss(model, {"video": video, "label": arrays["labels"]})
    assert abs(loss.item() - arrays["loss"].item()) <= 1e-6
    assert set(logged) == {"top1"} and not logged["top1"].requires_grad
    loss.backward()
    got, expected = model.cls_head.weight.grad.T, arrays["grads/decoder/cls_head/kernel"]
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    measures = plain.evaluate(model, [{"video": video, "label": arrays["labels"]}])
    assert abs(measures["cross_entropy"] - arrays["loss"].item()) <= 1e-6
    assert measures["top1"] == top_k_accuracy(arrays["logits"], arrays["labels"])


def test_label_smoothing() -> None:
    """Target 1 - s for the class and s / C for all, written out."""
    smoothed = task()
    assert smoothed.label_smoothing == 0.1
    model, data = smoothed.build(), batch()
    loss, _ = smoothed.loss(model, data)
    log = model(data["video"]).log_softmax(dim=1)
    target = torch.full((4, 7), 0.1 / 7)
    target[torch.arange(4), data["label"]] += 0.9
    torch.testing.assert_close(loss, -(target * log).sum(dim=1).mean())


def test_it_learns_a_few_videos() -> None:
    few = task(overrides={**TINY, "width": 32})
    model, data = few.build(), batch()
    data["video"] = (
        data["video"] // 4 + torch.tensor([0, 60, 120, 180], dtype=torch.uint8)[:, None, None, None, None]
    )
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(80):
        loss, logged = few.loss(model, data)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert logged["top1"] == 1.0 and losses[-1] < losses[0] / 2
    measures = few.evaluate(model, [data, data])
    assert measures["top1"] == measures["top5"] == 1.0 and measures["videos"] == 8


# The task


def test_task_is_what_the_trainer_expects() -> None:
    found = task()
    assert isinstance(found, Task) and found.needs == ("video", "label")
    torch.manual_seed(3)
    first = found.build()
    torch.manual_seed(3)
    again = found.build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert first.config == found.config and first.config.num_classes == 7


def test_evaluate_averages_over_videos_not_batches() -> None:
    found = task()
    model, data = found.build().train(), batch(5)
    parts = [
        {name: value[:4] for name, value in data.items()},
        {name: value[4:] for name, value in data.items()},
    ]
    whole, split = found.evaluate(model, [data]), found.evaluate(model, parts)
    assert model.training
    assert whole == pytest.approx(split, rel=1e-6)
    probabilities = model.eval()(data["video"], return_dict=True)["probs"]
    assert whole["top1"] == top_k_accuracy(probabilities, data["label"])
    assert whole["top5"] == top_k_accuracy(probabilities, data["label"], 5)


def test_pretrained_weights(tmp_path: Path) -> None:
    """An encoder of another image size, without a head, becomes a classifier; its views have its own size."""
    encoder = tk.TRecViT(
        task(overrides={**TINY, "image_size": 24, "head_width": 0}).config.replace(num_classes=0)
    )
    encoder.save_pretrained(tmp_path / "encoder")
    overrides = {name: value for name, value in TINY.items() if name != "image_size"}
    found = task(overrides={**overrides, "head_width": 0}, pretrained=str(tmp_path / "encoder"), test_crops=2)
    with pytest.warns(UserWarning, match="the classifier for 7 classes is new"):
        model = found.build()
    assert model.config.image_size == (24, 24) and model.cls_head.out_features == 7
    assert all(torch.equal(model.state_dict()[n], t) for n, t in encoder.state_dict().items())
    assert found.evaluate(model, [batch(size=30)])["videos"] == 4


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_evaluate_over_views(average: str) -> None:
    found = task(test_clips=3, test_crops=2, test_frames=4, test_stride=2, test_average=average)
    model = found.build().eval()
    video = torch.randint(0, 256, (3, 12, 3, 20, 30), dtype=torch.uint8)
    labels = torch.tensor([0, 3, 6])
    expected = predict_views(model, video, 3, 2, frames=4, stride=2, average=average)
    measures = found.evaluate(model, [{"video": video, "label": labels}])
    cross_entropy = -expected[torch.arange(3), labels].log().mean().item()
    assert measures["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert measures["top5"] == top_k_accuracy(expected, labels, 5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"num_classes": "7"}, TypeError, "num_classes must be an int, got str"),
        ({"model": "resnet"}, ValueError, "model must be one of .*trecvit_tiny.*, got 'resnet'"),
        ({"overrides": {"widht": 3}}, ValueError, "unknown field widht"),
        ({"overrides": {"width": 7}}, ValueError, "width must be a multiple of num_heads"),
        ({"overrides": {"num_classes": 3}}, ValueError, "overrides must not have num_classes"),
        ({"overrides": [1]}, TypeError, "overrides must be a table, got list"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"label_smoothing": "a"}, TypeError, "label_smoothing must be a float, got str"),
        ({"pretrained": "a", "vit": "b"}, ValueError, "at most one of pretrained and vit"),
        ({"vit": 3}, TypeError, "vit must be a text, got int"),
        ({"vit_options": {"a": 1}}, ValueError, "vit_options need vit"),
        ({"test_clips": 4}, ValueError, "test_frames must be given with test_clips = 4"),
        ({"test_crops": 0}, ValueError, "test_crops must be at least 1, got 0"),
        (
            {"test_average": "votes"},
            ValueError,
            "test_average must be one of probabilities, logits, got 'votes'",
        ),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        task(**options)


def test_bad_batches_are_refused() -> None:
    found = task()
    model, data = found.build(), batch()
    with pytest.raises(ValueError, match=r"loss: label must lie in 0 to 6, got 7 at 1, -1 at 3"):
        found.loss(model, {**data, "label": torch.tensor([0, 7, 2, -1])})
    with pytest.raises(ValueError, match=r"evaluate: label must lie in 0 to 6, got 9 at 0"):
        found.evaluate(model, [{**data, "label": torch.tensor([9, 0, 2, 1])}])
    with pytest.raises(TypeError, match=r"label must have dtype .*int64, got float32"):
        found.loss(model, {**data, "label": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"label must have shape \(4,\), got \(3,\)"):
        found.loss(model, {**data, "label": torch.tensor([0, 1, 2])})
    with pytest.raises(ValueError, match="batch must have video and label, missing label"):
        found.loss(model, {"video": data["video"]})
    with pytest.raises(ValueError, match="at least one video, got none"):
        found.evaluate(model, [])
    with pytest.raises(ValueError, match="got 7 at 0, 8 at 1, 9 at 2, 10 at 3, 11 at 4 and 2 more"):
        check_labels("there", torch.arange(7, 14), 7)


# Top-k


def test_top_k_is_membership_in_the_largest() -> None:
    scores, labels = torch.randn(64, 9), torch.randint(0, 9, (64,))
    for k in (1, 2, 5, 9):
        expected = (scores.topk(k, dim=1).indices == labels[:, None]).any(dim=1).double()
        assert torch.equal(top_k_correct(scores, labels, k), expected)
        assert top_k_accuracy(scores, labels, k) == expected.mean().item()


def test_top_k_beyond_the_classes_is_all() -> None:
    scores = torch.randn(8, 3)
    assert top_k_accuracy(scores, torch.arange(8) % 3, 5) == 1.0
    assert task(num_classes=2).evaluate(task(num_classes=2).build(), [{**batch(2)}])["top5"] == 1.0


def test_ties_are_shared() -> None:
    scores = torch.tensor([[3.0, 3.0, 1.0, 0.0], [2.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    labels = torch.tensor([1, 3, 2])
    assert top_k_correct(scores, labels, 1).tolist() == [1 / 2, 0.0, 1 / 4]
    assert top_k_correct(scores, labels, 2).tolist() == [1.0, 1 / 3, 1 / 2]
    constant = torch.full((12, 6), 0.5)
    assert top_k_accuracy(constant, torch.zeros(12, dtype=torch.long), 1) == pytest.approx(1 / 6)
    infinite = torch.tensor([[-math.inf, 0.0, -math.inf]])
    assert top_k_correct(infinite, torch.tensor([1])).tolist() == [1.0]


def test_top_k_refuses() -> None:
    scores, labels = torch.randn(2, 3), torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"scores must not be NaN, got NaN in rows \[1\]"):
        top_k_correct(torch.tensor([[0.0, 1.0], [math.nan, 1.0]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels must lie in 0 to 2, got 3 at 1"):
        top_k_correct(scores, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_k_correct(scores, labels, 0)
    with pytest.raises(TypeError, match="scores must be floating"):
        top_k_correct(scores.long(), labels)
    with pytest.raises(ValueError, match=r"scores must have shape \(B, C\)"):
        top_k_correct(torch.empty(0, 3), labels[:0])


# Views


def numbered(frames: int, height: int, width: int) -> Tensor:
    """Every pixel says where it is: red its frame, green its row, blue its column."""
    video = torch.empty(frames, 3, height, width)
    video[:, 0] = torch.arange(frames)[:, None, None]
    video[:, 1] = torch.arange(height)[:, None]
    video[:, 2] = torch.arange(width)
    return video


def test_views_are_where_they_should_be() -> None:
    views = multi_view(numbered(20, 6, 11), clips=4, crops=3, frames=3, stride=2, size=6)
    assert views.shape == (12, 3, 3, 6, 6)
    first_frames = views[:, :, 0, 0, 0].tolist()  # 20 frames, a clip spans 5: starts 0, 5, 10, 15
    assert first_frames == [[s, s + 2, s + 4] for s in (0, 5, 10, 15) for _ in range(3)]
    assert views[:, 0, 2, 0, 0].tolist() == [0, 2, 5] * 4  # left, centre, right of 11 columns
    assert (views[:, :, 1] == torch.arange(6.0)[:, None]).all()


def test_crops_of_a_tall_video_and_single_views() -> None:
    assert multi_view(numbered(3, 10, 4), 1, 3, frames=3, size=4)[:, 0, 1, 0, 0].tolist() == [0, 3, 6]
    single = multi_view(numbered(9, 10, 4), 1, 1, frames=3, size=4)
    assert single[0, 0, :, 0, 0].tolist() == [3, 3, 0]  # the middle of time and space
    oblong = multi_view(numbered(2, 8, 10), 1, 2, frames=2, size=(8, 6))
    assert oblong.shape == (2, 2, 3, 8, 6) and oblong[:, 0, 2, 0, 0].tolist() == [0, 4]


def test_views_are_scaled_by_the_shorter_side() -> None:
    video = torch.randint(0, 256, (2, 4, 3, 40, 60), dtype=torch.uint8)
    views = multi_view(video, 2, 3, frames=2, size=20)
    assert views.shape == (2, 6, 2, 3, 20, 20) and views.dtype == torch.uint8
    scaled = torch.nn.functional.interpolate(
        video.flatten(0, 1).float(), size=(20, 30), mode="bilinear", antialias=True
    )
    scaled = scaled.round().to(torch.uint8).unflatten(0, (2, 4))
    assert torch.equal(views[:, 1], scaled[:, :2, :, :, 5:25]) and torch.equal(
        views[:, 5], scaled[:, 2:, :, :, 10:]
    )
    assert torch.equal(views[1], multi_view(video[1], 2, 3, frames=2, size=20))
    assert multi_view(video, 1, 1, frames=4, size=(37, 61)).shape == (2, 1, 4, 3, 37, 61)  # enlarged


def test_short_videos() -> None:
    video = numbered(3, 4, 4)
    with pytest.raises(ValueError, match=r"at least 7 frames \(4, 2 apart\), got 3"):
        multi_view(video, 2, 1, frames=4, stride=2, size=4)
    looped = multi_view(video, 2, 1, frames=4, stride=2, size=4, short="loop")
    assert looped[:, :, 0, 0, 0].tolist() == [[0, 2, 1, 0]] * 2


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("frames_per_clip", [None, 2])
def test_prediction_is_the_average_over_views(average: str, frames_per_clip: int | None) -> None:
    model = task(overrides={**TINY, "frames_per_clip": frames_per_clip}).build().eval()
    with torch.no_grad():
        model.cls_head.weight.mul_(20)  # far enough from linear that the two averages differ
    video = torch.randint(0, 256, (2, 9, 3, 16, 26), dtype=torch.uint8)
    result = predict_views(model, video, 3, 2, frames=4, average=average, views_per_batch=5)
    views = multi_view(video, 3, 2, frames=4, size=16)
    outputs = [model(view, return_dict=True) for view in views.unbind(1)]
    if average == "probabilities":
        expected = torch.stack([output["probs"] for output in outputs]).mean(dim=0)
    else:
        expected = torch.stack([output["logits"] for output in outputs]).mean(dim=0).softmax(dim=1)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(
        predict_views(model, video[1], 3, 2, frames=4, average=average), result[1], atol=1e-6, rtol=1e-5
    )
    other = predict_views(
        model, video, 3, 2, frames=4, average="logits" if average == "probabilities" else "probabilities"
    )
    assert (result - other).abs().max() > 1e-4


def test_evaluation_over_whole_videos() -> None:
    model = task().build().train()
    videos = [torch.randint(0, 256, (n, 3, 16, w), dtype=torch.uint8) for n, w in [(5, 16), (8, 20), (6, 31)]]
    model.eval()
    best = [predict_views(model, video, 2, 3, frames=4).argmax().item() for video in videos]
    model.train()
    items = [{"video": v, "label": torch.tensor(b)} for v, b in zip(videos, best)]
    items[0]["label"] = (best[0] + 1) % 7  # a plain int, and wrong
    result = evaluate_views(model, iter(items), 2, 3, frames=4)
    assert result["top1"] == pytest.approx(2 / 3) and result["videos"] == 3 and model.training
    items[1]["label"] = torch.tensor(7)
    with pytest.raises(ValueError, match="label of item 1 must lie in 0 to 6, got 7"):
        evaluate_views(model, items, 2, 3, frames=4)
    with pytest.raises(ValueError, match="item 0 must have video and label, missing label"):
        evaluate_views(model, [{"video": videos[0]}], frames=4)
    with pytest.raises(ValueError, match="at least one video, got none"):
        evaluate_views(model, [], frames=4)


def test_views_refuse() -> None:
    video, model = numbered(4, 4, 4), task().build()
    for options, words in [
        ({"clips": 0}, "clips must be at least 1"),
        ({"size": (1, 2, 3)}, "size must be one number or"),
        ({"short": "pad"}, "short must be one of error, loop, got 'pad'"),
    ]:
        with pytest.raises(ValueError, match=words):
            multi_view(video, **{"frames": 2, "size": 4, **options})
    with pytest.raises(ValueError, match=r"video must have shape \(T, 3, H, W\)"):
        multi_view(video[:, :2], frames=2)
    with pytest.raises(ValueError, match="frames must be given for a model whose frames_per_clip is None"):
        predict_views(model, video)
    with pytest.raises(ValueError, match="model must have a classifier"):
        predict_views(tk.TRecViT(model.config.replace(num_classes=0)), video, frames=2)
    with pytest.raises(ValueError, match="average must be one of probabilities, logits, got 'max'"):
        predict_views(model, video, frames=2, average="max")


def test_docs_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, DOCS.name, "exec"), names)
    assert names["probabilities"].shape == (10,)
    assert set(names["result"]) == {"top1", "top5", "videos"}
    assert not any(".space." in name for name in names["report"].fresh)
