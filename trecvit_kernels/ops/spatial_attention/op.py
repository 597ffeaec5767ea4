"""Multi-head self-attention among the tokens of one frame."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels._checks import check_dtype, check_int, check_tensor
from trecvit_kernels.ops import _registration
from trecvit_kernels.ops._dtypes import REAL, state_dtype
from trecvit_kernels.ops.spatial_attention import reference, sdpa

NAME = "spatial_attention"
BACKENDS = ("reference", "sdpa", "triton", "cuda")
_MOST_TOKENS, _MOST_CHANNELS = 256, 128  # of a frame and head that the kernels hold on chip


def spatial_attention(
    qkv: Tensor, num_heads: int, *, scale: float | None = None, backend: str | None = None
) -> Tensor:
    r"""softmax(scale q k^T) v inside each frame, all tokens seeing all tokens.

    Args:
        qkv: (..., N, 3 H D) packed as [q | k | v], each head-major; float32, bfloat16, float16 or float64. All leading
            dimensions are batch: (B, T, N, 3 H D) attends inside each frame.
        num_heads: H.
        scale: factor on the scores; None means 1/sqrt(D).
        backend: ``"reference"``, ``"sdpa"`` (PyTorch's scaled_dot_product_attention on views of qkv), ``"triton"``
            or ``"cuda"`` (one pass over qkv; as ``"sdpa"`` for more than 256 tokens or D > 128, ``"cuda"`` also for
            float64) or None.

    Returns:
        (..., N, H D) in the dtype of qkv. The ``"triton"`` and ``"cuda"`` backends keep qkv, the result and one number
        per query and head for their backward pass and have first derivatives only.

    Under autocast qkv is cast to the autocast dtype.

    Raises:
        TypeError: qkv is not a tensor of a supported dtype, or num_heads not an int, or scale not a number.
        ValueError: the last dimension is not 3 H D, num_heads < 1, or scale is not finite.
        RuntimeError: the backend asked for cannot run here.
    """
    check_tensor(NAME, "qkv", qkv, ndim_at_least=2)
    check_dtype(NAME, "qkv", qkv, REAL)
    check_int(NAME, "num_heads", num_heads)
    if qkv.shape[-1] % (3 * num_heads) or qkv.shape[-1] == 0:
        raise ValueError(
            f"{NAME}: qkv must have 3 * num_heads * D = {3 * num_heads} * D channels, got shape {tuple(qkv.shape)}"
        )
    if scale is not None:
        if not isinstance(scale, (float, Real)) or isinstance(scale, bool):
            raise TypeError(f"{NAME}: scale must be a float or None, got {type(scale).__name__}")
        if not math.isfinite(scale):
            raise ValueError(f"{NAME}: scale must be finite, got {scale}")
    (qkv,) = _registration.autocast(qkv.device.type, qkv)
    backend = backends.select(NAME, backend, qkv.device.type, BACKENDS)
    if has_kernel(backend, qkv.dtype, qkv.shape[-2], qkv.shape[-1] // (3 * num_heads)):
        if scale is None:
            scale = (qkv.shape[-1] // (3 * num_heads)) ** -0.5
        if _registration.needs_autograd(qkv):
            return _SpatialAttention.apply(qkv, num_heads, scale, backend)[0]
        return _forward(qkv, num_heads, scale, False, backend)[0]
    run = reference.spatial_attention if backend == "reference" else sdpa.spatial_attention
    return run(qkv, num_heads, scale=scale)


def has_kernel(backend: str, dtype: torch.dtype, tokens: int, head_dim: int) -> bool:
    """Whether a backend holds such a frame and head on chip; PyTorch's attention takes the others."""
    if backend not in ("triton", "cuda") or (backend == "cuda" and dtype == torch.float64):
        return False
    return tokens <= _MOST_TOKENS and head_dim <= _MOST_CHANNELS


def _fake_forward(qkv, num_heads, scale, save_lse, backend):
    *lead, tokens, channels = qkv.shape
    lse = qkv.new_empty((*lead, num_heads, tokens if save_lse else 0), dtype=state_dtype(qkv.dtype))
    return qkv.new_empty((*lead, tokens, channels // 3)), lse


def _fake_backward(dout, qkv, out, lse, num_heads, scale, backend):
    return qkv.new_empty(qkv.shape)


def _flops_forward(qkv_shape, *args, **kwargs) -> int:
    """Two products of N x N x D per frame and head."""
    *lead, tokens, channels = qkv_shape
    return 2 * 2 * torch.Size(lead).numel() * tokens * tokens * (channels // 3)


def _flops_backward(dout_shape, qkv_shape, *args, **kwargs) -> int:
    """Five products, the scores' once more among them, as PyTorch counts its own attention."""
    return _flops_forward(qkv_shape) * 5 // 2


_forward = _registration.define(
    "spatial_attention_forward",
    "(Tensor qkv, int num_heads, float scale, bool save_lse, str backend) -> (Tensor out, Tensor lse)",
    room=__package__,
    fake=_fake_forward,
    flops=_flops_forward,
)
_backward = _registration.define(
    "spatial_attention_backward",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, int num_heads, float scale, str backend) -> Tensor",
    room=__package__,
    fake=_fake_backward,
    flops=_flops_backward,
)


class _SpatialAttention(torch.autograd.Function):
    """Forward saves qkv, its output and the log-sum-exp of every query's scores."""

    generate_vmap_rule = True

    @staticmethod
    def forward(qkv, num_heads, scale, backend):
        return _forward(qkv, num_heads, scale, True, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        qkv, *settings = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(qkv, out, lse)
        ctx.settings = settings

    @staticmethod
    @_registration.first_derivatives_only
    def backward(ctx: Any, dout: Tensor, _: Tensor):
        return _backward(dout, *ctx.saved_tensors, *ctx.settings), None, None, None
