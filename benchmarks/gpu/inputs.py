"""Inputs of the ops' cases, drawn where they are used: a CPU needs most of a minute for a billion random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class DrawnOn(TorchFunctionMode):
    """torch.rand and torch.randn draw on ``device`` in this context, whatever generator they are given."""

    def __init__(self, device: str, seed: int = 0) -> None:
        super().__init__()
        # "meta" has no values and no generator.
        generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
        self.where: dict[str, Any] = {"device": device, "generator": generator}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            kwargs = {**kwargs, **self.where}
        return func(*args, **kwargs)


def make(cases: Any, case: Any, device: str) -> dict[str, Any]:
    """``cases.make_inputs(case)`` on the device; the same numbers in every run, but not those of other devices."""
    with DrawnOn(device):
        made: dict[str, Any] = cases.make_inputs(case, device=device)
    return made
