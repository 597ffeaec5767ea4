"""Gated LRU as a plain loop over time: the truth that every kernel is held to.

Names follow the docstring of ``op.py``. Everything is differentiable PyTorch, in float32 for 16- and
32-bit inputs and in float64 for float64 inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trecvit_kernels.ops._dtypes import state_dtype

C = 8.0  # decay exponent of Griffin's RG-LRU: |a_t| = exp(-8 r_t softplus(a_param))
MAX_SQRT_SLOPE = 1000.0  # RecurrentGemma bounds the derivative of the square root


class _BoundedSqrt(torch.autograd.Function):
    """sqrt(s) with a derivative of at most ``MAX_SQRT_SLOPE`` (finite at s = 0)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor) -> Tensor:
        return s.sqrt()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return grad * (0.5 / root).clamp(max=MAX_SQRT_SLOPE)


def normalizer_of(log_a: Tensor, normalizer: str) -> Tensor:
    """beta from log|a|: sqrt(1 - |a|^2), or 1 - |a| for ``"convex"``."""
    if normalizer == "convex":
        return -torch.expm1(log_a)
    return _BoundedSqrt.apply(-torch.expm1(2.0 * log_a))


def first_step_resets(reset: Tensor | None, h0: Tensor | None) -> bool:
    """A call without ``reset`` and without ``h0`` starts a sequence: its first frame resets."""
    return reset is None and h0 is None


def gated_lru(
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None = None,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    normalizer: str = "sqrt",
) -> tuple[Tensor, Tensor]:
    """Shapes and meaning as in ``trecvit_kernels.ops.gated_lru``."""
    dtype = state_dtype(x.dtype)
    decay = -C * F.softplus(a_param.to(dtype))
    theta = None if a_imag is None else a_imag.to(dtype)
    h = torch.zeros_like(x[:, 0], dtype=dtype) if h0 is None else h0.to(dtype)
    starts = first_step_resets(reset, h0)

    outputs = []
    for t in range(x.shape[1]):
        i = torch.sigmoid(gate_x[:, t].to(dtype))
        r = torch.sigmoid(gate_a[:, t].to(dtype))
        log_a = decay * r
        magnitude, beta = log_a.exp(), normalizer_of(log_a, normalizer)
        if reset is not None or (starts and t == 0):
            here = torch.ones_like(x[:, 0, ..., :1], dtype=torch.bool)
            if reset is not None:
                here = reset[:, t].reshape(-1, *[1] * (x.ndim - 2))
            magnitude = torch.where(here, torch.zeros_like(magnitude), magnitude)
            beta = torch.where(here, torch.ones_like(beta), beta)
            h = torch.where(here, torch.zeros_like(h), h)  # 0 * NaN would carry a NaN into the next sequence
        x_t = x[:, t].to(dtype)
        if theta is None:
            h = magnitude * h + beta * i * x_t
        else:
            h_re, h_im = h.chunk(2, dim=-1)
            x_re, x_im = x_t.chunk(2, dim=-1)
            phase = theta * r
            a_re, a_im = magnitude * phase.cos(), magnitude * phase.sin()
            scale = beta * i
            h = torch.cat(
                [a_re * h_re - a_im * h_im + scale * x_re, a_re * h_im + a_im * h_re + scale * x_im], dim=-1
            )
        outputs.append(h)
    return torch.stack(outputs, dim=1).to(x.dtype), h
