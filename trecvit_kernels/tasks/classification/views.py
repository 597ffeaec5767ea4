"""Several views of a video (clips in time, crops in space), and predictions that are averaged over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels._checks import check_dtype, check_tensor
from trecvit_kernels.models import TRecViT
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.tasks.classification.metrics import check_labels, top_k_correct

AVERAGES = ("probabilities", "logits")
SHORT = ("error", "loop")


def multi_view(
    video: Tensor,
    clips: int = 4,
    crops: int = 3,
    *,
    frames: int,
    stride: int = 1,
    size: int | tuple[int, int] = 224,
    short: str = "error",
) -> Tensor:
    """clips × crops views of a video, as it is tested in the literature (SlowFast, arXiv 1812.03982, section 4).

    In time: ``clips`` clips of ``frames`` frames, ``stride`` apart, whose starts are spread evenly from the first frame
    to the last from which a clip fits, both included; a single clip is the middle one. In space: frames are scaled
    (bilinear, antialiased when shrinking) until they just cover ``size``, and ``crops`` crops are spread evenly along
    the side that is too long, both ends included (three: left, centre, right, or top, centre, bottom); a single crop is
    the central one. A video whose proportions are those of ``size`` has nothing to spread over: its crops are alike.

    Args:
        video: (T, 3, H, W) or (B, T, 3, H, W), uint8 or floating.
        clips, crops: at least 1 each.
        frames: frames of a clip. stride: distance of two of them in the video.
        size: (height, width) of a view in pixels; an int means a square.
        short: what to do with a video of fewer than (frames - 1) * stride + 1 frames: "error" refuses it, "loop" starts
            again from its first frame whenever it ends.

    Returns:
        (clips * crops, frames, 3, height, width), with B before that if the video has it; the clip varies slower than
        the crop. Dtype of the video.

    Raises:
        TypeError, ValueError: an argument of a wrong type, shape or value, or a video that is too short.
    """
    where = "multi_view"
    check_tensor(where, "video", video)
    check_dtype(where, "video", video, (*REAL, torch.uint8))
    if video.ndim not in (4, 5) or video.shape[-3] != 3 or 0 in video.shape:
        shape = tuple(video.shape)
        raise ValueError(f"{where}: video must have shape (T, 3, H, W) or (B, T, 3, H, W), got {shape}")
    for name, value in {"clips": clips, "crops": crops, "frames": frames, "stride": stride}.items():
        _check_int(where, name, value)
    height, width = _pair(where, size)
    if short not in SHORT:
        raise ValueError(f"{where}: short must be one of {', '.join(SHORT)}, got {short!r}")
    total, span = video.shape[-4], (frames - 1) * stride + 1
    if total < span and short == "error":
        raise ValueError(
            f"{where}: video must have at least {span} frames ({frames}, {stride} apart), got {total}"
        )

    starts = torch.tensor(_spread(max(total - span, 0), clips))
    indices = (starts[:, None] + torch.arange(frames) * stride) % total  # (clips, frames)
    wanted, places = indices.unique(return_inverse=True)  # clips may overlap: each frame is scaled once
    pictures = _cover(video.index_select(-4, wanted.to(video.device)), height, width)
    down, across = pictures.shape[-2] - height, pictures.shape[-1] - width
    views = [
        pictures[..., top : top + height, left : left + width]
        for top, left in zip(_spread(down, crops), _spread(across, crops))
    ]
    chosen = torch.stack(views, dim=-5)  # ([B,] crops, wanted frames, 3, height, width)
    chosen = chosen.index_select(-4, places.flatten().to(video.device))
    chosen = chosen.unflatten(-4, (clips, frames)).transpose(-6, -5)  # ([B,] clips, crops, frames, ...)
    return chosen.flatten(-6, -5)


def predict_views(
    model: TRecViT,
    video: Tensor,
    clips: int = 4,
    crops: int = 3,
    *,
    frames: int | None = None,
    stride: int = 1,
    average: str = "probabilities",
    short: str = "error",
    views_per_batch: int = 4,
) -> Tensor:
    """Class probabilities of whole videos, averaged over ``multi_view``.

    Args:
        model: a TRecViT with a classifier; it runs as it is (call ``eval()`` first), without gradients.
        video: (T, 3, H, W) or (B, T, 3, H, W), uint8 or floating in [0, 1], of any H and W, on any device.
        clips, crops, stride, short: as in ``multi_view``; a view has the size of ``model.config.image_size``.
        frames: of a view; None: ``model.config.frames_per_clip``, which must not be None then.
        average: "probabilities" averages the softmax of the views, as the official TRecViT averages its clips;
            "logits" averages the logits and takes the softmax of that.
        views_per_batch: views of a video that are computed together; it bounds memory and does not change the result
            beyond rounding.

    Returns:
        (num_classes,), or (B, num_classes), at least float32.

    Raises:
        TypeError, ValueError: as ``multi_view``; a model without a classifier, an unknown average, no frames given.
    """
    where = "predict_views"
    if not isinstance(model, TRecViT):
        raise TypeError(f"{where}: model must be a TRecViT, got {type(model).__name__}")
    if model.cls_head is None:
        raise ValueError(f"{where}: model must have a classifier, got num_classes = 0")
    if average not in AVERAGES:
        raise ValueError(f"{where}: average must be one of {', '.join(AVERAGES)}, got {average!r}")
    _check_int(where, "views_per_batch", views_per_batch)
    frames = model.config.frames_per_clip if frames is None else frames
    if frames is None:
        raise ValueError(f"{where}: frames must be given for a model whose frames_per_clip is None, got None")
    views = multi_view(
        video, clips, crops, frames=frames, stride=stride, size=model.config.image_size, short=short
    )
    stacked = views if video.ndim == 5 else views[None]
    with torch.no_grad():
        rows = [average_views(model, of_one, average, views_per_batch) for of_one in stacked]
    return torch.stack(rows) if video.ndim == 5 else rows[0]


def average_views(model: nn.Module, views: Tensor, average: str, views_per_batch: int) -> Tensor:
    """Class probabilities (num_classes,) from views (V, T, 3, h, w); the model is a TRecViT or wraps one."""
    device, name = next(model.parameters()).device, "probs" if average == "probabilities" else "logits"
    rows = [model(some.to(device), return_dict=True)[name] for some in views.split(views_per_batch)]
    scores = torch.cat(rows)
    mean = (scores if scores.dtype == torch.float64 else scores.float()).mean(dim=0)
    return mean if average == "probabilities" else mean.softmax(dim=0)


def evaluate_views(
    model: TRecViT, items: Iterable[Mapping[str, Any]], clips: int = 4, crops: int = 3, **options: Any
) -> dict[str, float]:
    """Top-1 and top-5 accuracy over whole videos, each predicted by ``predict_views``.

    Args:
        model: a TRecViT with a classifier. It runs in evaluation mode and is put back into the mode that it was in.
        items: dictionaries with ``video`` (T, 3, H, W) and ``label`` (an integer tensor () or an int); videos may
            differ in length and size. Read once, one video in memory at a time.
        clips, crops, options: as in ``predict_views``.

    Returns:
        ``top1`` and ``top5`` (0 to 1; ties as in ``top_k_correct``), ``videos`` (how many there were).

    Raises:
        TypeError, ValueError: as ``predict_views``; a label that is out of range, with the number of its
            item; no items.
    """
    where, was_training = "evaluate_views", model.training
    model.eval()
    try:
        first = fifth = 0.0
        count = 0
        for item in items:
            if missing := [name for name in ("video", "label") if name not in item]:
                raise ValueError(
                    f"{where}: item {count} must have video and label, missing {', '.join(missing)}"
                )
            label = torch.as_tensor(item["label"]).reshape(-1)[:1]
            check_labels(where, label, model.config.num_classes, f"label of item {count}")
            if item["video"].ndim != 4:
                raise ValueError(
                    f"{where}: video of item {count} must have shape (T, 3, H, W), got {tuple(item['video'].shape)}"
                )
            scores = predict_views(model, item["video"], clips, crops, **options)[None].cpu()
            first += top_k_correct(scores, label.cpu(), 1).item()
            fifth += top_k_correct(scores, label.cpu(), 5).item()
            count += 1
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError(f"{where}: items must hold at least one video, got none")
    return {"top1": first / count, "top5": fifth / count, "videos": float(count)}


def _spread(room: int, count: int) -> list[int]:
    """``count`` offsets in [0, room], evenly spread with both ends; a single one is in the middle."""
    return [room // 2] if count == 1 else [i * room // (count - 1) for i in range(count)]


def _cover(pictures: Tensor, height: int, width: int) -> Tensor:
    """(..., 3, H, W) scaled until it just covers height × width; in the dtype of ``pictures``."""
    old = pictures.shape[-2:]
    if old == (height, width):
        return pictures
    scale = max(height / old[0], width / old[1])
    new = max(height, round(old[0] * scale)), max(width, round(old[1] * scale))
    flat = pictures.flatten(0, -4)
    if new != tuple(old):
        wide = flat if flat.dtype == torch.float64 else flat.float()
        scaled = F.interpolate(wide, size=new, mode="bilinear", align_corners=False, antialias=True)
        flat = (
            scaled.round().clamp(0, 255).to(flat.dtype)
            if flat.dtype == torch.uint8
            else scaled.to(flat.dtype)
        )
    return flat.unflatten(0, pictures.shape[:-3])


def _pair(where: str, size: object) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{where}: size must be one number or (height, width), got {size}")
    for value in pair:
        _check_int(where, "size", value)
    return int(pair[0]), int(pair[1])


def _check_int(where: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where}: {name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{where}: {name} must be at least 1, got {value}")
