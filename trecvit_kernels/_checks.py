"""Argument checks with one style of message: who is wrong, what was expected, what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_tensor(where: str, name: str, value: object, ndim_at_least: int = 0) -> None:
    """TypeError unless ``value`` is a tensor; ValueError if it has too few dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.ndim < ndim_at_least:
        raise ValueError(
            f"{where}: {name} must have at least {ndim_at_least} dimensions, got shape {tuple(value.shape)}"
        )


def check_dtype(where: str, name: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """TypeError unless the tensor's dtype is one of ``allowed``."""
    if value.dtype not in allowed:
        raise TypeError(f"{where}: {name} must have dtype {_names(allowed)}, got {_names([value.dtype])}")


def check_frames(where: str, name: str, value: Tensor) -> None:
    """ValueError unless dim 1, time, has at least one frame."""
    if value.shape[1] < 1:
        raise ValueError(f"{where}: {name} must have at least one frame, got shape {tuple(value.shape)}")


def check_int(where: str, name: str, value: object, at_least: int = 1) -> None:
    """TypeError unless ``value`` is an int; ValueError if it is too small."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be an int, got {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{where}: {name} must be at least {at_least}, got {value}")


def check_shape(where: str, name: str, value: Tensor, shape: Sequence[int]) -> None:
    """ValueError unless the tensor has exactly this shape."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{where}: {name} must have shape {tuple(shape)}, got {tuple(value.shape)}")


def check_device(where: str, name: str, value: Tensor, device: torch.device) -> None:
    """ValueError unless the tensor lives on ``device``."""
    if value.device != device:
        raise ValueError(f"{where}: {name} must be on device {device}, got {value.device}")


def check_like(
    where: str,
    name: str,
    value: object,
    *,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Type, dtype, shape and device of one argument, in this order."""
    check_tensor(where, name, value)
    assert isinstance(value, Tensor)
    check_dtype(where, name, value, dtypes)
    check_shape(where, name, value, shape)
    check_device(where, name, value, device)
