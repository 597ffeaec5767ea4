"""A residual addition and the norm behind it in one launch, for streaming on a GPU, where launches take the time.

Not part of the public list. Without gradients: training has other costs. Only the CUDA backend fuses the two, and only
where it was asked for (``backends.use("cuda")`` or TRECVIT_BACKEND=cuda): it was never measured.
"""

from __future__ import annotations

from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops.residual_norm import reference

NAME = "residual_norm"
BACKENDS = ("reference", "cuda")


def is_fused(x: Tensor, *more: Tensor | None) -> bool:
    """Whether a call on these tensors that leaves the choice to this package fuses: the CUDA backend is preferred, no
    gradients, no autocast."""
    return backends.prefers("cuda") and _can_fuse(x, *more)


def _can_fuse(x: Tensor, *more: Tensor | None) -> bool:
    return not _registration.needs_autograd(x, *more) and not _registration.autocasts(x.device.type)


def residual_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """(x + branch, its norm over the last dimension): LayerNorm with a ``bias``, else the RMS norm of ``ops/rms_norm``.

    Args:
        x, branch: (..., C), one dtype: float32, bfloat16, float16 or float64. weight, bias: (C), one real dtype.
        eps: added to the variance (mean of squares). backend: ``"reference"``, ``"cuda"`` or None.

    Returns:
        Two contiguous tensors like x.

    Raises:
        ValueError, RuntimeError: a backend that is unknown or cannot run here, or cannot have gradients.
    """
    if backend is None and not is_fused(x, branch, weight, bias):
        backend = "reference"
    backend = backends.select(NAME, backend, x.device.type, BACKENDS)
    if backend == "reference":
        return reference.residual_norm(x, branch, weight, bias, eps)
    if not _can_fuse(x, branch, weight, bias):
        raise RuntimeError(f"{NAME}: backend {backend!r} has no gradients; call it under torch.no_grad()")
    return _forward(x, branch, weight, bias, eps, backend)


def _fake_forward(x, branch, weight, bias, eps, backend):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _no_flops(*args, **kwargs) -> int:
    return 0  # as torch.utils.flop_counter counts PyTorch's own norms


_forward = _registration.define(
    "residual_norm",
    "(Tensor x, Tensor branch, Tensor weight, Tensor? bias, float eps, str backend) -> (Tensor sum, Tensor y)",
    room=__package__,
    fake=_fake_forward,
    flops=_no_flops,
)
