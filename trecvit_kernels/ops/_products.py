"""In which dtype a CPU multiplies matrices.

Without instructions for a 16-bit dtype, PyTorch's products in it take many times as long as float32 ones (an AVX2
processor in bfloat16: up to 40 times). They are then made in float32, and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _without_instructions() -> set[torch.dtype]:
    if not torch.backends.mkldnn.is_available():
        return {torch.bfloat16, torch.float16}
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return {dtype for dtype, has in supported.items() if not has}


# Of this processor. Found at import, so that compiled code takes it as a constant.
WIDENED = frozenset(_without_instructions())


def multiplied_in(t: Tensor) -> torch.dtype:
    """Dtype in which products of ``t`` are made here: its own, or float32."""
    return torch.float32 if t.device.type == "cpu" and t.dtype in WIDENED else t.dtype
