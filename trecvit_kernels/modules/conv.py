"""Depthwise causal convolution over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trecvit_kernels._checks import check_frames, check_int, check_like, check_tensor
from trecvit_kernels.modules import _init
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops.recurrent_mixer.reference import causal_conv1d


class CausalConv1d(nn.Module):
    r"""y_t = bias + sum_k weight[k] x_{t-K+1+k} per channel, along dim 1.

    ``weight`` (K, width), last tap = current frame, starts as N(0, 0.01 / K); ``bias`` (width) starts at 0.
    ``RecurrentBlock`` only keeps its parameters here: there the convolution is part of
    ``ops.recurrent_mixer``.
    """

    def __init__(self, width: int, kernel_size: int = 4) -> None:
        super().__init__()
        check_int("CausalConv1d", "width", width)
        check_int("CausalConv1d", "kernel_size", kernel_size)
        self.weight = nn.Parameter(torch.empty(kernel_size, width))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Official initialisation: a small variance, split over the taps."""
        _init.normal_(self.weight, fan_in=self.weight.shape[0], variance=0.01)
        nn.init.zeros_(self.bias)

    def forward(
        self, x: Tensor, *, tail: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Convolve along time.

        Args:
            x: (B, T, \*lanes, width), floating, at least one frame.
            tail: (B, K-1, \*lanes, width), the frames before x, oldest first; None means zeros.
            reset: bool (B, T); frames before a reset are not read by frames at or after it.

        Returns:
            y like x, and the tail for the next call (frames before the last reset are zero).

        Raises:
            TypeError, ValueError: an argument whose type, dtype, shape or device does not fit.
        """
        where, taps = "CausalConv1d", self.weight.shape[0]
        check_tensor(where, "x", x, ndim_at_least=3)
        shape = (*x.shape[:-1], self.weight.shape[1])
        check_like(where, "x", x, shape=shape, dtypes=REAL, device=self.weight.device)
        check_frames(where, "x", x)
        if tail is not None:
            tail_shape = (x.shape[0], taps - 1, *x.shape[2:])
            check_like(where, "tail", tail, shape=tail_shape, dtypes=REAL, device=x.device)
        if reset is not None:
            check_like(where, "reset", reset, shape=x.shape[:2], dtypes=(torch.bool,), device=x.device)
        return causal_conv1d(x, self.weight, self.bias, tail, reset)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, kernel_size={self.weight.shape[0]}"
