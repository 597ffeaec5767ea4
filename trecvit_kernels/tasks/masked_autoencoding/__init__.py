"""Masked autoencoding with tube masks: model, masks, targets, loss, task."""

from trecvit_kernels.tasks.masked_autoencoding.config import MaskedAutoencoderConfig
from trecvit_kernels.tasks.masked_autoencoding.masks import kept_patches, tube_mask
from trecvit_kernels.tasks.masked_autoencoding.model import MaskedAutoencoder, Pictures, Reconstruction
from trecvit_kernels.tasks.masked_autoencoding.pixels import (
    EPS,
    join_patches,
    normalise_patches,
    reconstruction_loss,
)
from trecvit_kernels.tasks.masked_autoencoding.task import MaskedAutoencodingTask

__all__ = [
    "EPS",
    "MaskedAutoencoder",
    "MaskedAutoencoderConfig",
    "MaskedAutoencodingTask",
    "Pictures",
    "Reconstruction",
    "join_patches",
    "kept_patches",
    "normalise_patches",
    "reconstruction_loss",
    "tube_mask",
]
