"""Classification for the training program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels._checks import check_shape
from trecvit_kernels.models import SIZES, TRecViTConfig, create_model
from trecvit_kernels.tasks.classification.metrics import check_labels, top_k_correct
from trecvit_kernels.tasks.classification.views import AVERAGES, average_views, multi_view
from trecvit_kernels.tasks.classification.vit import initialise_from_vit
from trecvit_kernels.tasks.task import Batch, Task, check_image_size

_WHERE = "ClassificationTask"
_VIEWS_AT_ONCE = 4


@dataclass(frozen=True)
class ClassificationTask(Task):
    """A TRecViT classifier, cross-entropy with label smoothing, top-1 and top-5.

    A batch holds ``video`` (B, T, 3, H, W) and ``label`` (B,), integer, in [0, num_classes).

    Attributes:
        num_classes: of the classifier, at least 2.
        model: a name of ``create_model``. overrides: other fields of ``TRecViTConfig``.
        label_smoothing: in [0, 1); the paper trains with 0.1.
        pretrained: None, or what ``create_model`` takes: a folder of ``save_pretrained``, a Hub id, an official .npz.
        vit: None, or the file of an image ViT that ``initialise_from_vit`` reads; vit_options: its options.
        test_clips, test_crops, test_stride: of ``multi_view``, at evaluation. test_frames: of a view; None (with one
            clip alone): all that ``test_stride`` leaves. With 1, 1, 1 and None videos are evaluated as they come.
        test_average: "probabilities" or "logits", as in ``predict_views``.

    Raises:
        TypeError, ValueError: a field of a wrong type or value, or fields that contradict each other.
    """

    num_classes: int
    model: str = "trecvit_tiny"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.1
    pretrained: str | None = None
    vit: str | None = None
    vit_options: Mapping[str, Any] = field(default_factory=dict)
    test_clips: int = 1
    test_crops: int = 1
    test_stride: int = 1
    test_frames: int | None = None
    test_average: str = "probabilities"

    needs = ("video", "label")

    def __post_init__(self) -> None:
        frames = {} if self.test_frames is None else {"test_frames": 1}
        least = {"num_classes": 2, "test_clips": 1, "test_crops": 1, "test_stride": 1, **frames}
        for name, smallest in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{_WHERE}: {name} must be an int, got {type(value).__name__}")
            if value < smallest:
                raise ValueError(f"{_WHERE}: {name} must be at least {smallest}, got {value}")
        for name in ("overrides", "vit_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{_WHERE}: {name} must be a table, got {type(getattr(self, name)).__name__}")
        for name in ("pretrained", "vit"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise TypeError(f"{_WHERE}: {name} must be a text, got {type(getattr(self, name)).__name__}")
        smoothing = self.label_smoothing
        if isinstance(smoothing, bool) or not isinstance(smoothing, (int, float)):
            raise TypeError(f"{_WHERE}: label_smoothing must be a float, got {type(smoothing).__name__}")
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"{_WHERE}: label_smoothing must lie in [0, 1), got {smoothing}")
        if self.model not in SIZES:
            raise ValueError(f"{_WHERE}: model must be one of {', '.join(SIZES)}, got {self.model!r}")
        if "num_classes" in self.overrides:
            raise ValueError(f"{_WHERE}: overrides must not have num_classes, which has a field of its own")
        if self.pretrained is not None and self.vit is not None:
            raise ValueError(f"{_WHERE}: at most one of pretrained and vit must be given, got both")
        if self.vit_options and self.vit is None:
            raise ValueError(f"{_WHERE}: vit_options need vit, got None")
        if self.test_frames is None and self.test_clips > 1:
            raise ValueError(
                f"{_WHERE}: test_frames must be given with test_clips = {self.test_clips}, got None"
            )
        if self.test_average not in AVERAGES:
            raise ValueError(
                f"{_WHERE}: test_average must be one of {', '.join(AVERAGES)}, got {self.test_average!r}"
            )
        _ = self.config  # refuses overrides that do not fit

    @property
    def config(self) -> TRecViTConfig:
        """Of the model that ``build`` makes (``pretrained`` weights may bring their own)."""
        return SIZES[self.model].replace(_WHERE, num_classes=self.num_classes, **self.overrides)

    @property
    def classes(self) -> int:
        return self.num_classes

    def check_clips(self, prefix: str, frames: int, size: tuple[int, int], *, training: bool) -> None:
        """Several views of a video are cut to size by the task itself."""
        views = (self.test_clips, self.test_crops, self.test_stride, self.test_frames)
        if training or views == (1, 1, 1, None):
            check_image_size(prefix, self.config.image_size, size)

    def build(self) -> nn.Module:
        network = create_model(
            self.model, num_classes=self.num_classes, pretrained=self.pretrained, **self.overrides
        )
        if self.vit is not None:
            initialise_from_vit(network, self.vit, **self.vit_options)
        return network

    def loss(
        self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with label smoothing, averaged over the batch; logged is the batch's top-1 (0 to 1).

        With smoothing s the target of a video is 1 - s for its class and s / num_classes for every class (Szegedy et
        al., arXiv 1512.00567, section 7). Nothing is drawn: ``generator`` is not used.

        Raises:
            TypeError, ValueError: labels of a wrong type, shape or range (those out of range are named).
        """
        labels = self._labels("loss", batch)
        logits = model(batch["video"])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        value = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        # Not top_k_correct, which refuses NaN: the training program has its own word for a loss that is not finite.
        return value, {"top1": (logits.detach().argmax(dim=1) == labels).float().mean()}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Measures over all videos of all batches, on the device of the model.

        Returns:
            ``top1``, ``top5`` (0 to 1; ties as in ``top_k_correct``), ``cross_entropy`` (nats, without smoothing, of
            the probabilities that the views average to), ``videos`` (how many).

        Raises:
            TypeError, ValueError: as ``loss`` and ``multi_view``; no batches.
        """
        device = next(model.parameters()).device
        sums, count, was_training = torch.zeros(3, dtype=torch.float64), 0, model.training
        model.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    labels = self._labels("evaluate", batch).to(device)
                    scores = self._probabilities(model, batch["video"].to(device))
                    tiny = torch.finfo(scores.dtype).tiny  # a probability of 0 may be rounding
                    of_labels = scores.gather(1, labels[:, None])[:, 0].clamp_min(tiny).double()
                    values = (
                        top_k_correct(scores, labels, 1),
                        top_k_correct(scores, labels, 5),
                        -of_labels.log(),
                    )
                    sums += torch.stack([value.sum() for value in values]).cpu()
                    count += len(labels)
        finally:
            model.train(was_training)
        if count == 0:
            raise ValueError(f"{_WHERE}.evaluate: batches must hold at least one video, got none")
        top1, top5, cross_entropy = (sums / count).tolist()
        return {"top1": top1, "top5": top5, "cross_entropy": cross_entropy, "videos": float(count)}

    def _probabilities(self, model: nn.Module, video: Tensor) -> Tensor:
        """(B, num_classes), averaged over the views of each video; at least float32."""
        if (self.test_clips, self.test_crops, self.test_stride, self.test_frames) == (1, 1, 1, None):
            scores = model(video, return_dict=True)["probs"]
            return scores if scores.dtype == torch.float64 else scores.float()
        frames = self.test_frames or (video.shape[1] - 1) // self.test_stride + 1
        size = getattr(model, "config", self.config).image_size  # pretrained weights may bring another one
        rows = []
        for one in video:  # the views of a single video are memory enough
            views = multi_view(
                one, self.test_clips, self.test_crops, frames=frames, stride=self.test_stride, size=size
            )
            rows.append(average_views(model, views, self.test_average, _VIEWS_AT_ONCE))
        return torch.stack(rows)

    def _labels(self, method: str, batch: Batch) -> Tensor:
        """Labels as int64 (B,), checked."""
        where = f"{_WHERE}.{method}"
        if missing := [name for name in self.needs if name not in batch]:
            raise ValueError(
                f"{where}: batch must have {' and '.join(self.needs)}, missing {', '.join(missing)}"
            )
        labels = batch["label"]
        check_labels(where, labels, self.num_classes, "label")
        check_shape(where, "label", labels, batch["video"].shape[:1])
        return labels.long()
