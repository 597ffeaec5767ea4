"""trecvit_kernels: recurrent video transformers and the kernels under them."""

from trecvit_kernels import accounting, backends, integrations, modules, ops, tasks, video
from trecvit_kernels.models import Stream, TRecViT, TRecViTConfig, create_model, load_official_checkpoint

__version__ = "0.1.0"
__all__ = [
    "Stream",
    "TRecViT",
    "TRecViTConfig",
    "accounting",
    "backends",
    "create_model",
    "integrations",
    "load_official_checkpoint",
    "modules",
    "ops",
    "tasks",
    "video",
]
