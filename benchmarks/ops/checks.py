"""Is an op right, at the very size at which it is timed? At a few channels, tokens or frames, against float64.

Every check returns an empty string, or what is wrong. The yardstick is ``rows.within_reference``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

import trecvit_kernels as tk
from benchmarks.ops.calls import value_and_gradients
from benchmarks.rows import within_reference
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops.gated_lru import reference as gated_lru_reference
from trecvit_kernels.ops.linear_scan import reference as linear_scan_reference
from trecvit_kernels.ops.recurrent_mixer import reference as mixer_reference
from trecvit_kernels.ops.spatial_attention import reference as attention_reference

Function = Callable[..., Tensor]
_CHECKED = 32  # channels that are compared in every frame, token and gradient
_LOOPED = 64  # frames up to which the reference walks them; more are scanned by doubling
_TOKENS, _FRAMES = 4, 2  # that are compared


def _gated_lru(*args: Any) -> Tensor:
    return tk.ops.gated_lru(*args)[0]


def _linear_scan(a: Tensor, b: Tensor) -> Tensor:
    return tk.ops.linear_scan(a, b)[0]


def _mixer(**arguments: Any) -> Tensor:
    return tk.ops.recurrent_mixer(**arguments)[0]


def check_gated_lru(inputs: Sequence[Tensor | None], function: Function = _gated_lru) -> str:
    """Output and all gradients of the real call at a few channels. inputs: x, gate_x, gate_a, a_param, a_imag."""
    x, *_, a_imag = inputs
    assert x is not None
    gates = x.shape[-1] if a_imag is None else x.shape[-1] // 2
    picked = torch.linspace(0, gates - 1, _CHECKED).long().to(x.device)
    merged = picked if a_imag is None else torch.cat([picked, picked + gates])
    index = [merged, picked, picked, picked, picked]
    dy = torch.randn_like(x)
    ours = value_and_gradients(function, inputs, dy)
    few = [None if t is None else t[..., i] for t, i in zip(inputs, index)]
    truth = _gated_lru_reference if x.shape[1] <= _LOOPED else _gated_lru_by_doubling
    return _against_float64(ours, truth, few, dy[..., merged], [merged, *index])


def check_linear_scan(a: Tensor, b: Tensor, function: Function = _linear_scan) -> str:
    """Output and gradients of the real call at a few lanes."""
    picked = torch.linspace(0, b.shape[-1] - 1, _CHECKED).long().to(b.device)
    dh = torch.randn_like(b)
    ours = value_and_gradients(function, [a, b], dh)
    few = [a[..., picked], b[..., picked]]
    truth = _linear_scan_reference if b.shape[1] <= _LOOPED else _linear_scan_by_doubling
    return _against_float64(ours, truth, few, dh[..., picked], [picked] * 3)


def check_mixer(arguments: Mapping[str, Any], function: Function = _mixer) -> str:
    """z, du and dv of the real call at a few tokens of (B, T, N, C); other gradients of a call on these alone."""
    u, state = arguments["u"], arguments.get("state")
    dz = torch.randn_like(u)
    ours = [t[:, :, :_TOKENS] for t in value_and_gradients(function, arguments, dz)[:3]]
    narrow = {**arguments, **{name: arguments[name][:, :, :_TOKENS].contiguous() for name in ("u", "v")}}
    if state is not None:
        narrow["state"] = (state[0][:, :_TOKENS], state[1][:, :, :_TOKENS])
    few = dz[:, :, :_TOKENS].contiguous()
    ours += value_and_gradients(function, narrow, few)[3:]

    def reference(**values: Any) -> Tensor:
        return mixer_reference.recurrent_mixer(**values)[0]

    exact = value_and_gradients(reference, _double(narrow), few.double())
    return within_reference(ours, value_and_gradients(reference, narrow, few), exact)


def check_attention(
    qkv: Tensor,
    heads: int,
    function: Callable[[Tensor, int], Tensor] | None = None,
    scale: float | None = None,
) -> str:
    """Output and gradient of the real call in two frames."""
    run = function or tk.ops.spatial_attention
    dout = torch.randn(*qkv.shape[:-1], qkv.shape[-1] // 3, dtype=qkv.dtype, device=qkv.device)
    ours = [_few_frames(t) for t in value_and_gradients(run, [qkv, heads], dout)]
    few, dout = _few_frames(qkv), _few_frames(dout)
    reference = functools.partial(attention_reference.spatial_attention, scale=scale)
    exact = value_and_gradients(reference, [few.double(), heads], dout.double())
    return within_reference(ours, value_and_gradients(reference, [few, heads], dout), exact)


def check_whole(arguments: Mapping[str, Any], function: Function, reference: Function) -> str:
    """Output and all gradients, everywhere: for ops and arguments that no other check knows."""
    with torch.no_grad():
        dy = torch.randn_like(function(**arguments))
    wide = torch.complex128 if dy.is_complex() else torch.float64
    parts: tuple[list[Tensor], ...] = (
        value_and_gradients(function, arguments, dy),
        value_and_gradients(reference, arguments, dy),
        value_and_gradients(reference, _double(arguments), dy.to(wide)),
    )
    ours, same, exact = ([_real(t) for t in part] for part in parts)
    return within_reference(ours, same, exact)


def _gated_lru_reference(*tensors: Any) -> Tensor:
    return gated_lru_reference.gated_lru(*tensors)[0]


def _linear_scan_reference(a: Tensor, b: Tensor) -> Tensor:
    return linear_scan_reference.linear_scan(a, b)[0]


# In the reference every frame is some fifty small operations, and in its backward pass touches all frames of the
# call. Over a long time the truth is instead found for all frames at once, where the tensors are.
def _gated_lru_by_doubling(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, a_param: Tensor, a_imag: Tensor | None
) -> Tensor:
    dtype = state_dtype(x.dtype)
    r = torch.sigmoid(gate_a.to(dtype))
    log_a = -gated_lru_reference.C * F.softplus(a_param.to(dtype)) * r
    beta = gated_lru_reference.normalizer_of(log_a[:, 1:], "sqrt")
    beta = torch.cat([torch.ones_like(log_a[:, :1]), beta], dim=1)  # the first frame resets
    scale, wide = beta * torch.sigmoid(gate_x.to(dtype)), x.to(dtype)
    if a_imag is None:
        return _Doubling.apply(log_a.exp(), scale * wide).to(x.dtype)
    x_re, x_im = wide.chunk(2, dim=-1)
    a = torch.polar(log_a.exp(), a_imag.to(dtype) * r)
    h = _Doubling.apply(a, torch.complex(scale * x_re, scale * x_im))
    return torch.cat([h.real, h.imag], dim=-1).to(x.dtype)


def _linear_scan_by_doubling(a: Tensor, b: Tensor) -> Tensor:
    dtype = state_dtype(b.dtype)
    return _Doubling.apply(a.to(dtype), b.to(dtype)).to(b.dtype)


class _Doubling(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t along dim 1 from zero, with the gradients of docs/design.md: no step is saved."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = scan_by_doubling(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1).conj()
        g = scan_by_doubling(later.flip(1), dh.flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
        return before.conj() * g, g


def scan_by_doubling(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along dim 1 from zero, in log2(T) steps: each joins a frame's run with the one before."""
    step = 1
    while step < b.shape[1]:
        b = torch.cat([b[:, :step], b[:, step:] + a[:, step:] * b[:, :-step]], dim=1)
        a = torch.cat([a[:, :step], a[:, step:] * a[:, :-step]], dim=1)
        step *= 2
    return b


def _against_float64(
    ours: list[Tensor], loop: Function, few: list[Any], dy: Tensor, index: list[Tensor]
) -> str:
    wide = torch.complex128 if dy.is_complex() else torch.float64
    exact = value_and_gradients(loop, [None if t is None else t.to(wide) for t in few], dy.to(wide))
    same = value_and_gradients(loop, few, dy)
    parts = [_real(t[..., i]) for t, i in zip(ours, index)]
    return within_reference(parts, [_real(t) for t in same], [_real(t) for t in exact])


def _few_frames(t: Tensor) -> Tensor:
    return t.reshape(-1, *t.shape[-2:])[:_FRAMES]


def _double(values: Any) -> Any:
    """Floating tensors in double precision."""

    def double(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_complex():
            return value.to(torch.complex128)
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(double, values)


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t
