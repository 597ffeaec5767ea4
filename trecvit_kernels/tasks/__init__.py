"""Heads, losses and measures around the models: one room per task."""

from trecvit_kernels.tasks import classification, masked_autoencoding, memorisation, point_tracking

__all__ = ["classification", "masked_autoencoding", "memorisation", "point_tracking"]
