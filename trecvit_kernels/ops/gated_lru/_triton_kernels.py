"""Gated LRU over (B, T, rows, C) views, a program walking BLOCK lanes through time; formulas in ``op.py``.

A lane is a gate: C of them in a row. In the complex case x, y and the states have rows of 2 C, real halves first.
Segments of time: a pass with SUMMARY finds each segment's end, walked from zero, and product of decays,
``carry_kernel`` the states that the segments start from, a pass without it the results. States are dense
(B, slots, rows): one slot per segment in ``start_ptr``, one per saved state in ``states_ptr``.

Frames beyond the end count as gate_a = -inf, x = 0: |a| = 1 and nothing is added, so the state stays as it is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trecvit_kernels.ops._triton_kernels import frame_masks, is_before, place
from trecvit_kernels.ops._triton_math import (
    LN2,
    LOG2E,
    advance,
    decay_and_gap,
    pull_back,
    root_and_inverse,
    sigmoid,
    sin_cos,
    softplus,
)

MAX_SQRT_SLOPE = tl.constexpr(1000.0)  # RecurrentGemma's bound on the square root's derivative
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
def load_pair(ptr, at, half, mask, COMPLEX: tl.constexpr):
    """Real and imaginary halves, 0 where masked. Real: the second is a placeholder."""
    re = tl.load(ptr + at, mask=mask, other=0.0)
    if COMPLEX:
        return re, tl.load(ptr + at + half, mask=mask, other=0.0)
    return re, re


@triton.jit
def store_pair(ptr, at, half, re, im, mask, COMPLEX: tl.constexpr):
    tl.store(ptr + at, re.to(ptr.dtype.element_ty), mask=mask)
    if COMPLEX:
        tl.store(ptr + at + half, im.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_frames(ptr, at, step, masks, OTHER: tl.constexpr, K: tl.constexpr):
    """K frames as a tuple; OTHER where masked."""
    frames = ()
    for k in tl.static_range(K):
        frames = frames + (tl.load(ptr + at, mask=masks[k], other=OTHER),)
        at += step
    return frames


@triton.jit
def load_resets(reset_ptr, at, left, masks, FLAT: tl.constexpr, K: tl.constexpr):
    """The resets of K frames as a tuple of numbers (FLAT: tiles), 0 from frame ``left`` on."""
    resets = ()
    if reset_ptr is not None:
        for k in tl.static_range(K):
            resets = resets + (tl.load(reset_ptr + at + k, mask=masks[k] if FLAT else k < left, other=0),)
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
def step(
    h_re,
    h_im,
    x_re,
    x_im,
    gate_x,
    gate_a,
    decay,
    phase,
    reset,
    CAN_RESET: tl.constexpr,
    CONVEX: tl.constexpr,
    COMPLEX: tl.constexpr,
):
    """One frame: the next state, and a (0 at a reset)."""
    a_re, a_im, gap, _ = decay_of(sigmoid(gate_a), decay, phase, COMPLEX)
    beta = gap
    if not CONVEX:
        beta = tl.sqrt(gap * (2.0 - gap))  # 1 - |a|^2 = (1 - |a|) (2 - (1 - |a|))
    if CAN_RESET:
        beta = tl.where(reset, 1.0, beta)
        a_re = tl.where(reset, 0.0, a_re)
        h_re = tl.where(reset, 0.0, h_re)  # whatever it held: 0 times NaN is NaN
        if COMPLEX:
            a_im = tl.where(reset, 0.0, a_im)
            h_im = tl.where(reset, 0.0, h_im)
    scale = beta * sigmoid(gate_x)
    h_re, h_im = advance(a_re, a_im, h_re, h_im, scale * x_re, scale * x_im, COMPLEX)
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
    FLAT: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y, h_last and, unless states_ptr is None, the state before every FRAMES_PER_STATE-th frame but the first.

    SUMMARY: instead the end of each segment and the product of its decays, (B, segments, rows), into h_last and
    product. STARTS: frame 0 resets. K frames are loaded while the K frames before them are computed.
    """
    S: tl.constexpr = h_last_ptr.dtype.element_ty
    COMPLEX: tl.constexpr = a_imag_ptr is not None
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    segment, batch, _, row, channel, is_lane = place(lanes, channels, batches, segments, FLAT, BLOCK)
    decay, phase = load_parameters(a_param_ptr, a_imag_ptr, channel, is_lane, S)
    begin = segment * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    x_step = tl.cast(x_stride_t, tl.int64)
    gate_x_step = tl.cast(gate_x_stride_t, tl.int64)
    gate_a_step = tl.cast(gate_a_stride_t, tl.int64)
    y_step = tl.cast(lanes, tl.int64) * PARTS
    at_x = batch * x_stride_b + begin * x_step + row * x_stride_r + channel
    at_gate_x = batch * gate_x_stride_b + begin * gate_x_step + row * gate_x_stride_r + channel
    at_gate_a = batch * gate_a_stride_b + begin * gate_a_step + row * gate_a_stride_r + channel
    at_state = row * channels * PARTS + channel
    at_y = (batch * frames + begin) * y_step + at_state

    h_re = tl.zeros((BLOCK,), dtype=S)
    h_im = h_re
    product_re = tl.full((BLOCK,), 1.0, dtype=S)
    product_im = tl.zeros((BLOCK,), dtype=S)
    if start_ptr is not None:
        at = (batch * segments + segment) * y_step + at_state
        h_re, h_im = load_pair(start_ptr, at, channels, is_lane, COMPLEX)

    masks = frame_masks(count, is_lane, K, BLOCK)
    gate_a = load_frames(gate_a_ptr, at_gate_a, gate_a_step, masks, NEVER, K)
    gate_x = load_frames(gate_x_ptr, at_gate_x, gate_x_step, masks, 0.0, K)
    x_re = load_frames(x_ptr, at_x, x_step, masks, 0.0, K)
    x_im = load_frames(x_ptr, at_x + channels, x_step, masks, 0.0, K) if COMPLEX else x_re
    for n in range(0, count, K):
        t = begin + n
        left = count - n
        at_x += K * x_step
        at_gate_x += K * gate_x_step
        at_gate_a += K * gate_a_step
        masks = frame_masks(left, is_lane, K, BLOCK)
        resets = load_resets(reset_ptr, batch * frames + t, left, masks, FLAT, K)
        next_masks = frame_masks(left - K, is_lane, K, BLOCK)
        next_gate_a = load_frames(gate_a_ptr, at_gate_a, gate_a_step, next_masks, NEVER, K)
        next_gate_x = load_frames(gate_x_ptr, at_gate_x, gate_x_step, next_masks, 0.0, K)
        next_x_re = load_frames(x_ptr, at_x, x_step, next_masks, 0.0, K)
        next_x_im = load_frames(x_ptr, at_x + channels, x_step, next_masks, 0.0, K) if COMPLEX else next_x_re
        if states_ptr is not None and (t % FRAMES_PER_STATE == 0) & (t > 0):
            slot = batch * ((frames - 1) // FRAMES_PER_STATE) + t // FRAMES_PER_STATE - 1
            store_pair(states_ptr, slot * y_step + at_state, channels, h_re, h_im, is_lane, COMPLEX)
        for k in tl.static_range(K):
            reset = resets[k] != 0 if reset_ptr is not None else t == 0
            h_re, h_im, a_re, a_im = step(
                h_re,
                h_im,
                x_re[k].to(S),
                x_im[k].to(S),
                gate_x[k].to(S),
                gate_a[k].to(S),
                decay,
                phase,
                reset,
                reset_ptr is not None or (STARTS and k == 0),
                CONVEX,
                COMPLEX,
            )
            if SUMMARY:
                if reset_ptr is not None or (STARTS and k == 0):
                    product_re = tl.where(reset, 0.0, product_re)
                    product_im = tl.where(reset, 0.0, product_im)
                product_re, product_im = advance(a_re, a_im, product_re, product_im, 0.0, 0.0, COMPLEX)
            else:
                store_pair(y_ptr, at_y, channels, h_re, h_im, masks[k], COMPLEX)
            at_y += y_step
        gate_a, gate_x, x_re, x_im = next_gate_a, next_gate_x, next_x_re, next_x_im
    if SUMMARY:
        at = (batch * segments + segment) * y_step + at_state
        store_pair(h_last_ptr, at, channels, h_re, h_im, is_lane, COMPLEX)
        store_pair(product_ptr, at, channels, product_re, product_im, is_lane, COMPLEX)
    elif segment == segments - 1:
        store_pair(h_last_ptr, batch * y_step + at_state, channels, h_re, h_im, is_lane, COMPLEX)


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
    FLAT: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The adjoint c = conj(a_t) (dy_t + c) of each segment, from zero, and the product of conj(a_t).

    Segments are numbered as the adjoint walks: the last in time is number 0.
    """
    S: tl.constexpr = end_ptr.dtype.element_ty
    COMPLEX: tl.constexpr = a_imag_ptr is not None
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    segment, batch, _, row, channel, is_lane = place(lanes, channels, batches, segments, FLAT, BLOCK)
    decay, phase = load_parameters(a_param_ptr, a_imag_ptr, channel, is_lane, S)
    begin = (segments - 1 - segment) * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    dy_step = tl.cast(dy_stride_t, tl.int64)
    gate_a_step = tl.cast(gate_a_stride_t, tl.int64)
    last = begin + count - 1
    at_dy = batch * dy_stride_b + last * dy_step + row * dy_stride_r + channel
    at_gate_a = batch * gate_a_stride_b + last * gate_a_step + row * gate_a_stride_r + channel
    c_re = tl.zeros((BLOCK,), dtype=S)
    c_im = c_re
    product_re = tl.full((BLOCK,), 1.0, dtype=S)
    product_im = c_re
    for n in range(0, count, K):
        masks = frame_masks(count - n, is_lane, K, BLOCK)
        gate_a = load_frames(gate_a_ptr, at_gate_a, -gate_a_step, masks, NEVER, K)
        dy_re = load_frames(dy_ptr, at_dy, -dy_step, masks, 0.0, K)
        dy_im = load_frames(dy_ptr, at_dy + channels, -dy_step, masks, 0.0, K) if COMPLEX else dy_re
        for k in tl.static_range(K):
            a_re, a_im, _gap, _magnitude = decay_of(sigmoid(gate_a[k].to(S)), decay, phase, COMPLEX)
            c_re += dy_re[k].to(S)
            if COMPLEX:
                c_im += dy_im[k].to(S)
            c_re, c_im = pull_back(a_re, a_im, c_re, c_im, COMPLEX)
            product_re, product_im = pull_back(a_re, a_im, product_re, product_im, COMPLEX)
            if reset_ptr is not None or STARTS:
                t = last - n - k
                reset = t == 0
                if reset_ptr is not None:
                    mask = masks[k] if FLAT else t >= begin
                    reset = tl.load(reset_ptr + batch * frames + t, mask=mask, other=0) != 0
                c_re = tl.where(reset, 0.0, c_re)
                product_re = tl.where(reset, 0.0, product_re)
                if COMPLEX:
                    c_im = tl.where(reset, 0.0, c_im)
                    product_im = tl.where(reset, 0.0, product_im)
        at_dy -= K * dy_step
        at_gate_a -= K * gate_a_step
    at = (batch * segments + segment) * lanes * PARTS + row * channels * PARTS + channel
    store_pair(end_ptr, at, channels, c_re, c_im, is_lane, COMPLEX)
    store_pair(product_ptr, at, channels, product_re, product_im, is_lane, COMPLEX)


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
    FLAT: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of x and the gates, of h0, and per lane and segment the sums of r dl and r dphi over time.

    Tile by tile of K frames, the last first. All gradients of a frame are linear in G, so the walk forward (from the
    chunk's saved state) leaves only their factors, and the walk backward multiplies. carry: the adjoint that each
    segment starts from (dh_last for the last one in time). sums: (1 or 2, B, segments, lanes).
    """
    S: tl.constexpr = carry_ptr.dtype.element_ty
    COMPLEX: tl.constexpr = a_imag_ptr is not None
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    CAN_RESET: tl.constexpr = reset_ptr is not None or STARTS
    segment, batch, lane, row, channel, is_lane = place(lanes, channels, batches, segments, FLAT, BLOCK)
    decay, phase = load_parameters(a_param_ptr, a_imag_ptr, channel, is_lane, S)
    begin = (segments - 1 - segment) * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    dy_step = tl.cast(dy_stride_t, tl.int64)
    x_step = tl.cast(x_stride_t, tl.int64)
    gate_x_step = tl.cast(gate_x_stride_t, tl.int64)
    gate_a_step = tl.cast(gate_a_stride_t, tl.int64)
    d_step = tl.cast(lanes, tl.int64)
    at_dy = batch * dy_stride_b + row * dy_stride_r + channel
    at_x = batch * x_stride_b + row * x_stride_r + channel
    at_gate_x = batch * gate_x_stride_b + row * gate_x_stride_r + channel
    at_gate_a = batch * gate_a_stride_b + row * gate_a_stride_r + channel
    at_state = row * channels * PARTS + channel

    at = (batch * segments + segment) * d_step * PARTS + at_state
    g_re, g_im = load_pair(carry_ptr, at, channels, is_lane, COMPLEX)
    sum_dl = tl.zeros((BLOCK,), dtype=S)
    sum_dphi = sum_dl
    for n in range(0, count, K):
        t = begin + (count - 1) // K * K - n
        left = tl.minimum(frames - t, K).to(tl.int32)
        masks = frame_masks(left, is_lane, K, BLOCK)
        gate_a = load_frames(gate_a_ptr, at_gate_a + t * gate_a_step, gate_a_step, masks, NEVER, K)
        gate_x = load_frames(gate_x_ptr, at_gate_x + t * gate_x_step, gate_x_step, masks, 0.0, K)
        x_re = load_frames(x_ptr, at_x + t * x_step, x_step, masks, 0.0, K)
        x_im = x_re
        if COMPLEX:
            x_im = load_frames(x_ptr, at_x + channels + t * x_step, x_step, masks, 0.0, K)
        resets = load_resets(reset_ptr, batch * frames + t, left, masks, FLAT, K)

        chunk = t // FRAMES_PER_STATE
        saved = (frames - 1) // FRAMES_PER_STATE
        at = (batch * saved + chunk - 1) * d_step * PARTS + at_state
        h_re, h_im = load_pair(states_ptr, at, channels, is_lane & is_before(0, chunk, BLOCK), COMPLEX)
        if h0_ptr is not None:
            is_first = is_lane & is_before(0, 1 - chunk, BLOCK)
            h0_re, h0_im = load_pair(h0_ptr, batch * d_step * PARTS + at_state, channels, is_first, COMPLEX)
            h_re = tl.where(is_first, h0_re, h_re)
            h_im = tl.where(is_first, h0_im, h_im)
        if K < FRAMES_PER_STATE:
            for s in range(chunk * FRAMES_PER_STATE, t):
                s_a = tl.load(gate_a_ptr + at_gate_a + s * gate_a_step, mask=is_lane, other=0.0)
                s_x = tl.load(gate_x_ptr + at_gate_x + s * gate_x_step, mask=is_lane, other=0.0)
                s_re, s_im = load_pair(x_ptr, at_x + s * x_step, channels, is_lane, COMPLEX)
                reset = s == 0
                if reset_ptr is not None:
                    reset = (
                        tl.load(reset_ptr + batch * frames + s, mask=is_lane if FLAT else s >= 0, other=0)
                        != 0
                    )
                h_re, h_im, a_re, a_im = step(
                    h_re,
                    h_im,
                    s_re.to(S),
                    s_im.to(S),
                    s_x.to(S),
                    s_a.to(S),
                    decay,
                    phase,
                    reset,
                    CAN_RESET,
                    CONVEX,
                    COMPLEX,
                )

        # Factors: of G in dx, dgate_x, dgate_a and r dl; if complex dgate_a comes from r dl and r dphi.
        decays_re, decays_im, to_x, to_gate_x_re, to_gate_x_im = (), (), (), (), ()
        to_gate_a, to_dl_re, to_dl_im, to_dphi_re, to_dphi_im = (), (), (), (), ()
        for k in tl.static_range(K):
            i = sigmoid(gate_x[k].to(S))
            r = sigmoid(gate_a[k].to(S))
            u_re = x_re[k].to(S)
            u_im = x_im[k].to(S)
            a_re, a_im, gap, magnitude = decay_of(r, decay, phase, COMPLEX)
            if CONVEX:
                beta = gap
                slope = -magnitude
            else:
                beta, inverse = root_and_inverse(gap * (2.0 - gap))
                slope = -magnitude * magnitude * tl.minimum(inverse, 2.0 * MAX_SQRT_SLOPE)
            if reset_ptr is not None or (STARTS and k == 0):
                reset = resets[k] != 0 if reset_ptr is not None else t == 0
                beta = tl.where(reset, 1.0, beta)
                slope = tl.where(reset, 0.0, slope)
                a_re = tl.where(reset, 0.0, a_re)
                h_re = tl.where(reset, 0.0, h_re)
                if COMPLEX:
                    a_im = tl.where(reset, 0.0, a_im)
                    h_im = tl.where(reset, 0.0, h_im)
            scale = beta * i
            slope = slope * i
            closed = scale * (1.0 - i)
            to_x = to_x + (scale,)
            decays_re = decays_re + (a_re,)
            if COMPLEX:
                ah_re, ah_im = advance(a_re, a_im, h_re, h_im, 0.0, 0.0, True)
                h_re = ah_re + scale * u_re
                h_im = ah_im + scale * u_im
                decays_im = decays_im + (a_im,)
                to_gate_x_re = to_gate_x_re + (closed * u_re,)
                to_gate_x_im = to_gate_x_im + (closed * u_im,)
                to_dl_re = to_dl_re + (r * (ah_re + slope * u_re),)
                to_dl_im = to_dl_im + (r * (ah_im + slope * u_im),)
                to_dphi_re = to_dphi_re + (r * ah_re,)
                to_dphi_im = to_dphi_im + (r * ah_im,)
                to_gate_a = to_gate_a + (1.0 - r,)
            else:
                ah = a_re * h_re
                h_re = ah + scale * u_re
                to_gate_x_re = to_gate_x_re + (closed * u_re,)
                to_dl = r * (ah + slope * u_re)
                to_dl_re = to_dl_re + (to_dl,)
                to_gate_a = to_gate_a + ((1.0 - r) * (decay * LN2) * to_dl,)

        dy_re = load_frames(dy_ptr, at_dy + t * dy_step, dy_step, masks, 0.0, K)
        dy_im = dy_re
        if COMPLEX:
            dy_im = load_frames(dy_ptr, at_dy + channels + t * dy_step, dy_step, masks, 0.0, K)
        at_dgate = (batch * frames + t + K - 1) * d_step + lane
        at_dx = (batch * frames + t + K - 1) * d_step * PARTS + at_state
        for k in tl.static_range(K - 1, -1, -1):
            g_re += dy_re[k].to(S)
            if COMPLEX:
                g_im += dy_im[k].to(S)
                r_dl = to_dl_re[k] * g_re + to_dl_im[k] * g_im
                r_dphi = to_dphi_re[k] * g_im - to_dphi_im[k] * g_re
                dgate_x = to_gate_x_re[k] * g_re + to_gate_x_im[k] * g_im
                dgate_a = to_gate_a[k] * (decay * LN2 * r_dl + phase * r_dphi)
                sum_dphi += r_dphi
                store_pair(dx_ptr, at_dx, channels, to_x[k] * g_re, to_x[k] * g_im, masks[k], True)
                g_re, g_im = pull_back(decays_re[k], decays_im[k], g_re, g_im, True)
            else:
                r_dl = to_dl_re[k] * g_re
                dgate_x = to_gate_x_re[k] * g_re
                dgate_a = to_gate_a[k] * g_re
                store_pair(dx_ptr, at_dx, channels, to_x[k] * g_re, g_re, masks[k], False)
                g_re = decays_re[k] * g_re
            sum_dl += r_dl
            tl.store(dgate_x_ptr + at_dgate, dgate_x.to(dgate_x_ptr.dtype.element_ty), mask=masks[k])
            tl.store(dgate_a_ptr + at_dgate, dgate_a.to(dgate_a_ptr.dtype.element_ty), mask=masks[k])
            if reset_ptr is not None or (STARTS and k == 0):
                reset = resets[k] != 0 if reset_ptr is not None else t == 0
                g_re = tl.where(reset, 0.0, g_re)
                if COMPLEX:
                    g_im = tl.where(reset, 0.0, g_im)
            at_dgate -= d_step
            at_dx -= d_step * PARTS
    if segment == segments - 1:
        store_pair(dh0_ptr, batch * d_step * PARTS + at_state, channels, g_re, g_im, is_lane, COMPLEX)
    at = (batch * segments + segment) * d_step + lane
    tl.store(sums_ptr + at, sum_dl, mask=is_lane)
    if COMPLEX:
        tl.store(sums_ptr + batches * segments * d_step + at, sum_dphi, mask=is_lane)
