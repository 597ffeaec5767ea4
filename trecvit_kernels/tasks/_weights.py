"""Weights that others have published, read without running what a pickle says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trecvit_kernels.models import pretrained


def read_weights(where: str, path: Path) -> Any:
    """What a ``.safetensors`` file or, with ``weights_only``, PyTorch's own format holds.

    Raises:
        ValueError: beginning with ``where``, a file that is damaged or holds other objects than tensors.
    """
    if path.suffix == ".safetensors":
        return pretrained.read_safetensors(where, path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails anywhere in the reader: IndexError, struct.error, ...
        raise ValueError(
            f"{where}: {path} must be a complete PyTorch file of plain tensors ({error})"
        ) from error
