"""Multi-head self-attention among the tokens of one frame."""

from __future__ import annotations

import math

from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops.spatial_attention import reference, sdpa

NAME = "spatial_attention"
BACKENDS = ("reference", "sdpa")


def spatial_attention(
    qkv: Tensor, num_heads: int, *, scale: float | None = None, backend: str | None = None
) -> Tensor:
    r"""softmax(scale q k^T) v inside each frame, all tokens seeing all tokens.

    Args:
        qkv: (..., N, 3 H D) packed as [q | k | v], each head-major; float32, bfloat16, float16 or float64. All leading
            dimensions are batch: (B, T, N, 3 H D) attends inside each frame.
        num_heads: H.
        scale: factor on the scores; None means 1/sqrt(D).
        backend: ``"reference"``, ``"sdpa"`` (PyTorch's scaled_dot_product_attention on views of qkv) or None.

    Returns:
        (..., N, H D) in the dtype of qkv.

    Under autocast qkv is cast to the autocast dtype.

    Raises:
        TypeError: qkv is not a tensor of a supported dtype, or num_heads not an int.
        ValueError: the last dimension is not 3 H D, num_heads < 1, or scale is not finite.
        RuntimeError: the backend asked for cannot run here.
    """
    check_tensor(NAME, "qkv", qkv, ndim_at_least=2)
    check_dtype(NAME, "qkv", qkv, REAL)
    if not isinstance(num_heads, int) or isinstance(num_heads, bool):
        raise TypeError(f"{NAME}: num_heads must be an int, got {type(num_heads).__name__}")
    if num_heads < 1:
        raise ValueError(f"{NAME}: num_heads must be at least 1, got {num_heads}")
    if qkv.shape[-1] % (3 * num_heads) or qkv.shape[-1] == 0:
        raise ValueError(
            f"{NAME}: qkv must have 3 * num_heads * D = {3 * num_heads} * D channels, got shape {tuple(qkv.shape)}"
        )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{NAME}: scale must be finite, got {scale}")
    (qkv,) = _registration.autocast(qkv.device.type, qkv)
    backend = backends.select(NAME, backend, qkv.device.type, BACKENDS)
    run = reference.spatial_attention if backend == "reference" else sdpa.spatial_attention
    return run(qkv, num_heads, scale=scale)
