"""Memorisation for the training program."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels._checks import check_tensor
from trecvit_kernels.models import SIZES, TRecViTConfig
from trecvit_kernels.tasks.memorisation.metrics import psnr
from trecvit_kernels.tasks.memorisation.model import Memoriser
from trecvit_kernels.tasks.task import Batch, Task, check_image_size

_WHERE = "MemorisationTask"
TARGETS = ("before_last", "fixed")


@dataclass(frozen=True)
class MemorisationTask(Task):
    """Draw a frame of the past after the last one: how much, and for how long, a temporal module remembers.

    Trains and evaluates on clips of any length, not all of one: the paper trains on 64 frames and tests on 96.

    Attributes:
        target: which frame. "before_last": the k-th before the last. "fixed": frame number k, from 0.
        k: see there; 0 with "before_last" is the last frame itself, nothing to be remembered.
        model: a size out of ``trecvit_kernels.models.SIZES``. overrides: other fields of ``TRecViTConfig``, such as
            ``temporal``.
        decoder_depth: as in ``Memoriser``.

    Raises:
        TypeError: an option of the wrong type. ValueError: an unknown target, size or field, or a value that does not
            fit.
    """

    target: str = "before_last"
    k: int = 8
    model: str = "trecvit_tiny"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    decoder_depth: int = 0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"{_WHERE}: target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        for name in ("k", "decoder_depth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{_WHERE}: {name} must be an int, got {type(value).__name__}")
            if value < 0:
                raise ValueError(f"{_WHERE}: {name} must be at least 0, got {value}")
        if not isinstance(self.model, str) or self.model not in SIZES:
            raise ValueError(f"{_WHERE}: model must be one of {', '.join(SIZES)}, got {self.model!r}")
        if not isinstance(self.overrides, Mapping):
            raise TypeError(f"{_WHERE}: overrides must be a mapping, got {type(self.overrides).__name__}")
        _ = self.config  # refuses what does not fit

    @property
    def config(self) -> TRecViTConfig:
        """Of the encoder."""
        return SIZES[self.model].replace(_WHERE, **self.overrides)

    def check_clips(self, prefix: str, frames: int, size: tuple[int, int], *, training: bool) -> None:
        if self.k >= frames:
            raise ValueError(f"{prefix}frames must be at least k + 1 = {self.k + 1} frames, got {frames}")
        check_image_size(prefix, self.config.image_size, size)

    def build(self) -> Memoriser:
        """A new ``Memoriser``."""
        return Memoriser(self.config, self.decoder_depth)

    def target_frame(self, video: Tensor) -> Tensor:
        """The frame (B, 3, H, W) of video (B, T, 3, H, W) to be drawn; ValueError if T has no such frame."""
        check_tensor(_WHERE, "video", video, ndim_at_least=5)
        frames = video.shape[1]
        if self.k >= frames:
            what = "the last one" if self.target == "before_last" else "frame 0"
            raise ValueError(
                f"{_WHERE}: video must have at least k + 1 = {self.k + 1} frames (k = {self.k} counts from {what}),"
                f" got {frames}"
            )
        return video[:, frames - 1 - self.k if self.target == "before_last" else self.k]

    def loss(
        self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of pixels in [0, 1]; logged is ``psnr``, in dB. Nothing is drawn at random.

        Raises:
            TypeError, ValueError: a video that does not fit the model or has no k-th frame.
        """
        video = self._video("loss", batch)
        target = _memoriser(model).pixels(self.target_frame(video))
        prediction = model(video).to(target.dtype)
        return F.mse_loss(prediction, target), {"psnr": psnr(prediction.detach(), target.detach()).mean()}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Measures over all videos of all batches, which may have different numbers of frames.

        Returns:
            ``psnr``, in dB, averaged over the videos; ``psnr_of_last_frame``, what repeating the last frame would
            have; ``l2_error``, mean squared error after clamping to [0, 1]; ``videos``, how many; and
            ``psnr_at_T`` for every number T of frames if there are several.

        Raises:
            TypeError, ValueError: as ``loss``; no batches.
        """
        memoriser = _memoriser(model)
        device = next(model.parameters()).device
        of_length: dict[int, list[Tensor]] = defaultdict(list)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    video = self._video("evaluate", batch).to(device)
                    target = memoriser.pixels(self.target_frame(video))
                    prediction = model(video).to(target.dtype).clamp(0, 1)
                    values = (
                        psnr(prediction, target),
                        psnr(memoriser.pixels(video[:, -1]), target),
                        (prediction - target).square().flatten(1).mean(dim=1),
                    )
                    of_length[video.shape[1]].append(torch.stack(values, dim=1).double().cpu())
        finally:
            model.train(was_training)
        if not any(len(part) for parts in of_length.values() for part in parts):
            raise ValueError(f"{_WHERE}.evaluate: batches must hold at least one video, got none")
        table = {frames: torch.cat(parts) for frames, parts in sorted(of_length.items())}
        every = torch.cat(list(table.values()))
        measured, last, error = every.mean(dim=0).tolist()
        result = {
            "psnr": measured,
            "psnr_of_last_frame": last,
            "l2_error": error,
            "videos": float(len(every)),
        }
        if len(table) > 1:
            result |= {f"psnr_at_{frames}": float(values[:, 0].mean()) for frames, values in table.items()}
        return result

    def _video(self, method: str, batch: Batch) -> Tensor:
        if "video" not in batch:
            raise ValueError(f"{_WHERE}.{method}: batch must have video, got {', '.join(batch) or 'nothing'}")
        return batch["video"]


def _memoriser(model: nn.Module) -> Memoriser:
    """The model inside wrappers such as DistributedDataParallel or torch.compile."""
    inner = getattr(model, "_orig_mod", getattr(model, "module", model))
    if not isinstance(inner, Memoriser):
        raise TypeError(f"{_WHERE}: model must be a Memoriser, got {type(model).__name__}")
    return inner
