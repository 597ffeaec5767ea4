"""The same values in awkward memory: how test and benchmark cases lay out their tensors."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = (
    "contiguous",
    "sliced",  # channels out of a wider buffer, as the halves of one projection are
    "shifted",  # base pointer one element past an aligned address
    "gapped",  # every second frame of a longer buffer
    "time_first",  # stored (T, B, ...)
    "time_last",  # stored (B, ..., T): neighbouring lanes are not neighbours in memory
    "swapped",  # first and last lane dimension swapped in memory
    "expanded_batch",  # stride 0: all examples are the first one
    "expanded_time",  # stride 0: all frames are the first one
    "expanded_lanes",  # stride 0: all rows of lanes are the first one
)


def arrange(values: Tensor, layout: str) -> Tensor:
    """``values`` (B, T, *lanes) in the memory layout named; the expanded ones repeat a part of the values."""
    if layout == "contiguous":
        return values.contiguous()
    if layout == "sliced":
        width = values.shape[-1]
        wide = values.new_full((*values.shape[:-1], 2 * width + 3), torch.nan)
        wide[..., width : 2 * width] = values
        return wide[..., width : 2 * width]
    if layout == "shifted":
        flat = values.new_full((values.numel() + 1,), torch.nan)
        shifted = flat[1:].view(values.shape)
        return shifted.copy_(values)
    if layout == "gapped":
        long = values.new_full((values.shape[0], 2 * values.shape[1], *values.shape[2:]), torch.nan)
        long[:, ::2] = values
        return long[:, ::2]
    if layout == "time_first":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "time_last":
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "swapped":
        return values.transpose(2, -1).contiguous().transpose(2, -1)
    if layout == "expanded_batch":
        return values[:1].contiguous().expand(values.shape)
    if layout == "expanded_time":
        return values[:, :1].contiguous().expand(values.shape)
    if layout == "expanded_lanes":
        return values[:, :, :1].contiguous().expand(values.shape)
    raise ValueError(f"arrange: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
