"""The same work on a GPU, put together from the best kernels that others offer."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import trecvit_kernels as tk
from benchmarks.ops import peers

SDPA = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def _decays_and_inputs(x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor) -> tuple[Tensor, Tensor]:
    """log a_t and u_t of the real gated LRU in float32; the first frame resets."""
    log_a = -8.0 * F.softplus(a_param.float()) * torch.sigmoid(gate_a.float())
    beta = torch.sqrt(-torch.expm1(2.0 * log_a))
    beta = torch.cat([torch.ones_like(beta[:, :1]), beta[:, 1:]], dim=1)
    return log_a, beta * torch.sigmoid(gate_x.float()) * x.float()


def gates(x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor) -> tuple[Tensor, Tensor]:
    """u_t and log a_t in the dtype of x, as HGRN takes them."""
    log_a, u = _decays_and_inputs(x, gate_x, gate_a, a_param)
    return u.to(x.dtype), log_a.to(x.dtype)


def gates_lanes_first(x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor) -> tuple[Tensor, Tensor]:
    """a_t and u_t in float32 as accelerated-scan takes them, (B, lanes, T): one kernel when compiled."""
    log_a, u = _decays_and_inputs(x, gate_x, gate_a, a_param)
    return peers.lanes_first(log_a.exp()), peers.lanes_first(u)


def hgrn(kernel: str, gates: Callable[..., Any]) -> Callable[..., Tensor]:
    """gates, then ``kernel`` of flash-linear-attention: "fused_recurrent_hgrn" or "chunk_hgrn"."""

    def run(*inputs: Tensor) -> Tensor:
        scan = getattr(importlib.import_module("fla.ops.hgrn"), kernel)
        u, log_a = gates(*inputs)
        return scan(u.flatten(2), log_a.flatten(2))[0].view(u.shape)

    return run


def accelerated_scan_gates(kernel: str, gates_lanes_first: Callable[..., Any]) -> Callable[..., Tensor]:
    """``gates_lanes_first``, then ``kernel`` of accelerated-scan, its result seen as ours and rounded."""

    def run(x: Tensor, *more: Tensor) -> Tensor:
        h = accelerated_scan(kernel)(*gates_lanes_first(x, *more))
        return h.mT.reshape(x.shape).to(x.dtype)

    return run


def accelerated_scan(kernel: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A kernel of ``peers.accelerated_scan``."""
    return functools.partial(peers.accelerated_scan, kernel=kernel)


def recurrent_mixer(*tensors: Tensor, backend: str = "triton", **more: Any) -> Tensor:
    """The block by parts with this package's gated LRU.

    To be compiled: PyTorch's compiler then fuses what stands beside the products and the recurrence.
    """

    def recurrence(*tensors: Any) -> Tensor:
        *inputs, h0 = tensors
        return tk.ops.gated_lru(*inputs, h0=h0, backend=backend)[0]

    return peers.mixer_by_parts(*tensors, recurrence=recurrence, **more)


def attention(name: str, heads: int, scale: float | None = None) -> Callable[[Tensor], Tensor]:
    """One backend of scaled_dot_product_attention on views of packed qkv; the result packed as ours."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run(qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).flatten(0, -5).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(getattr(SDPBackend, name)):
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return out.transpose(1, 2).reshape(*qkv.shape[:-1], -1)

    return run


def scan_rivals(
    dtype: torch.dtype, interpreted: bool = False
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Peers of a bare scan that take (B, lanes, T); ``interpreted``: those that Triton's interpreter can run."""
    if dtype.is_complex:
        return {"accelerated_scan.complex": accelerated_scan("complex")}
    return {f"accelerated_scan.{name}": accelerated_scan(name) for name in real_scans(interpreted)}


def real_scans(interpreted: bool = False) -> tuple[str, ...]:
    """accelerated-scan's kernels for real tensors: Triton, and CUDA, which no interpreter can run."""
    return ("scalar",) if interpreted else ("scalar", "warp")


def compiler(tiny: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """torch.compile for one static shape; in a rehearsal without code generation, which takes minutes on a CPU."""
    return functools.partial(
        torch.compile, fullgraph=True, dynamic=False, backend="aot_eager" if tiny else "inductor"
    )
