"""The same recurrences as people write them in PyTorch today.

Each function takes the arguments of ``ops.gated_lru`` or ``ops.linear_scan`` (a sequence starts at t = 0, no
reset) and returns the outputs of all frames.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, a_imag: Tensor | None
) -> tuple[Tensor, Tensor]:
    """a_t and u_t of all frames at once, complex tensors if a_imag is given; the first frame resets."""
    r = torch.sigmoid(gate_a)
    log_a = -8.0 * F.softplus(a_param) * r
    beta = torch.sqrt(-torch.expm1(2.0 * log_a))
    beta = torch.cat([torch.ones_like(beta[:, :1]), beta[:, 1:]], dim=1)
    scale = beta * torch.sigmoid(gate_x)
    if a_imag is None:
        return torch.exp(log_a), scale * x
    x_re, x_im = x.chunk(2, dim=-1)
    return torch.polar(torch.exp(log_a), a_imag * r), torch.complex(scale * x_re, scale * x_im)


def _merged(h: Tensor) -> Tensor:
    return torch.cat([h.real, h.imag], dim=-1) if h.is_complex() else h


def eager_gated_lru(*args: Any) -> Tensor:
    """Gates for all frames at once, then one fused multiply-add per frame."""
    return _merged(eager_linear_scan(*_decays_and_inputs(*args)))


def eager_linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """One fused multiply-add per frame; its backward pass does not touch all frames for each of them."""
    h = b[:, 0]
    outputs = [h]
    for a_t, b_t in zip(a.unbind(1)[1:], b.unbind(1)[1:]):
        h = torch.addcmul(b_t, a_t, h)
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def _combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], right[0] * left[1] + right[1]


def associative_linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """PyTorch's prototype of a parallel scan."""
    from torch._higher_order_ops import associative_scan

    return associative_scan(_combine, (a, b), dim=1, combine_mode="generic")[1]


def associative_gated_lru(*args: Any) -> Tensor:
    """Gates for all frames at once, then PyTorch's parallel scan."""
    return _merged(associative_linear_scan(*_decays_and_inputs(*args)))


def accelerated_scan(a: Tensor, b: Tensor) -> Tensor:
    """``accelerated_scan.ref`` (PyPI: accelerated-scan) on its own layout (B, lanes, T); T a power of two."""
    return importlib.import_module("accelerated_scan.ref").scan(a, b)


def compiled(function: Function) -> Function:
    """torch.compile for one static shape; compilation happens in the first call."""
    return torch.compile(function, fullgraph=True, dynamic=False)
