"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels._checks import check_like, check_tensor

LEAST_ERROR = 1e-10


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio of every image in dB, for values in [0, 1].

    10 log10(1 / mse), where mse is the mean squared error over all pixels and colours of one image, after the
    prediction has been clamped to [0, 1]. Errors below 1e-10 count as 1e-10, so that no image has more than 100 dB.
    Averages over images are averages of dB.

    Args:
        prediction: (B, \*image), floating. target: alike, values in [0, 1].

    Returns:
        (B,), float32 (float64 for float64 targets).

    Raises:
        TypeError, ValueError: an argument whose type, dtype, shape or device does not fit.
    """
    check_tensor("psnr", "target", target, ndim_at_least=2)
    floating = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    check_like("psnr", "target", target, shape=target.shape, dtypes=floating, device=target.device)
    check_like("psnr", "prediction", prediction, shape=target.shape, dtypes=floating, device=target.device)
    dtype = torch.float64 if target.dtype == torch.float64 else torch.float32
    error = (prediction.to(dtype).clamp(0, 1) - target.to(dtype)).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=LEAST_ERROR).log10()
