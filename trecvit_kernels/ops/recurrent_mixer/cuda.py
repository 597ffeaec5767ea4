"""CUDA backend: the kernels of csrc/recurrent_mixer/ and csrc/gated_lru/; one launch for a streamed frame."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels.ops._compiled import DTYPE_CODES, dense, empty, pointer, readable, view
from trecvit_kernels.ops._cuda import GPU
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops.recurrent_mixer import _compiled

recurrent_mixer_again = partial(_compiled.again, GPU)
recurrent_mixer_backward = partial(_compiled.backward, GPU)
recurrent_mixer_backward_from = partial(_compiled.backward_from, GPU)


def recurrent_mixer_forward(u: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """z, h_last and the saved states (B, saved, *lanes, C)."""
    if u.shape[1] > 1:
        return _compiled.forward(GPU, u, *inputs)
    z, h_last = _step(u, *inputs[:-1])
    return z, h_last, h_last.new_empty((u.shape[0], 0, *u.shape[2:]))


def recurrent_mixer_step(
    u: Tensor, v: Tensor, conv_weight: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """One frame: z, h_last and the new tail."""
    tail = empty((u.shape[0], conv_weight.shape[0] - 1, *u.shape[2:]), u.dtype, u.device)
    return *_step(u, v, conv_weight, *inputs, new_tail=tail), tail


def _step(
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    tail: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    *,
    new_tail: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = state_dtype(u.dtype)
    z = empty(u.shape, u.dtype, u.device)
    h_last = empty((u.shape[0], *u.shape[2:]), dtype, u.device)
    if z.numel() == 0:
        return z, h_last
    batch, channels = u.shape[0], u.shape[-1]
    views = [None if t is None or t.numel() == 0 else readable(t) for t in (u, v, tail)]
    weights = [dense(w, u.dtype) for w in (gate_x_weight, gate_a_weight)]
    given = [conv_weight, conv_bias, gate_x_bias, gate_a_bias, a_param, a_imag]
    narrow = all(p is None or p.dtype == u.dtype for p in given)  # a conversion would be one launch each
    others = [*(dense(p, u.dtype if narrow else dtype) for p in given), dense(h0, dtype)]
    conv_weight_, conv_bias_, gate_x_bias_, gate_a_bias_, *recurrence = map(pointer, others)
    reset = dense(reset, torch.bool)
    GPU.run(
        "mixer_step",
        u.device,
        DTYPE_CODES[u.dtype],
        a_imag is not None,
        batch,
        u.numel() // (batch * channels),
        channels,
        conv_weight.shape[0],
        gate_x_weight.shape[0],
        *(None if t is None else view(t) for t in views),
        narrow,
        conv_weight_,
        conv_bias_,
        pointer(weights[0]),
        gate_x_bias_,
        pointer(weights[1]),
        gate_a_bias_,
        *recurrence,
        pointer(reset),
        starts,
        view(z),
        pointer(h_last),
        None if new_tail is None or new_tail.numel() == 0 else view(new_tail),
    )
    return z, h_last
