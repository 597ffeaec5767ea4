"""Masked autoencoding for the training program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trecvit_kernels.models import SIZES
from trecvit_kernels.tasks.masked_autoencoding.config import MaskedAutoencoderConfig
from trecvit_kernels.tasks.masked_autoencoding.masks import tube_mask
from trecvit_kernels.tasks.masked_autoencoding.model import MaskedAutoencoder, Reconstruction
from trecvit_kernels.tasks.task import Batch, Task, check_image_size


@dataclass(frozen=True)
class MaskedAutoencodingTask(Task):
    """Predict the hidden tubes of videos, without labels.

    The paper's recipe (arXiv 2412.14294): AdamW, learning rate 3e-4, weight decay 0.05, 16 frames with a stride of 2,
    1,600 epochs of Kinetics-400, mask ratio 0.9.

    Attributes:
        model: a name of ``create_model``. overrides: other fields of ``TRecViTConfig``.
        decoder_width, decoder_depth, decoder_heads, mask_ratio, loss_over: as in ``MaskedAutoencoderConfig``.
        evaluation_seed: of the masks that evaluation draws, the same ones every time for the same batches.

    Raises:
        TypeError: an option of the wrong type. ValueError: an unknown size or field, or a value that does not fit.
    """

    model: str = "trecvit_base"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 6
    mask_ratio: float = 0.9
    loss_over: str = "masked"
    evaluation_seed: int = 0

    def __post_init__(self) -> None:
        where = "MaskedAutoencodingTask"
        if not isinstance(self.model, str) or self.model not in SIZES:
            raise ValueError(f"{where}: model must be one of {', '.join(SIZES)}, got {self.model!r}")
        if not isinstance(self.overrides, Mapping):
            raise TypeError(f"{where}: overrides must be a table, got {type(self.overrides).__name__}")
        if isinstance(self.evaluation_seed, bool) or not isinstance(self.evaluation_seed, int):
            raise TypeError(
                f"{where}: evaluation_seed must be an int, got {type(self.evaluation_seed).__name__}"
            )
        _ = self.config  # refuses what does not fit

    @property
    def config(self) -> MaskedAutoencoderConfig:
        """Of the model."""
        return MaskedAutoencoderConfig(
            encoder=SIZES[self.model].replace("MaskedAutoencodingTask", **self.overrides),
            decoder_width=self.decoder_width,
            decoder_depth=self.decoder_depth,
            decoder_heads=self.decoder_heads,
            mask_ratio=self.mask_ratio,
            loss_over=self.loss_over,
        )

    def check_clips(self, prefix: str, frames: int, size: tuple[int, int], *, training: bool) -> None:
        check_image_size(prefix, self.config.encoder.image_size, size)

    def build(self) -> MaskedAutoencoder:
        """A new ``MaskedAutoencoder``."""
        return MaskedAutoencoder(self.config)

    def loss(
        self, model: nn.Module, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction loss on a new mask for each video.

        Logged: ``baseline``, what predicting the mean of every patch would cost (1, less for patches without contrast).
        """
        result = self._forward(model, batch["video"], generator)
        return result.loss, {"baseline": result.baseline}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """``loss`` and ``baseline``, averaged over all videos.

        Raises:
            ValueError: there is no batch.
        """
        generator = torch.Generator().manual_seed(self.evaluation_seed)
        device = next(model.parameters()).device
        training = model.training
        total, baseline_total, videos = 0.0, 0.0, 0
        model.eval()
        try:
            for batch in batches:
                video = batch["video"].to(device)
                result = self._forward(model, video, generator)
                total += result.loss.item() * len(video)
                baseline_total += result.baseline.item() * len(video)
                videos += len(video)
        finally:
            model.train(training)
        if not videos:
            raise ValueError(
                "MaskedAutoencodingTask.evaluate: batches must hold at least one video, got none"
            )
        return {"loss": total / videos, "baseline": baseline_total / videos}

    def _forward(self, model: nn.Module, video: Tensor, generator: torch.Generator | None) -> Reconstruction:
        config = self.config
        mask = tube_mask(
            video.shape[0], config.patches, config.mask_ratio, generator=generator, device=video.device
        )
        return model(video, mask)
