"""Pieces of the recurrent mixer's kernels: tubes of a program, frames as tiles, convolution, gates.

``_triton_kernels`` says how the kernels see their tensors.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from trecvit_kernels.ops import _triton_math as _math
from trecvit_kernels.ops._triton import interpreting
from trecvit_kernels.ops._triton_math import LOG2E

INTERPRETED = tl.constexpr(interpreting())


def device_function(fn: Any) -> Any:
    """``triton.jit`` for a function that kernels call. On the interpreter the plain function: it runs inside a kernel,
    and preparing Triton's language anew for every call takes longer than what most of them do."""
    plain = getattr(fn, "fn", fn)
    return plain if interpreting() else triton.jit(plain)


advance, decay_and_gap, sin_cos, softplus = (
    device_function(f) for f in (_math.advance, _math.decay_and_gap, _math.sin_cos, _math.softplus)
)

DECAY_EXPONENT = tl.constexpr(8.0)  # c of Griffin's RG-LRU
GELU_SCALE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2/pi)


@device_function
def sigmoid_exp2(t):
    """1 / (1 + 2^t), that is sigmoid(x) for t = -x log2(e). On GPUs the square of the reciprocal root is as exact as
    an approximate division and takes a third of its instructions."""
    if t.dtype == tl.float64:
        return 1.0 / (1.0 + tl.exp2(t))
    root = tl.rsqrt(1.0 + tl.exp2(t))
    return root * root


@device_function
def gelu(v):
    """gelu_tanh(v) = v sigmoid(2 sqrt(2/pi) (v + 0.044715 v^3))."""
    return v * sigmoid_exp2(v * (-GELU_SCALE * LOG2E - 0.044715 * GELU_SCALE * LOG2E * v * v))


@device_function
def tubes_of_tile(tile, tubes, tokens, BLOCK_N: tl.constexpr, INDEX: tl.constexpr):
    """(tube, batch, token, whether it exists) in the type of offsets; tubes past the last repeat it."""
    i_r = tl.cast(tile, INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = i_r < tubes
    i_r = tl.minimum(i_r, tl.cast(tubes, INDEX) - 1)
    i_b = i_r // tokens
    return i_r, i_b, i_r - i_b * tokens, exists


@device_function
def stack(tiles, FRAMES: tl.constexpr):
    """FRAMES tiles (N, C) -> (N FRAMES, C), row = n FRAMES + frame."""
    n: tl.constexpr = tiles[0].shape[0]
    c: tl.constexpr = tiles[0].shape[1]
    for level in tl.static_range(5):
        if FRAMES >> (level + 1) > 0:
            joined = ()
            for i in tl.static_range(FRAMES >> (level + 1)):
                pair = tl.join(tiles[i], tiles[i + (FRAMES >> (level + 1))])
                joined = joined + (tl.reshape(tl.permute(pair, (0, 2, 1)), (n << (level + 1), c)),)
            tiles = joined
    return tiles[0]


@device_function
def unstack(tile, FRAMES: tl.constexpr):
    """The inverse of ``stack``."""
    n: tl.constexpr = tile.shape[0]
    c: tl.constexpr = tile.shape[1]
    tiles = (tile,)
    for level in tl.static_range(5):
        if FRAMES >> (level + 1) > 0:
            even = ()
            odd = ()
            for i in tl.static_range(1 << level):
                pair = tl.permute(tl.reshape(tiles[i], (n >> (level + 1), 2, c)), (0, 2, 1))
                first, second = tl.split(pair)
                even = even + (first,)
                odd = odd + (second,)
            tiles = even + odd
    return tiles


@device_function
def product(a, b, DTYPE: tl.constexpr):
    """a b, accumulated in DTYPE. (The interpreter multiplies the bits of bfloat16 numbers.)"""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee", out_dtype=DTYPE)


@device_function
def is_before(frame, end, BLOCK_N: tl.constexpr):
    """frame < end as a (BLOCK_N, 1) tile: the interpreter does not combine masks with scalar conditions."""
    return tl.full((BLOCK_N, 1), frame, tl.int32) < end


@device_function
def channel_row(ptr, cols, is_channel, PADDED: tl.constexpr, DTYPE: tl.constexpr):
    """One value per channel as a (1, C) tile; zero where there is no channel."""
    if PADDED:
        return tl.load(ptr + cols, mask=is_channel, other=0.0).to(DTYPE)[None, :]
    return tl.load(ptr + cols).to(DTYPE)[None, :]


@device_function
def channel_tile(ptr, cols, is_channel, BLOCK_N: tl.constexpr, PADDED: tl.constexpr, DTYPE: tl.constexpr):
    """One value per channel, repeated in every row. Unlike a row's, the layout of a whole tile's load is taken over by
    what is computed with it: so the recurrence runs in the layout of u and v, not in that of the products."""
    at = tl.zeros((BLOCK_N, 1), tl.int32) + cols[None, :]
    if PADDED:
        return tl.load(ptr + at, mask=is_channel[None, :], other=0.0).to(DTYPE)
    return tl.load(ptr + at).to(DTYPE)


@device_function
def taps_of(
    weight_ptr,
    bias_ptr,
    channels,
    cols,
    is_channel,
    TAPS: tl.constexpr,
    PADDED: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The convolution's weights, oldest frame first, and its bias. Loaded in every step anew: they come from the
    nearest cache, while registers are scarce."""
    taps = ()
    for k in tl.static_range(TAPS):
        taps = taps + (channel_row(weight_ptr + k * channels, cols, is_channel, PADDED, DTYPE),)
    return taps + (channel_row(bias_ptr, cols, is_channel, PADDED, DTYPE),)


@device_function
def convolve(window, taps, TAPS: tl.constexpr, DTYPE: tl.constexpr):
    """Output of the convolution at the last of TAPS frames."""
    x = taps[TAPS]
    for k in tl.static_range(TAPS):
        x = x + window[k].to(DTYPE) * taps[k]
    return x


@device_function
def frame(ptr, offset, lanes, mask, PADDED: tl.constexpr):
    """Tile of the frame that starts ``offset`` elements behind ``ptr``."""
    if PADDED:
        return tl.load(ptr + offset + lanes, mask=mask, other=0.0)
    return tl.load(ptr + offset + lanes)


@device_function
def frames_before(tail_ptr, u_ptr, lanes, stride_t, mask, TAPS: tl.constexpr, PADDED: tl.constexpr):
    """The TAPS - 1 frames before the first: the tail's, or zeros."""
    window = ()
    for k in tl.static_range(TAPS - 1):
        if tail_ptr is not None:
            window = window + (frame(tail_ptr, k * tl.cast(stride_t, tl.int64), lanes, mask, PADDED),)
        else:
            window = window + (tl.zeros(lanes.shape, u_ptr.dtype.element_ty),)
    return window


@device_function
def slide(window, b_u, b_reset, TAPS: tl.constexpr, RESETS: tl.constexpr):
    """TAPS frames, b_u the last. A reset hides the frames before it."""
    moved = ()
    for k in tl.static_range(TAPS - 1):
        if RESETS:
            moved = moved + (tl.where(b_reset, 0.0, window[k]).to(b_u.dtype),)
        else:
            moved = moved + (window[k],)
    return moved + (b_u,)


@device_function
def without_first(window, TAPS: tl.constexpr):
    """The last TAPS - 1 of TAPS frames."""
    rest = ()
    for k in tl.static_range(TAPS - 1):
        rest = rest + (window[k + 1],)
    return rest


@device_function
def gates_of(
    gate_x, gate_a, bias_x, bias_a, decay, theta, b_reset, RESETS: tl.constexpr, COMPLEX: tl.constexpr
):
    """(i, r, a_re, a_im, beta) of one frame from the products; the biases are times -log2(e), decay is
    log2|a| / r. At a reset beta = 1 (and the caller drops the state)."""
    i = sigmoid_exp2(gate_x * -LOG2E + bias_x)
    # Divided: an error of r adds up over frames where |a| is close to 1, and the square doubles that of its root.
    r = 1.0 / (1.0 + tl.exp2(gate_a * -LOG2E + bias_a))
    a_re, gap = decay_and_gap(decay * r)
    beta = tl.sqrt(gap * (2.0 - gap))  # 1 - |a|^2 = (1 - |a|) (1 + |a|)
    if RESETS:
        beta = tl.where(b_reset, 1.0, beta)
    a_im = a_re
    if COMPLEX:
        sin, cos = sin_cos(theta * r)
        a_im = a_re * sin
        a_re = a_re * cos
    return i, r, a_re, a_im, beta
