"""Is an op right, at the very size at which it is timed? At a few channels, tokens or frames, against float64.

Every check returns an empty string, or what is wrong. The yardstick is ``rows.within_reference``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import trecvit_kernels as tk
from benchmarks.ops.calls import value_and_gradients
from benchmarks.rows import within_reference
from trecvit_kernels.ops.gated_lru import reference as gated_lru_reference
from trecvit_kernels.ops.linear_scan import reference as linear_scan_reference
from trecvit_kernels.ops.recurrent_mixer import reference as mixer_reference
from trecvit_kernels.ops.spatial_attention import reference as attention_reference

Function = Callable[..., Tensor]
_CHECKED = 32  # channels that are compared in every frame, token and gradient
_PIECE = 64  # frames
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
    picked = torch.linspace(0, gates - 1, _CHECKED).long()
    merged = picked if a_imag is None else torch.cat([picked, picked + gates])
    index = [merged, picked, picked, picked, picked]
    dy = torch.randn_like(x)
    ours = value_and_gradients(function, inputs, dy)
    few = [None if t is None else t[..., i].cpu() for t, i in zip(inputs, index)]
    return _against_float64(ours, _gated_lru_by_pieces, few, dy[..., merged].cpu(), [merged, *index])


def check_linear_scan(a: Tensor, b: Tensor, function: Function = _linear_scan) -> str:
    """Output and gradients of the real call at a few lanes."""
    picked = torch.linspace(0, b.shape[-1] - 1, _CHECKED).long()
    dh = torch.randn_like(b)
    ours = value_and_gradients(function, [a, b], dh)
    few = [a[..., picked].cpu(), b[..., picked].cpu()]
    return _against_float64(ours, _linear_scan_by_pieces, few, dh[..., picked].cpu(), [picked] * 3)


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


# In the backward pass of the reference every frame touches all frames of the call: over a long time it is
# called piece by piece, the state handed on.
def _gated_lru_by_pieces(x: Tensor, gate_x: Tensor, gate_a: Tensor, *parameters: Any) -> Tensor:
    outputs, h = [], None
    for part in zip(*(t.split(_PIECE, dim=1) for t in (x, gate_x, gate_a))):
        y, h = gated_lru_reference.gated_lru(*part, *parameters, h0=h)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def _linear_scan_by_pieces(a: Tensor, b: Tensor) -> Tensor:
    outputs, state = [], None
    for part in zip(a.split(_PIECE, dim=1), b.split(_PIECE, dim=1)):
        h, state = linear_scan_reference.linear_scan(*part, state)
        outputs.append(h)
    return torch.cat(outputs, dim=1)


def _against_float64(
    ours: list[Tensor], loop: Function, few: list[Any], dy: Tensor, index: list[Tensor]
) -> str:
    wide = torch.complex128 if dy.is_complex() else torch.float64
    exact = value_and_gradients(loop, [None if t is None else t.to(wide) for t in few], dy.to(wide))
    same = value_and_gradients(loop, few, dy)
    parts = [_real(t[..., i].cpu()) for t, i in zip(ours, index)]
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
