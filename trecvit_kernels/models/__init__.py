"""TRecViT: configuration, model, checkpoints, streaming."""

from trecvit_kernels.models.checkpoint import (
    convert,
    load_official_checkpoint,
    load_official_encoder,
    save_official_checkpoint,
)
from trecvit_kernels.models.config import SIZES, TRecViTConfig
from trecvit_kernels.models.state import TRecViTState
from trecvit_kernels.models.stream import Stream
from trecvit_kernels.models.trecvit import TRecViT, create_model

__all__ = [
    "SIZES",
    "Stream",
    "TRecViT",
    "TRecViTConfig",
    "TRecViTState",
    "convert",
    "create_model",
    "load_official_checkpoint",
    "load_official_encoder",
    "save_official_checkpoint",
]
