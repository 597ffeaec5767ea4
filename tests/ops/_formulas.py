"""The ops in NumPy float64 by other routes than the references: no time loop, no autograd, no PyTorch."""

from __future__ import annotations

import math

import numpy as np


def _decayed_sum(log_a: np.ndarray, u: np.ndarray, h0: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """h_t = sum over s <= t of exp(L_t - L_s) u_s + exp(L_t) h0 within a segment, L the sum of log a.

    log_a, u: (B, T, lanes), complex or real. segment: int (B, T), 0 as long as no reset has come.
    """
    total = np.cumsum(log_a, axis=1)
    frames = u.shape[1]
    h = np.zeros_like(u)
    for t in range(frames):
        weight = np.exp(total[:, t : t + 1] - total[:, : t + 1])
        same = (segment[:, t : t + 1] == segment[:, : t + 1])[..., None]
        h[:, t] = np.sum(np.where(same, weight, 0) * u[:, : t + 1], axis=1)
        h[:, t] += np.where(segment[:, t, None] == 0, np.exp(total[:, t]) * h0, 0)
    return h


def linear_scan(a, b, h0=None, *, reverse=False):  # type: ignore[no-untyped-def]
    """Products of decays over every interval, summed."""
    if reverse:
        a, b = a[:, ::-1], b[:, ::-1]
    start = np.zeros_like(b[:, 0]) if h0 is None else h0
    h = np.zeros_like(b)
    for t in range(b.shape[1]):
        # after[s] = a_{s+1} ... a_t
        after = np.concatenate([np.cumprod(a[:, t:0:-1], axis=1)[:, ::-1], np.ones_like(a[:, :1])], axis=1)
        h[:, t] = np.sum(after * b[:, : t + 1], axis=1) + np.prod(a[:, : t + 1], axis=1) * start
    last = h[:, -1]
    return (h[:, ::-1] if reverse else h), last


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def gated_lru(x, gate_x, gate_a, a_param, a_imag=None, *, h0=None, reset=None, normalizer="sqrt"):  # type: ignore[no-untyped-def]
    batch, frames = x.shape[:2]
    if reset is None:
        reset = np.zeros((batch, frames), dtype=bool)
        reset[:, 0] = h0 is None
    r = np.exp(-np.logaddexp(0, -gate_a))
    log_magnitude = -8 * r * np.logaddexp(0, a_param)
    power = -np.expm1(2 * log_magnitude)  # 1 - |a|^2
    beta = np.sqrt(power) if normalizer == "sqrt" else -np.expm1(log_magnitude)
    beta = np.where(reset.reshape(batch, frames, *[1] * (x.ndim - 2)), 1.0, beta)
    scale = beta * np.exp(-np.logaddexp(0, -gate_x))
    log_a = log_magnitude
    start = np.zeros_like(x[:, 0]) if h0 is None else h0
    if a_imag is not None:
        log_a = log_magnitude + 1j * a_imag * r
        half = x.shape[-1] // 2
        x, start = x[..., :half] + 1j * x[..., half:], start[..., :half] + 1j * start[..., half:]
    lanes = int(np.prod(x.shape[2:]))
    h = _decayed_sum(
        np.broadcast_to(log_a, x.shape).reshape(batch, frames, lanes),
        (scale * x).reshape(batch, frames, lanes),
        start.reshape(batch, lanes),
        np.cumsum(reset, axis=1),
    ).reshape(x.shape)
    if a_imag is not None:
        h = np.concatenate([h.real, h.imag], axis=-1)
    return h, h[:, -1]


def recurrent_mixer(  # type: ignore[no-untyped-def]
    u, v, conv_weight, conv_bias, gate_x_weight, gate_x_bias, gate_a_weight, gate_a_bias, a_param,
    a_imag=None, *, state=None, reset=None,
):  # fmt: skip
    batch, frames = u.shape[:2]
    taps = conv_weight.shape[0]
    h0, tail = (None, np.zeros((batch, taps - 1, *u.shape[2:]))) if state is None else state
    segment = np.zeros((batch, frames), dtype=int) if reset is None else np.cumsum(reset, axis=1)
    x = np.zeros_like(u)
    new_tail = np.zeros_like(tail)
    for b in range(batch):
        for t in range(frames):
            for back in range(taps):
                if t - back >= 0:
                    frame = u[b, t - back] if segment[b, t - back] == segment[b, t] else 0.0
                else:
                    frame = tail[b, taps - 1 + t - back] if segment[b, t] == 0 else 0.0
                x[b, t] += conv_weight[taps - 1 - back] * frame
        for slot in range(taps - 1):
            t = frames - (taps - 1) + slot
            if t >= 0:
                new_tail[b, slot] = u[b, t] if segment[b, t] == segment[b, -1] else 0.0
            elif segment[b, -1] == 0:
                new_tail[b, slot] = tail[b, taps - 1 + t]
    x += conv_bias

    def dense(weight: np.ndarray) -> np.ndarray:
        heads, width, out = weight.shape
        full = np.zeros((heads * width, heads * out))
        for head in range(heads):
            full[head * width : (head + 1) * width, head * out : (head + 1) * out] = weight[head]
        return full

    gate_x = x @ dense(gate_x_weight) + gate_x_bias.reshape(-1)
    gate_a = x @ dense(gate_a_weight) + gate_a_bias.reshape(-1)
    y, h_last = gated_lru(x, gate_x, gate_a, a_param, a_imag, h0=h0, reset=reset)
    gelu = 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
    return y * gelu, h_last, new_tail


def spatial_attention(qkv, num_heads, *, scale=None):  # type: ignore[no-untyped-def]
    *lead, tokens, width = qkv.shape
    dim = width // (3 * num_heads)
    packed = qkv.reshape(math.prod(lead), tokens, 3, num_heads, dim)
    out = np.zeros((packed.shape[0], tokens, num_heads, dim))
    for frame in range(packed.shape[0]):
        for head in range(num_heads):
            q, k, v = (packed[frame, :, part, head] for part in range(3))
            score = np.exp((1 / np.sqrt(dim) if scale is None else scale) * (q @ k.T))
            out[frame, :, head] = (score / score.sum(axis=1, keepdims=True)) @ v
    return (out.reshape(*qkv.shape[:-1], num_heads * dim),)
