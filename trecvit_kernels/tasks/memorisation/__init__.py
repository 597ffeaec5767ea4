"""Memorisation: a frame of the past, drawn from the last frame's tokens (arXiv 2412.14294)."""

from trecvit_kernels.tasks.memorisation.metrics import psnr
from trecvit_kernels.tasks.memorisation.model import Memoriser
from trecvit_kernels.tasks.memorisation.task import TARGETS, MemorisationTask

__all__ = ["TARGETS", "Memoriser", "MemorisationTask", "psnr"]
