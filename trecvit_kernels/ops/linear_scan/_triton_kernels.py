"""Linear scan h_t = a_t h_{t-1} + b_t over (B, T, rows, C) views, a program walking BLOCK lanes through time.

Complex tensors come as their real views: a number is two neighbouring elements, strides still count numbers. REVERSE
walks from the last frame to the first. Segments of time: a pass with SUMMARY finds each segment's end, walked from
zero, and product of decays, ``carry_kernel`` the states that the segments start from, a pass without it the results.
States are dense (B, slots, rows C): one slot per segment in ``start_ptr``, one per saved state in ``states_ptr``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trecvit_kernels.ops._triton_kernels import frame_masks, is_before, place
from trecvit_kernels.ops._triton_math import advance, pull_back


@triton.jit
def load_number(ptr, at, mask, OTHER: tl.constexpr, COMPLEX: tl.constexpr):
    """(real, imaginary) parts of the numbers ``at``, (OTHER, 0) where masked. Real: the second is a placeholder."""
    if COMPLEX:
        pair = tl.load(ptr + 2 * at[:, None] + tl.arange(0, 2)[None, :], mask=mask[:, None], other=0.0)
        re, im = tl.split(pair)
        if OTHER != 0.0:
            re = tl.where(mask, re, OTHER)
        return re, im
    value = tl.load(ptr + at, mask=mask, other=OTHER)
    return value, value


@triton.jit
def store_number(ptr, at, re, im, mask, COMPLEX: tl.constexpr):
    dtype = ptr.dtype.element_ty
    if COMPLEX:
        pair = tl.join(re.to(dtype), im.to(dtype))
        tl.store(ptr + 2 * at[:, None] + tl.arange(0, 2)[None, :], pair, mask=mask[:, None])
    else:
        tl.store(ptr + at, re.to(dtype), mask=mask)


@triton.jit
def load_frames(ptr, at, step, masks, OTHER: tl.constexpr, K: tl.constexpr, COMPLEX: tl.constexpr):
    """K frames as tuples of real and imaginary parts; (OTHER, 0) where masked."""
    re, im = (), ()
    for k in tl.static_range(K):
        b_re, b_im = load_number(ptr, at, masks[k], OTHER, COMPLEX)
        re = re + (b_re,)
        im = im + (b_im,)
        at += step
    return re, im


@triton.jit
def walked(stride_b, stride_t, stride_r, batch, row, channel, frames, REVERSE: tl.constexpr):
    """(offsets of the frame walked first, stride to the next): frame n that is walked is at the first + n strides."""
    step = tl.cast(stride_t, tl.int64)
    first = batch * stride_b + row * stride_r + channel
    if REVERSE:
        return first + (frames - 1) * step, -step
    return first, step


@triton.jit
def load_state(
    h0_ptr,
    states_ptr,
    batch,
    chunk,
    frames,
    lanes,
    lane,
    is_lane,
    FRAMES_PER_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPLEX: tl.constexpr,
):
    """The state before a chunk: h0 (zeros if None) before the first, else a saved one."""
    saved = (frames - 1) // FRAMES_PER_STATE
    mask = is_lane & is_before(0, chunk, BLOCK)
    re, im = load_number(states_ptr, (batch * saved + chunk - 1) * lanes + lane, mask, 0.0, COMPLEX)
    if h0_ptr is not None:
        mask = is_lane & is_before(chunk.to(tl.int32), 1, BLOCK)
        first_re, first_im = load_number(h0_ptr, batch * lanes + lane, mask, 0.0, COMPLEX)
        re = tl.where(mask, first_re, re)
        im = tl.where(mask, first_im, im)
    return re, im


@triton.jit(do_not_specialize=["batches", "frames", "segment_frames", "segments"])
def forward_kernel(
    a_ptr,
    b_ptr,
    start_ptr,
    h_ptr,
    h_last_ptr,
    states_ptr,
    product_ptr,
    batches,
    frames,
    lanes,
    channels,
    segment_frames,
    segments,
    a_stride_b,
    a_stride_t,
    a_stride_r,
    b_stride_b,
    b_stride_t,
    b_stride_r,
    REVERSE: tl.constexpr,
    COMPLEX: tl.constexpr,
    SUMMARY: tl.constexpr,
    FRAMES_PER_STATE: tl.constexpr,
    FLAT: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """h, h_last and, unless states_ptr is None, the state before every FRAMES_PER_STATE-th frame but the first.

    SUMMARY: instead the end of each segment and the product of its decays, (B, segments, lanes), into h_last and
    product. K frames are loaded while the K frames before them are computed.
    """
    S: tl.constexpr = h_last_ptr.dtype.element_ty
    segment, batch, lane, row, channel, is_lane = place(lanes, channels, batches, segments, FLAT, BLOCK)
    begin = segment * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    at_a, a_step = walked(a_stride_b, a_stride_t, a_stride_r, batch, row, channel, frames, REVERSE)
    at_b, b_step = walked(b_stride_b, b_stride_t, b_stride_r, batch, row, channel, frames, REVERSE)
    at_h, h_step = walked(
        tl.cast(lanes, tl.int64) * frames, lanes, channels, batch, row, channel, frames, REVERSE
    )
    at_a += begin * a_step
    at_b += begin * b_step
    at_h += begin * h_step

    at_start = (batch * segments + segment) * lanes + lane
    h_re = tl.zeros((BLOCK,), dtype=S)
    h_im = h_re
    if start_ptr is not None:
        h_re, h_im = load_number(start_ptr, at_start, is_lane, 0.0, COMPLEX)
    product_re = tl.full((BLOCK,), 1.0, dtype=S)
    product_im = tl.zeros((BLOCK,), dtype=S)

    masks = frame_masks(count, is_lane, K, BLOCK)
    a_re, a_im = load_frames(a_ptr, at_a, a_step, masks, 1.0, K, COMPLEX)
    b_re, b_im = load_frames(b_ptr, at_b, b_step, masks, 0.0, K, COMPLEX)
    for n in range(0, count, K):
        at_a += K * a_step
        at_b += K * b_step
        left = count - n
        masks = frame_masks(left - K, is_lane, K, BLOCK)
        next_a_re, next_a_im = load_frames(a_ptr, at_a, a_step, masks, 1.0, K, COMPLEX)
        next_b_re, next_b_im = load_frames(b_ptr, at_b, b_step, masks, 0.0, K, COMPLEX)
        t = begin + n
        if states_ptr is not None and (t % FRAMES_PER_STATE == 0) & (t > 0):
            slot = batch * ((frames - 1) // FRAMES_PER_STATE) + t // FRAMES_PER_STATE - 1
            store_number(states_ptr, slot * lanes + lane, h_re, h_im, is_lane, COMPLEX)
        for k in tl.static_range(K):
            x_re, x_im = a_re[k].to(S), a_im[k].to(S)
            h_re, h_im = advance(x_re, x_im, h_re, h_im, b_re[k].to(S), b_im[k].to(S), COMPLEX)
            if SUMMARY:
                product_re, product_im = advance(x_re, x_im, product_re, product_im, 0.0, 0.0, COMPLEX)
            else:
                mask = is_lane & is_before(k, left, BLOCK)
                store_number(h_ptr, at_h + k * h_step, h_re, h_im, mask, COMPLEX)
        at_h += K * h_step
        a_re, a_im, b_re, b_im = next_a_re, next_a_im, next_b_re, next_b_im
    if SUMMARY:
        store_number(h_last_ptr, at_start, h_re, h_im, is_lane, COMPLEX)
        store_number(product_ptr, at_start, product_re, product_im, is_lane, COMPLEX)
    elif segment == segments - 1:
        store_number(h_last_ptr, batch * lanes + lane, h_re, h_im, is_lane, COMPLEX)


@triton.jit(do_not_specialize=["batches", "frames", "segment_frames", "segments"])
def summarise_backward_kernel(
    a_ptr,
    dh_ptr,
    end_ptr,
    product_ptr,
    batches,
    frames,
    lanes,
    channels,
    segment_frames,
    segments,
    a_stride_b,
    a_stride_t,
    a_stride_r,
    dh_stride_b,
    dh_stride_t,
    dh_stride_r,
    REVERSE: tl.constexpr,
    COMPLEX: tl.constexpr,
    FLAT: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The adjoint c = conj(a_t) (dh_t + c) of each segment, from zero, and the product of conj(a_t).

    Segments are numbered as the adjoint walks: the last in time is number 0.
    """
    S: tl.constexpr = end_ptr.dtype.element_ty
    segment, batch, lane, row, channel, is_lane = place(lanes, channels, batches, segments, FLAT, BLOCK)
    begin = (segments - 1 - segment) * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    at_a, a_step = walked(a_stride_b, a_stride_t, a_stride_r, batch, row, channel, frames, REVERSE)
    at_dh, dh_step = walked(dh_stride_b, dh_stride_t, dh_stride_r, batch, row, channel, frames, REVERSE)
    at_a += (begin + count - 1) * a_step
    at_dh += (begin + count - 1) * dh_step
    c_re = tl.zeros((BLOCK,), dtype=S)
    c_im = c_re
    product_re = tl.full((BLOCK,), 1.0, dtype=S)
    product_im = c_re
    for n in range(0, count, K):
        masks = frame_masks(count - n, is_lane, K, BLOCK)
        a_re, a_im = load_frames(a_ptr, at_a, -a_step, masks, 1.0, K, COMPLEX)
        dh_re, dh_im = load_frames(dh_ptr, at_dh, -dh_step, masks, 0.0, K, COMPLEX)
        for k in tl.static_range(K):
            x_re, x_im = a_re[k].to(S), a_im[k].to(S)
            c_re += dh_re[k].to(S)
            if COMPLEX:
                c_im += dh_im[k].to(S)
            c_re, c_im = pull_back(x_re, x_im, c_re, c_im, COMPLEX)
            product_re, product_im = pull_back(x_re, x_im, product_re, product_im, COMPLEX)
        at_a -= K * a_step
        at_dh -= K * dh_step
    at = (batch * segments + segment) * lanes + lane
    store_number(end_ptr, at, c_re, c_im, is_lane, COMPLEX)
    store_number(product_ptr, at, product_re, product_im, is_lane, COMPLEX)


@triton.jit(do_not_specialize=["batches", "frames", "segment_frames", "segments"])
def backward_kernel(
    dh_ptr,
    a_ptr,
    b_ptr,
    h0_ptr,
    states_ptr,
    carry_ptr,
    da_ptr,
    db_ptr,
    dh0_ptr,
    batches,
    frames,
    lanes,
    channels,
    segment_frames,
    segments,
    dh_stride_b,
    dh_stride_t,
    dh_stride_r,
    a_stride_b,
    a_stride_t,
    a_stride_r,
    b_stride_b,
    b_stride_t,
    b_stride_r,
    REVERSE: tl.constexpr,
    COMPLEX: tl.constexpr,
    FRAMES_PER_STATE: tl.constexpr,
    FLAT: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """G_t = dh_t + conj(a_{t+1}) G_{t+1}; db_t = G_t; da_t = conj(h_{t-1}) G_t; dh0 = conj(a_0) G_0.

    Tile by tile of K frames, the last first: states forward from the chunk's saved state, then the adjoint backward,
    both from registers. carry: the adjoint that each segment starts from (dh_last for the last one in time).
    """
    S: tl.constexpr = carry_ptr.dtype.element_ty
    segment, batch, lane, row, channel, is_lane = place(lanes, channels, batches, segments, FLAT, BLOCK)
    begin = (segments - 1 - segment) * segment_frames
    count = tl.minimum(frames - begin, segment_frames).to(tl.int32)
    at_dh, dh_step = walked(dh_stride_b, dh_stride_t, dh_stride_r, batch, row, channel, frames, REVERSE)
    at_a, a_step = walked(a_stride_b, a_stride_t, a_stride_r, batch, row, channel, frames, REVERSE)
    at_b, b_step = walked(b_stride_b, b_stride_t, b_stride_r, batch, row, channel, frames, REVERSE)
    at_d, d_step = walked(
        tl.cast(lanes, tl.int64) * frames, lanes, channels, batch, row, channel, frames, REVERSE
    )
    g_re, g_im = load_number(carry_ptr, (batch * segments + segment) * lanes + lane, is_lane, 0.0, COMPLEX)

    for n in range(0, count, K):
        t = begin + (count - 1) // K * K - n
        left = tl.minimum(frames - t, K).to(tl.int32)
        masks = frame_masks(left, is_lane, K, BLOCK)
        a_re, a_im = load_frames(a_ptr, at_a + t * a_step, a_step, masks, 1.0, K, COMPLEX)
        b_re, b_im = load_frames(b_ptr, at_b + t * b_step, b_step, masks, 0.0, K, COMPLEX)
        chunk = t // FRAMES_PER_STATE
        h_re, h_im = load_state(
            h0_ptr, states_ptr, batch, chunk, frames, lanes, lane, is_lane, FRAMES_PER_STATE, BLOCK, COMPLEX
        )
        if K < FRAMES_PER_STATE:
            for s in range(chunk * FRAMES_PER_STATE, t):
                s_re, s_im = load_number(a_ptr, at_a + s * a_step, is_lane, 1.0, COMPLEX)
                u_re, u_im = load_number(b_ptr, at_b + s * b_step, is_lane, 0.0, COMPLEX)
                h_re, h_im = advance(s_re.to(S), s_im.to(S), h_re, h_im, u_re.to(S), u_im.to(S), COMPLEX)
        dh_re, dh_im = load_frames(dh_ptr, at_dh + t * dh_step, dh_step, masks, 0.0, K, COMPLEX)
        before_re, before_im = (), ()
        for k in tl.static_range(K):
            before_re = before_re + (h_re,)
            before_im = before_im + (h_im,)
            h_re, h_im = advance(
                a_re[k].to(S), a_im[k].to(S), h_re, h_im, b_re[k].to(S), b_im[k].to(S), COMPLEX
            )
        at = at_d + (t + K - 1) * d_step
        for k in tl.static_range(K - 1, -1, -1):
            g_re += dh_re[k].to(S)
            if COMPLEX:
                g_im += dh_im[k].to(S)
            store_number(db_ptr, at, g_re, g_im, masks[k], COMPLEX)
            da_re, da_im = pull_back(before_re[k], before_im[k], g_re, g_im, COMPLEX)
            store_number(da_ptr, at, da_re, da_im, masks[k], COMPLEX)
            g_re, g_im = pull_back(a_re[k].to(S), a_im[k].to(S), g_re, g_im, COMPLEX)
            at -= d_step
    if segment == segments - 1:
        store_number(dh0_ptr, batch * lanes + lane, g_re, g_im, is_lane, COMPLEX)
