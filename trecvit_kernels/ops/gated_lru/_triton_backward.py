"""The backward half of ``_triton_kernels.py``: the same lanes, tiles, segments and states."""

from __future__ import annotations

import triton
import triton.language as tl

from trecvit_kernels.ops._triton_kernels import is_before, pick_row, place
from trecvit_kernels.ops._triton_math import LN2, advance, pull_back, root_and_inverse, sigmoid
from trecvit_kernels.ops.gated_lru._triton_kernels import (
    NEVER,
    decay_of,
    load_parameters,
    load_resets,
    load_state,
    load_tile,
    open_tile,
    origin,
    step_row,
    store_state,
    store_tile,
    tile_of,
)

MAX_SQRT_SLOPE = tl.constexpr(1000.0)  # RecurrentGemma's bound on the square root's derivative


@triton.jit(do_not_specialize=["batches", "frames", "segment_frames", "segments"])
def summarise_backward_kernel(
    dy_ptr,
    gate_a_ptr,
    a_param_ptr,
    a_imag_ptr,
    reset_ptr,
    end_ptr,
    product_ptr,
    batches,
    frames,
    lanes,
    channels,
    segment_frames,
    segments,
    dy_stride_b,
    dy_stride_t,
    dy_stride_r,
    gate_a_stride_b,
    gate_a_stride_t,
    gate_a_stride_r,
    STARTS: tl.constexpr,
    MASKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The adjoint c = conj(a_t) (dy_t + c) of each segment, from zero, and the product of conj(a_t).

    Segments are numbered as the adjoint walks: the last in time is number 0.
    """
    S: tl.constexpr = end_ptr.dtype.element_ty
    COMPLEX: tl.constexpr = a_imag_ptr is not None
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    segment, batch, _, row, channel, is_lane = place(lanes, channels, batches, segments, FLAT, BLOCK, VECTOR)
    decay, phase = load_parameters(a_param_ptr, a_imag_ptr, channel, is_lane, S)
    begin = (segments - 1 - segment) * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    first = begin + (count - 1) // K * K
    rows = tl.arange(0, K)[:, None]
    dy_step = tl.cast(dy_stride_t, tl.int64)
    gate_a_step = tl.cast(gate_a_stride_t, tl.int64)
    base, dy_at = origin(dy_stride_b, dy_stride_r, batch, row, channel, FLAT, WIDE)
    dy_start = dy_ptr + (base + first * dy_step)
    base, gate_a_at = origin(gate_a_stride_b, gate_a_stride_r, batch, row, channel, FLAT, WIDE)
    gate_a_start = gate_a_ptr + (base + first * gate_a_step)
    c_re = tl.zeros((BLOCK,), dtype=S)
    c_im = c_re
    product_re = tl.full((BLOCK,), 1.0, dtype=S)
    product_im = c_re
    for n in range(0, count, K):
        t = first - n
        left = tl.minimum(frames - t, K).to(tl.int32)
        mask = is_lane[None, :] & (rows < left)
        gate_a = load_tile(tile_of(gate_a_start, rows, gate_a_step, gate_a_at), mask, NEVER, MASKED)
        dy_re = load_tile(tile_of(dy_start, rows, dy_step, dy_at), mask, 0.0, MASKED)
        dy_im = dy_re
        if COMPLEX:
            dy_im = load_tile(tile_of(dy_start + channels, rows, dy_step, dy_at), mask, 0.0, MASKED)
        r = sigmoid(gate_a.to(S))
        if reset_ptr is not None:
            resets = load_resets(reset_ptr, batch * frames + t, left, is_lane, FLAT, K)
        a_re, a_im, _gap, _magnitude = decay_of(r, decay[None, :], phase[None, :], COMPLEX)
        dy_re, dy_im = dy_re.to(S), dy_im.to(S)
        for k in tl.static_range(K - 1, -1, -1):
            b_re, b_im = pick_row(a_re, rows, k), c_im
            c_re += pick_row(dy_re, rows, k)
            if COMPLEX:
                b_im = pick_row(a_im, rows, k)
                c_im += pick_row(dy_im, rows, k)
            c_re, c_im = pull_back(b_re, b_im, c_re, c_im, COMPLEX)
            product_re, product_im = pull_back(b_re, b_im, product_re, product_im, COMPLEX)
            if reset_ptr is not None or (STARTS and k == 0):
                reset = resets[k] != 0 if reset_ptr is not None else t == 0
                c_re = tl.where(reset, 0.0, c_re)
                product_re = tl.where(reset, 0.0, product_re)
                if COMPLEX:
                    c_im = tl.where(reset, 0.0, c_im)
                    product_im = tl.where(reset, 0.0, product_im)
        dy_start -= K * dy_step
        gate_a_start -= K * gate_a_step
    at = (batch * segments + segment) * lanes * PARTS + row * channels * PARTS + channel
    store_state(end_ptr + at, channels, c_re, c_im, is_lane, COMPLEX)
    store_state(product_ptr + at, channels, product_re, product_im, is_lane, COMPLEX)


@triton.jit
def factors_of(
    gate_x,
    gate_a,
    x_re,
    x_im,
    h_re,
    h_im,
    decay,
    phase,
    reset,
    CAN_RESET: tl.constexpr,
    CONVEX: tl.constexpr,
    COMPLEX: tl.constexpr,
):
    """What G is multiplied with in the gradients of one frame, and the frame's state.

    (a, to dx, to dgate_x, to dgate_a, to r dl, to r dphi, state), pairs of real and imaginary part where G is a pair.
    Real: to dgate_a includes to r dl; complex: it is the factor of dr.
    """
    i = sigmoid(gate_x)
    r = sigmoid(gate_a)
    a_re, a_im, gap, magnitude = decay_of(r, decay, phase, COMPLEX)
    if CONVEX:
        beta = gap
        slope = -magnitude
    else:
        beta, inverse = root_and_inverse(gap * (2.0 - gap))
        slope = -magnitude * magnitude * tl.minimum(inverse, 2.0 * MAX_SQRT_SLOPE)
    if CAN_RESET:  # a = 0, beta = 1, whatever the state held
        beta = tl.where(reset, 1.0, beta)
        slope = tl.where(reset, 0.0, slope)
        a_re = tl.where(reset, 0.0, a_re)
        h_re = tl.where(reset, 0.0, h_re)
        if COMPLEX:
            a_im = tl.where(reset, 0.0, a_im)
            h_im = tl.where(reset, 0.0, h_im)
    scale = beta * i
    closed = scale * (1.0 - i)
    slope = slope * i
    ah_re, ah_im = advance(a_re, a_im, h_re, h_im, -0.0, -0.0, COMPLEX)
    h_re = ah_re + scale * x_re
    to_dl_re = r * (ah_re + slope * x_re)
    if not COMPLEX:
        to_gate_a = (1.0 - r) * (decay * LN2) * to_dl_re
        return a_re, a_re, scale, closed * x_re, scale, to_gate_a, to_dl_re, scale, scale, scale, h_re, h_im
    h_im = ah_im + scale * x_im
    to_dl_im = r * (ah_im + slope * x_im)
    return (
        a_re,
        a_im,
        scale,
        closed * x_re,
        closed * x_im,
        1.0 - r,
        to_dl_re,
        to_dl_im,
        r * ah_re,
        r * ah_im,
        h_re,
        h_im,
    )


@triton.jit(do_not_specialize=["batches", "frames", "segment_frames", "segments"])
def backward_kernel(
    dy_ptr,
    x_ptr,
    gate_x_ptr,
    gate_a_ptr,
    a_param_ptr,
    a_imag_ptr,
    reset_ptr,
    h0_ptr,
    states_ptr,
    carry_ptr,
    dx_ptr,
    dgate_x_ptr,
    dgate_a_ptr,
    dh0_ptr,
    sums_ptr,
    batches,
    frames,
    lanes,
    channels,
    segment_frames,
    segments,
    dy_stride_b,
    dy_stride_t,
    dy_stride_r,
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
    FRAMES_PER_STATE: tl.constexpr,
    MASKED: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Gradients of x and the gates, of h0, and per lane and segment the sums of r dl and r dphi over time.

    Tile by tile of K frames, the last first. All gradients of a frame are linear in G, so the walk forward (from the
    state saved before the tile's chunk) leaves only their factors, and the walk backward multiplies. carry: the
    adjoint that each segment starts from (dh_last for the last one in time). sums: (1 or 2, B, segments, lanes).
    """
    S: tl.constexpr = carry_ptr.dtype.element_ty
    COMPLEX: tl.constexpr = a_imag_ptr is not None
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    segment, batch, lane, row, channel, is_lane = place(
        lanes, channels, batches, segments, FLAT, BLOCK, VECTOR
    )
    decay, phase = load_parameters(a_param_ptr, a_imag_ptr, channel, is_lane, S)
    begin = (segments - 1 - segment) * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    first = begin + (count - 1) // K * K
    rows = tl.arange(0, K)[:, None]
    dy_step = tl.cast(dy_stride_t, tl.int64)
    x_step = tl.cast(x_stride_t, tl.int64)
    gate_x_step = tl.cast(gate_x_stride_t, tl.int64)
    gate_a_step = tl.cast(gate_a_stride_t, tl.int64)
    gate_step = tl.cast(lanes, tl.int64)
    state_step = gate_step * PARTS
    base, dy_at = origin(dy_stride_b, dy_stride_r, batch, row, channel, FLAT, WIDE)
    dy_start = dy_ptr + (base + first * dy_step)
    base, x_at = origin(x_stride_b, x_stride_r, batch, row, channel, FLAT, WIDE)
    x_start = x_ptr + (base + first * x_step)
    base, gate_x_at = origin(gate_x_stride_b, gate_x_stride_r, batch, row, channel, FLAT, WIDE)
    gate_x_start = gate_x_ptr + (base + first * gate_x_step)
    base, gate_a_at = origin(gate_a_stride_b, gate_a_stride_r, batch, row, channel, FLAT, WIDE)
    gate_a_start = gate_a_ptr + (base + first * gate_a_step)
    base, dx_at = origin(state_step * frames, channels * PARTS, batch, row, channel, FLAT, WIDE)
    dx_start = dx_ptr + (base + first * state_step)
    base, dgate_at = origin(gate_step * frames, channels, batch, row, channel, FLAT, WIDE)
    dgate_x_start = dgate_x_ptr + (base + first * gate_step)
    dgate_a_start = dgate_a_ptr + (base + first * gate_step)
    at_state = row * channels * PARTS + channel

    at = (batch * segments + segment) * state_step + at_state
    g_re, g_im = load_state(carry_ptr + at, channels, is_lane, COMPLEX)
    sum_dl = tl.zeros((BLOCK,), dtype=S)
    sum_dphi = sum_dl
    for n in range(0, count, K):
        t = first - n
        left = tl.minimum(frames - t, K).to(tl.int32)
        mask = is_lane[None, :] & (rows < left)
        gate_a = load_tile(tile_of(gate_a_start, rows, gate_a_step, gate_a_at), mask, NEVER, MASKED)
        gate_x = load_tile(tile_of(gate_x_start, rows, gate_x_step, gate_x_at), mask, 0.0, MASKED)
        x_re = load_tile(tile_of(x_start, rows, x_step, x_at), mask, 0.0, MASKED)
        dy_re = load_tile(tile_of(dy_start, rows, dy_step, dy_at), mask, 0.0, MASKED)
        x_im, dy_im = x_re, dy_re
        if COMPLEX:
            x_im = load_tile(tile_of(x_start + channels, rows, x_step, x_at), mask, 0.0, MASKED)
            dy_im = load_tile(tile_of(dy_start + channels, rows, dy_step, dy_at), mask, 0.0, MASKED)
        if reset_ptr is not None:
            resets = load_resets(reset_ptr, batch * frames + t, left, is_lane, FLAT, K)
        chunk = t // FRAMES_PER_STATE
        slot = batch * ((frames - 1) // FRAMES_PER_STATE) + chunk - 1
        later = is_lane & is_before(0, chunk, BLOCK)
        h_re, h_im = load_state(states_ptr + (slot * state_step + at_state), channels, later, COMPLEX)
        if h0_ptr is not None:
            earliest = is_lane & is_before(0, 1 - chunk, BLOCK)
            h0_re, h0_im = load_state(h0_ptr + (batch * state_step + at_state), channels, earliest, COMPLEX)
            h_re = tl.where(earliest, h0_re, h_re)
            h_im = tl.where(earliest, h0_im, h_im)

        if K < FRAMES_PER_STATE:  # walk on from the saved state to frame t
            for s in range(chunk * FRAMES_PER_STATE, t, K):
                full = is_lane[None, :] & (rows < K)
                start = gate_a_start - (t - s) * gate_a_step
                early_a = load_tile(tile_of(start, rows, gate_a_step, gate_a_at), full, NEVER, MASKED)
                start = gate_x_start - (t - s) * gate_x_step
                early_x = load_tile(tile_of(start, rows, gate_x_step, gate_x_at), full, 0.0, MASKED)
                x_early = x_start - (t - s) * x_step
                u_re = load_tile(tile_of(x_early, rows, x_step, x_at), full, 0.0, MASKED).to(S)
                u_im = u_re
                if COMPLEX:
                    u_im = load_tile(tile_of(x_early + channels, rows, x_step, x_at), full, 0.0, MASKED)
                opened = open_tile(
                    early_a.to(S), early_x.to(S), u_re, u_im.to(S), decay, phase, CONVEX, COMPLEX
                )
                if reset_ptr is not None:
                    early_resets = load_resets(reset_ptr, batch * frames + s, frames, is_lane, FLAT, K)
                for k in tl.static_range(K):
                    reset = s == 0
                    if reset_ptr is not None:
                        reset = early_resets[k] != 0
                    h_re, h_im, _a_re, _a_im = step_row(
                        opened,
                        rows,
                        k,
                        h_re,
                        h_im,
                        reset,
                        reset_ptr is not None or (STARTS and k == 0),
                        COMPLEX,
                    )

        gate_a, gate_x, x_re, x_im = gate_a.to(S), gate_x.to(S), x_re.to(S), x_im.to(S)
        factors = ()
        for k in tl.static_range(K):
            reset = t == 0
            if reset_ptr is not None:
                reset = resets[k] != 0
            frame = factors_of(
                pick_row(gate_x, rows, k),
                pick_row(gate_a, rows, k),
                pick_row(x_re, rows, k),
                pick_row(x_im, rows, k),
                h_re,
                h_im,
                decay,
                phase,
                reset,
                reset_ptr is not None or (STARTS and k == 0),
                CONVEX,
                COMPLEX,
            )
            factors = factors + (frame,)
            h_re, h_im = frame[10], frame[11]

        dy_re, dy_im = dy_re.to(S), dy_im.to(S)
        for k in tl.static_range(K - 1, -1, -1):
            frame = factors[k]
            stored = is_lane & is_before(k, left, BLOCK)
            g_re += pick_row(dy_re, rows, k)
            dx_ptrs = dx_start + k * state_step + dx_at
            store_tile(dx_ptrs, frame[2] * g_re, stored, MASKED)
            if COMPLEX:
                g_im += pick_row(dy_im, rows, k)
                dl = frame[6] * g_re + frame[7] * g_im
                dphi = frame[8] * g_im - frame[9] * g_re
                dgate_x = frame[3] * g_re + frame[4] * g_im
                dgate_a = frame[5] * (decay * LN2 * dl + phase * dphi)
                store_tile(dx_ptrs + channels, frame[2] * g_im, stored, MASKED)
                sum_dphi += dphi
            else:
                dl = frame[6] * g_re
                dgate_x = frame[3] * g_re
                dgate_a = frame[5] * g_re
            store_tile(dgate_x_start + k * gate_step + dgate_at, dgate_x, stored, MASKED)
            store_tile(dgate_a_start + k * gate_step + dgate_at, dgate_a, stored, MASKED)
            sum_dl += dl
            g_re, g_im = pull_back(frame[0], frame[1], g_re, g_im, COMPLEX)
            if reset_ptr is not None or (STARTS and k == 0):
                reset = t == 0
                if reset_ptr is not None:
                    reset = resets[k] != 0
                g_re = tl.where(reset, 0.0, g_re)
                if COMPLEX:
                    g_im = tl.where(reset, 0.0, g_im)
        dy_start -= K * dy_step
        x_start -= K * x_step
        gate_x_start -= K * gate_x_step
        gate_a_start -= K * gate_a_step
        dx_start -= K * state_step
        dgate_x_start -= K * gate_step
        dgate_a_start -= K * gate_step
    if segment == segments - 1:
        store_state(dh0_ptr + (batch * state_step + at_state), channels, g_re, g_im, is_lane, COMPLEX)
    at = (batch * segments + segment) * gate_step + lane
    tl.store(sums_ptr + at, sum_dl, mask=is_lane)
    if COMPLEX:
        tl.store(sums_ptr + batches * segments * gate_step + at, sum_dphi, mask=is_lane)
