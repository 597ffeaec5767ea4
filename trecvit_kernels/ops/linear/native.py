"""CPU backend of the linear layer: oneDNN's matrix product through PyTorch, the bias inside it.

The op is the one to which ``torch.compile`` lowers linear layers. PyTorch's default for float32 is MKL, which takes
about twice as long on an AMD processor with AVX-512. Where this build of PyTorch or the processor lacks oneDNN for a
dtype, or oneDNN is slow with transposed matrices (the backward pass), the default runs; 16-bit dtypes are multiplied in
float32 where the processor has no instructions for them.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from trecvit_kernels.ops._products import multiplied_in


@functools.cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices of ``dtype`` here."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@functools.cache
def slow_with_transposed(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes longer with transposed matrices here, and the default does not.

    Its float32 products for processors without AVX-512 take 1.6 times as long, MKL's take no longer.
    """
    mkl = torch.backends.mkl.is_available()
    return dtype == torch.float32 and mkl and torch.backends.cpu.get_cpu_capability() == "AVX2"


def _transposed(t: Tensor) -> bool:
    return t.layout == torch.strided and t.stride(0) == 1 != t.stride(1)


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (rows, in), weight (out, in), any strides -> (rows, out)."""
    if (dtype := multiplied_in(x)) != x.dtype:
        wide = linear_forward(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return wide.to(x.dtype)
    if weight.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if x.numel() == 0 or weight.numel() == 0 or not has_onednn(x.dtype):
        return F.linear(x, weight, bias)
    # For a weight's gradient in bfloat16 the op below would copy x; PyTorch's default, oneDNN too, does not.
    if _transposed(x) and x.dtype == torch.bfloat16:
        return F.linear(x, weight, bias)
    if slow_with_transposed(x.dtype) and (_transposed(x) or _transposed(weight)):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pack(weight: Tensor, rows: int) -> Tensor | None:
    """A copy of weight (out, in), for ``linear_forward``, as the products of ``rows`` rows of x want it.

    In float32 if they are made in that (``multiplied_in``), otherwise in oneDNN's layout; None where oneDNN would not
    be used. Without it every call converts the weight anew.
    """
    if (dtype := multiplied_in(weight)) != weight.dtype:
        return weight.detach().to(dtype)
    if weight.numel() == 0 or not has_onednn(weight.dtype):
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
