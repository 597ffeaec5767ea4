"""The same recurrences as people write them in PyTorch today.

Each function takes the arguments of ``ops.gated_lru``, ``ops.linear_scan`` or ``ops.recurrent_mixer`` and returns the
outputs of all frames. None has ``reset``: a sequence starts at t = 0, unless a state is given.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.setting import Setting
from trecvit_kernels.ops.gated_lru import reference as gated_lru_reference
from trecvit_kernels.ops.linear_scan import reference as linear_scan_reference

Function = Callable[..., Tensor]


def reference_gated_lru(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, a_imag: Tensor | None
) -> Tensor:
    """This package's reference: gates and recurrence inside the loop over time."""
    return gated_lru_reference.gated_lru(x, gate_x, gate_a, a_param, a_imag)[0]


def reference_linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """This package's reference, a loop over time."""
    return linear_scan_reference.linear_scan(a, b)[0]


def _decays_and_inputs(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, a_imag: Tensor | None, starts: bool = True
) -> tuple[Tensor, Tensor]:
    """a_t and u_t of all frames at once, complex tensors if a_imag is given; the first frame resets if it starts."""
    r = torch.sigmoid(gate_a)
    log_a = -8.0 * F.softplus(a_param) * r
    beta = torch.sqrt(-torch.expm1(2.0 * log_a))
    if starts:
        beta = torch.cat([torch.ones_like(beta[:, :1]), beta[:, 1:]], dim=1)
    scale = beta * torch.sigmoid(gate_x)
    if a_imag is None:
        return torch.exp(log_a), scale * x
    x_re, x_im = x.chunk(2, dim=-1)
    return torch.polar(torch.exp(log_a), a_imag * r), torch.complex(scale * x_re, scale * x_im)


def _merged(h: Tensor) -> Tensor:
    return torch.cat([h.real, h.imag], dim=-1) if h.is_complex() else h


def eager_gated_lru(
    x: Tensor,
    gate_x: Tensor,
    gate_a: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None = None,
    h0: Tensor | None = None,
) -> Tensor:
    """Gates for all frames at once, then one fused multiply-add per frame."""
    a, u = _decays_and_inputs(x, gate_x, gate_a, a_param, a_imag, starts=h0 is None)
    if h0 is not None and u.is_complex():
        h0 = torch.complex(*h0.chunk(2, dim=-1))
    return _merged(eager_linear_scan(a, u, h0))


def eager_linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None) -> Tensor:
    """One fused multiply-add per frame; its backward pass does not touch all frames for each of them."""
    h = b[:, 0] if h0 is None else torch.addcmul(b[:, 0], a[:, 0], h0)
    outputs = [h]
    for a_t, b_t in zip(a.unbind(1)[1:], b.unbind(1)[1:]):
        h = torch.addcmul(b_t, a_t, h)
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def in_float32(function: Function) -> Function:
    """function, 16-bit tensors widened before and its result rounded back: a state in 16 bits forgets too much."""

    @functools.wraps(function)
    def run(*tensors: Any, **named: Any) -> Tensor:
        dtype = next(t.dtype for t in (*tensors, *named.values()) if isinstance(t, Tensor))
        wide, wide_named = tree_map(_widened, (tensors, named))
        return function(*wide, **wide_named).to(dtype)

    return run


def multiplied_as_ours(function: Function, dtype: torch.dtype, at: Setting) -> Function:
    """function, which has matrix products, in float32 where the CPU has no instructions for products in ``dtype``.

    There ours multiplies in float32 too; PyTorch's emulated 16-bit products take up to 40 times as long.
    """
    return in_float32(function) if dtype in at.widened else function


def _widened(t: Any) -> Any:
    return t.float() if isinstance(t, Tensor) and t.dtype in (torch.bfloat16, torch.float16) else t


def _combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], right[0] * left[1] + right[1]


def associative_linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """PyTorch's prototype of a parallel scan."""
    from torch._higher_order_ops import associative_scan

    return associative_scan(_combine, (a, b), dim=1, combine_mode="generic")[1]


def associative_gated_lru(*args: Any) -> Tensor:
    """Gates for all frames at once, then PyTorch's parallel scan."""
    return _merged(associative_linear_scan(*_decays_and_inputs(*args)))


def lanes_first(t: Tensor) -> Tensor:
    """(B, T, *lanes) as accelerated_scan's (B, lanes, T)."""
    return t.flatten(2).mT.contiguous()


def from_lanes_first(shape: torch.Size) -> Callable[[object], object]:
    """The inverse, for one result or a tuple of them."""

    def back(result: object) -> object:
        if isinstance(result, Tensor):
            return result.mT.reshape(shape)
        assert isinstance(result, tuple)
        return tuple(t.mT.reshape(shape) for t in result)

    return back


def mixer_by_parts(
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None = None,
    *,
    recurrence: Function,
    state: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Convolution as shifted sums, gates as batched products, ``recurrence`` (a gated LRU), GELU gate."""
    taps, frames = conv_weight.shape[0], u.shape[1]
    h0, tail = (None, None) if state is None else state
    if tail is None:
        padded = F.pad(u, (*[0, 0] * (u.ndim - 2), taps - 1, 0))
    else:
        padded = torch.cat([tail, u], dim=1)
    x = conv_bias + sum(conv_weight[k] * padded[:, k : k + frames] for k in range(taps))
    heads = x.unflatten(-1, (gate_x_weight.shape[0], -1))
    gate_x, gate_a = (
        (torch.einsum("...hi,hij->...hj", heads, weight) + bias).flatten(-2)
        for weight, bias in ((gate_x_weight, gate_x_bias), (gate_a_weight, gate_a_bias))
    )
    return recurrence(x, gate_x, gate_a, a_param, a_imag, h0) * F.gelu(v, approximate="tanh")


def accelerated_scan(a: Tensor, b: Tensor, kernel: str = "ref") -> Tensor:
    """``accelerated_scan.<kernel>.scan`` (PyPI: accelerated-scan) on its layout (B, lanes, T); T a power of two.

    kernel: "ref" (PyTorch), "scalar" (Triton), "warp" (CUDA, compiled now) or "complex" (Triton).
    """
    return importlib.import_module(f"accelerated_scan.{kernel}").scan(a, b)


def compiled(function: Function) -> Function:
    """torch.compile for one static shape; compilation happens in the first call."""
    return torch.compile(function, fullgraph=True, dynamic=False)
