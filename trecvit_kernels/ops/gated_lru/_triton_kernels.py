"""Gated LRU forward over (B, T, rows, C) views, a program walking BLOCK lanes through time; formulas in ``op.py``.

A lane is a gate: C of them in a row. In the complex case x, y and the states have rows of 2 C, real halves first.
Segments of time: a pass with SUMMARY finds each segment's end, walked from zero, and product of decays,
``carry_kernel`` the states that the segments start from, a pass without it the results. States are dense
(B, slots, rows): one slot per segment in ``start_ptr``, one per saved state in ``states_ptr``.

Tiles are (frames, lanes) and lie in memory such that a thread has all frames of its VECTOR lanes. MASKED: lanes or
frames may end inside a tile. Frames beyond the end count as gate_a = -inf, x = 0: |a| = 1 and nothing is added.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trecvit_kernels.ops._triton_kernels import is_before, pick_row, place, put_row
from trecvit_kernels.ops._triton_math import LOG2E, advance, decay_and_gap, sigmoid, sin_cos, softplus

NEVER = tl.constexpr(float("-inf"))  # gate_a of frames that do not exist


@triton.jit
def load_parameters(a_param_ptr, a_imag_ptr, channel, is_lane, S: tl.constexpr):
    """(decay, phase) per lane: |a| = 2^(decay r), arg a = phase r."""
    a_param = tl.load(a_param_ptr + channel, mask=is_lane, other=0.0).to(S)
    decay = softplus(a_param) * (-8.0 * LOG2E)
    phase = decay
    if a_imag_ptr is not None:
        phase = tl.load(a_imag_ptr + channel, mask=is_lane, other=0.0).to(S)
    return decay, phase


@triton.jit
def origin(stride_b, stride_r, batch, row, channel, FLAT: tl.constexpr, WIDE: tl.constexpr):
    """Offset of a lane's frame 0 as (number, tile): the less a tile holds, the fewer registers addresses take."""
    if FLAT:
        return stride_b * 0, batch * stride_b + row * stride_r + channel
    at = row * stride_r + channel
    if not WIDE:
        at = at.to(tl.int32)
    return batch * stride_b, at


@triton.jit
def tile_of(start, rows, step, at):
    """Pointers to a tile of frames from the pointer ``start`` on; at: of its lanes."""
    return start + rows * step + at[None, :]


@triton.jit
def load_tile(ptrs, mask, OTHER: tl.constexpr, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(ptrs, mask=mask, other=OTHER)
    return tl.load(ptrs)


@triton.jit
def store_tile(ptrs, tile, mask, MASKED: tl.constexpr):
    if MASKED:
        tl.store(ptrs, tile.to(ptrs.dtype.element_ty), mask=mask)
    else:
        tl.store(ptrs, tile.to(ptrs.dtype.element_ty))


@triton.jit
def load_state(ptrs, half, mask, COMPLEX: tl.constexpr):
    """Real and imaginary halves, 0 where masked. Real: the second is a placeholder."""
    re = tl.load(ptrs, mask=mask, other=0.0)
    if COMPLEX:
        return re, tl.load(ptrs + half, mask=mask, other=0.0)
    return re, re


@triton.jit
def store_state(ptrs, half, re, im, mask, COMPLEX: tl.constexpr):
    tl.store(ptrs, re, mask=mask)
    if COMPLEX:
        tl.store(ptrs + half, im, mask=mask)


@triton.jit
def load_resets(reset_ptr, at, left, is_lane, FLAT: tl.constexpr, K: tl.constexpr):
    """Whether each of K frames resets, a tuple of numbers (FLAT: of tiles) with zeros from frame ``left`` on."""
    resets = ()
    for k in tl.static_range(K):
        mask = k < left
        if FLAT:
            mask = is_lane & is_before(k, left, is_lane.shape[0])
        resets = resets + (tl.load(reset_ptr + at + k, mask=mask, other=0),)
    return resets


@triton.jit
def decay_of(r, decay, phase, COMPLEX: tl.constexpr):
    """(a, 1 - |a|, |a|) with a as real and imaginary part."""
    magnitude, gap = decay_and_gap(decay * r)
    if COMPLEX:
        sine, cosine = sin_cos(phase * r)
        return magnitude * cosine, magnitude * sine, gap, magnitude
    return magnitude, magnitude, gap, magnitude


@triton.jit
def open_tile(gate_a, gate_x, x_re, x_im, decay, phase, CONVEX: tl.constexpr, COMPLEX: tl.constexpr):
    """(a, beta i x, i x) of a tile of frames, pairs of real and imaginary part, as if none of them reset."""
    a_re, a_im, gap, _magnitude = decay_of(sigmoid(gate_a), decay[None, :], phase[None, :], COMPLEX)
    beta = gap
    if not CONVEX:
        beta = tl.sqrt(gap * (2.0 - gap))  # 1 - |a|^2 = (1 - |a|) (2 - (1 - |a|))
    i = sigmoid(gate_x)
    v_re = i * x_re
    if not COMPLEX:
        return a_re, a_re, beta * v_re, v_re, v_re, v_re
    v_im = i * x_im
    return a_re, a_im, beta * v_re, beta * v_im, v_re, v_im


@triton.jit
def step_row(opened, rows, k, h_re, h_im, reset, CAN_RESET: tl.constexpr, COMPLEX: tl.constexpr):
    """(state after frame k of a tile that ``open_tile`` made, a), pairs."""
    a_re, u_re = pick_row(opened[0], rows, k), pick_row(opened[2], rows, k)
    a_im, u_im = h_im, h_im
    if COMPLEX:
        a_im, u_im = pick_row(opened[1], rows, k), pick_row(opened[3], rows, k)
    if CAN_RESET:  # a = 0, beta = 1, whatever the state held: 0 times NaN is NaN
        a_re = tl.where(reset, 0.0, a_re)
        u_re = tl.where(reset, pick_row(opened[4], rows, k), u_re)
        h_re = tl.where(reset, 0.0, h_re)
        if COMPLEX:
            a_im = tl.where(reset, 0.0, a_im)
            u_im = tl.where(reset, pick_row(opened[5], rows, k), u_im)
            h_im = tl.where(reset, 0.0, h_im)
    h_re, h_im = advance(a_re, a_im, h_re, h_im, u_re, u_im, COMPLEX)
    return h_re, h_im, a_re, a_im


@triton.jit(do_not_specialize=["batches", "frames", "segment_frames", "segments"])
def forward_kernel(
    x_ptr,
    gate_x_ptr,
    gate_a_ptr,
    a_param_ptr,
    a_imag_ptr,
    reset_ptr,
    start_ptr,
    y_ptr,
    h_last_ptr,
    states_ptr,
    product_ptr,
    batches,
    frames,
    lanes,
    channels,
    segment_frames,
    segments,
    x_stride_b,
    x_stride_t,
    x_stride_r,
    gate_x_stride_b,
    gate_x_stride_t,
    gate_x_stride_r,
    gate_a_stride_b,
    gate_a_stride_t,
    gate_a_stride_r,
    STARTS: tl.constexpr,
    CONVEX: tl.constexpr,
    SUMMARY: tl.constexpr,
    FRAMES_PER_STATE: tl.constexpr,
    MASKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """y, h_last and, unless states_ptr is None, the state before every FRAMES_PER_STATE-th frame but the first.

    SUMMARY: instead the end of each segment and the product of its decays, (B, segments, rows), into h_last and
    product. STARTS: frame 0 resets. K frames are loaded while the K frames before them are computed.
    """
    S: tl.constexpr = h_last_ptr.dtype.element_ty
    COMPLEX: tl.constexpr = a_imag_ptr is not None
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    segment, batch, _, row, channel, is_lane = place(lanes, channels, batches, segments, FLAT, BLOCK, VECTOR)
    decay, phase = load_parameters(a_param_ptr, a_imag_ptr, channel, is_lane, S)
    begin = segment * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    rows = tl.arange(0, K)[:, None]
    x_step = tl.cast(x_stride_t, tl.int64)
    gate_x_step = tl.cast(gate_x_stride_t, tl.int64)
    gate_a_step = tl.cast(gate_a_stride_t, tl.int64)
    y_step = tl.cast(lanes, tl.int64) * PARTS
    base, x_at = origin(x_stride_b, x_stride_r, batch, row, channel, FLAT, WIDE)
    x_start = x_ptr + (base + begin * x_step)
    base, gate_x_at = origin(gate_x_stride_b, gate_x_stride_r, batch, row, channel, FLAT, WIDE)
    gate_x_start = gate_x_ptr + (base + begin * gate_x_step)
    base, gate_a_at = origin(gate_a_stride_b, gate_a_stride_r, batch, row, channel, FLAT, WIDE)
    gate_a_start = gate_a_ptr + (base + begin * gate_a_step)
    at_state = row * channels * PARTS + channel
    at_segment = (batch * segments + segment) * y_step + at_state

    h_re = tl.zeros((BLOCK,), dtype=S)
    h_im = h_re
    if start_ptr is not None:
        h_re, h_im = load_state(start_ptr + at_segment, channels, is_lane, COMPLEX)
    if SUMMARY:
        product_re = tl.full((BLOCK,), 1.0, dtype=S)
        product_im = tl.zeros((BLOCK,), dtype=S)
    else:
        base, y_at = origin(y_step * frames, channels * PARTS, batch, row, channel, FLAT, WIDE)
        y_start = y_ptr + (base + begin * y_step)

    mask = is_lane[None, :] & (rows < count)
    gate_a = load_tile(tile_of(gate_a_start, rows, gate_a_step, gate_a_at), mask, NEVER, MASKED)
    gate_x = load_tile(tile_of(gate_x_start, rows, gate_x_step, gate_x_at), mask, 0.0, MASKED)
    x_re = load_tile(tile_of(x_start, rows, x_step, x_at), mask, 0.0, MASKED)
    x_im = x_re
    if COMPLEX:
        x_im = load_tile(tile_of(x_start + channels, rows, x_step, x_at), mask, 0.0, MASKED)
    for n in range(0, count, K):
        t = begin + n
        left = count - n
        x_start += K * x_step
        gate_x_start += K * gate_x_step
        gate_a_start += K * gate_a_step
        mask = is_lane[None, :] & (rows < left)
        follows = rows * 0 < left - K  # one condition for all rows, as the last tile is full without MASKED
        if MASKED:
            follows = is_lane[None, :] & (rows < left - K)
        next_gate_a = load_tile(tile_of(gate_a_start, rows, gate_a_step, gate_a_at), follows, NEVER, True)
        next_gate_x = load_tile(tile_of(gate_x_start, rows, gate_x_step, gate_x_at), follows, 0.0, True)
        next_x_re = load_tile(tile_of(x_start, rows, x_step, x_at), follows, 0.0, True)
        next_x_im = next_x_re
        if COMPLEX:
            next_x_im = load_tile(tile_of(x_start + channels, rows, x_step, x_at), follows, 0.0, True)
        if reset_ptr is not None:
            resets = load_resets(reset_ptr, batch * frames + t, left, is_lane, FLAT, K)
        if states_ptr is not None and (t % FRAMES_PER_STATE == 0) & (t > 0):
            slot = batch * ((frames - 1) // FRAMES_PER_STATE) + t // FRAMES_PER_STATE - 1
            store_state(states_ptr + (slot * y_step + at_state), channels, h_re, h_im, is_lane, COMPLEX)

        opened = open_tile(gate_a.to(S), gate_x.to(S), x_re.to(S), x_im.to(S), decay, phase, CONVEX, COMPLEX)
        y_re, y_im = opened[2], opened[3]
        for k in tl.static_range(K):
            reset = t == 0
            if reset_ptr is not None:
                reset = resets[k] != 0
            h_re, h_im, a_re, a_im = step_row(
                opened, rows, k, h_re, h_im, reset, reset_ptr is not None or (STARTS and k == 0), COMPLEX
            )
            if SUMMARY:
                if reset_ptr is not None or (STARTS and k == 0):
                    product_re = tl.where(reset, 0.0, product_re)
                    product_im = tl.where(reset, 0.0, product_im)
                product_re, product_im = advance(a_re, a_im, product_re, product_im, 0.0, 0.0, COMPLEX)
            else:
                y_re = put_row(y_re, rows, k, h_re)
                if COMPLEX:
                    y_im = put_row(y_im, rows, k, h_im)
        if not SUMMARY:
            store_tile(tile_of(y_start, rows, y_step, y_at), y_re, mask, MASKED)
            if COMPLEX:
                store_tile(tile_of(y_start + channels, rows, y_step, y_at), y_im, mask, MASKED)
            y_start += K * y_step
        gate_a, gate_x, x_re, x_im = next_gate_a, next_gate_x, next_x_re, next_x_im
    if SUMMARY:
        store_state(h_last_ptr + at_segment, channels, h_re, h_im, is_lane, COMPLEX)
        store_state(product_ptr + at_segment, channels, product_re, product_im, is_lane, COMPLEX)
    elif segment == segments - 1:
        store_state(h_last_ptr + (batch * y_step + at_state), channels, h_re, h_im, is_lane, COMPLEX)
