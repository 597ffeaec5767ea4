"""The recurrent mixer backward, in two passes that recompute convolution, gates and states.

Pass 1 walks time backwards in chunks of FRAMES frames, from the state saved before each: the products of a whole
chunk at once, the states forward in registers, then the gradient of the recurrence backwards. It writes the gradients
of v, of the gates' pre-activations and of the convolution's output through the recurrence. In a complex mixer the
channels of a head's recurrence are not those of its products, and the gradients of wide heads' weights do not fit on
chip beside the recurrence, so what goes through the gates' weights is left to pass 2: it adds the products with the
transposed weights, convolves backwards into u and sums the gradients of all weights. Names as in
``_triton_kernels``; G is the gradient of the state, P = conj(a) G that of the state one frame earlier.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trecvit_kernels.ops import _triton_math as _math
from trecvit_kernels.ops._triton_math import LN2, LOG2E
from trecvit_kernels.ops.recurrent_mixer._triton_parts import (
    GELU_SCALE,
    advance,
    channel_row,
    channel_tile,
    convolve,
    decay_and_gap,
    device_function,
    frame,
    gates_of,
    is_before,
    product,
    sigmoid_exp2,
    sin_cos,
    slide,
    stack,
    taps_of,
    tubes_of_tile,
    unstack,
    without_first,
)

MAX_SQRT_SLOPE = tl.constexpr(1000.0)  # RecurrentGemma's bound on the slope of the normaliser's root

pull_back = device_function(_math.pull_back)


@device_function
def gelu_and_slope(v):
    """gelu_tanh(v) = v s, s = sigmoid(2 sqrt(2/pi) (v + 0.044715 v^3)), and its slope."""
    w = tl.clamp(v, -10.0, 10.0, propagate_nan=tl.PropagateNan.ALL)  # beyond, the slope is 0 or 1
    square = w * w
    t = w * (-GELU_SCALE * LOG2E - 0.044715 * GELU_SCALE * LOG2E * square)
    e = tl.exp2(t)
    s = sigmoid_exp2(t)
    # e s = 1 - s without cancellation
    return v * s, s + w * s * (e * s) * (GELU_SCALE + 3 * 0.044715 * GELU_SCALE * square)


@device_function
def frame_before(
    tail_ptr, u_ptr, t, u_lanes, tail_lanes, u_stride_t, tail_stride_t, is_channel, TAPS: tl.constexpr
):
    """Tile of frame t of u, or, where t < 0, of the tail's or of zeros."""
    n: tl.constexpr = u_lanes.shape[0]
    inside = is_channel[None, :] & is_before(-t, 1, n)
    b_u = tl.load(u_ptr + tl.maximum(t, 0) * tl.cast(u_stride_t, tl.int64) + u_lanes, mask=inside, other=0.0)
    if tail_ptr is not None:
        at = tail_ptr + tl.maximum(t + (TAPS - 1), 0) * tl.cast(tail_stride_t, tl.int64)
        outside = is_channel[None, :] & is_before(t, 0, n)
        b_u = tl.where(inside, b_u, tl.load(at + tail_lanes, mask=outside, other=0.0).to(b_u.dtype))
    return b_u


@device_function
def window_before(
    tail_ptr,
    u_ptr,
    reset_ptr,
    t0,
    u_lanes,
    tail_lanes,
    u_stride_t,
    tail_stride_t,
    is_channel,
    TAPS: tl.constexpr,
):
    """The TAPS - 1 frames before t0, those before a reset among them zeroed. reset_ptr: of each tube's frame 0."""
    window = ()
    for k in tl.static_range(TAPS - 1):
        t = t0 - (TAPS - 1) + k
        b_u = frame_before(
            tail_ptr, u_ptr, t, u_lanes, tail_lanes, u_stride_t, tail_stride_t, is_channel, TAPS
        )
        if reset_ptr is not None:
            inside = is_before(-t, 1, u_lanes.shape[0])
            cut = tl.load(reset_ptr + tl.maximum(t, 0), mask=inside, other=0) != 0
            older = ()
            for i in tl.static_range(k):
                older = older + (tl.where(cut, 0.0, window[i]).to(b_u.dtype),)
            window = older
        window = window + (b_u,)
    return window


@triton.jit
def recurrence_kernel(
    dz_ptr,
    dh_last_ptr,
    u_ptr,
    v_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    gate_x_weight_ptr,
    gate_x_bias_ptr,
    gate_a_weight_ptr,
    gate_a_bias_ptr,
    decay_ptr,
    a_imag_ptr,
    h0_ptr,
    tail_ptr,
    reset_ptr,
    states_ptr,
    dv_ptr,
    dx_ptr,
    dgate_x_ptr,
    dgate_a_ptr,
    dh0_ptr,
    sums_ptr,
    dz_stride_b,
    dz_stride_t,
    dz_stride_n,
    u_stride_b,
    u_stride_t,
    u_stride_n,
    v_stride_b,
    v_stride_t,
    v_stride_n,
    tail_stride_b,
    tail_stride_t,
    tail_stride_n,
    tubes,
    tokens,
    frames,
    channels,
    saved,
    WIDTH: tl.constexpr,
    GATES: tl.constexpr,
    TAPS: tl.constexpr,
    COMPLEX: tl.constexpr,
    STARTS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    FRAMES: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """dv, dh0, the gates' gradients (B, T, N, gate channels), dx of the convolution's output through the recurrence
    alone (like u), and sums over the program's tubes, (3 or 4, tiles of tubes, gate channels): of r dl, dgate_x,
    dgate_a and, if complex, r dphi.

    Grid as forward. states: before every FRAMES-th frame but the first; with fewer frames FRAMES only covers them.
    """
    SHARED: tl.constexpr = (not COMPLEX) and BLOCK_G == BLOCK_K
    PAD_K: tl.constexpr = BLOCK_K != WIDTH
    PAD_G: tl.constexpr = GATES % BLOCK_G != 0
    RESETS: tl.constexpr = reset_ptr is not None
    IO: tl.constexpr = u_ptr.dtype.element_ty
    STATE: tl.constexpr = dh0_ptr.dtype.element_ty
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32  # of offsets

    i_r, i_b, i_n, exists = tubes_of_tile(tl.program_id(0), tubes, tokens, BLOCK_N, INDEX)
    head = tl.program_id(1)
    k = tl.arange(0, BLOCK_K)
    g = tl.program_id(2) * BLOCK_G + tl.arange(0, BLOCK_G)
    is_k, is_g = k < WIDTH, g < GATES
    col_k, col_g = head * WIDTH + k, head * GATES + g
    half = channels // 2
    gates = channels // 2 if COMPLEX else channels
    mask, mask_k, mask_g = exists[:, None] & is_g[None, :], is_k[None, :], is_g[None, :]

    u_rows = (i_b * u_stride_b + i_n * u_stride_n)[:, None]
    tail_rows = (i_b * tail_stride_b + i_n * tail_stride_n)[:, None]
    v_lanes = (i_b * v_stride_b + i_n * v_stride_n)[:, None] + col_g[None, :]
    dz_lanes = (i_b * dz_stride_b + i_n * dz_stride_n)[:, None] + col_g[None, :]
    u_lanes_k, u_lanes_g = u_rows + col_k[None, :], u_rows + col_g[None, :]
    tail_lanes_k, tail_lanes_g = tail_rows + col_k[None, :], tail_rows + col_g[None, :]
    state_at = i_r[:, None] * channels + col_g[None, :]
    frame_size = tl.cast(tokens, INDEX) * channels
    gate_frame = tl.cast(tokens, INDEX) * gates
    out_at = (i_b * frames * frame_size + i_n * channels)[:, None] + col_g[None, :]
    gate_at = (i_b * frames * gate_frame + i_n * gates)[:, None] + col_g[None, :]
    saved_at = (i_b * saved * frame_size + i_n * channels)[:, None] + col_g[None, :]
    resets_at = reset_ptr
    if RESETS:
        resets_at = reset_ptr + (i_b * frames)[:, None]

    at_weight = (head * WIDTH + k)[:, None] * GATES + g[None, :]
    is_weight = is_k[:, None] & is_g[None, :]
    weight_x = tl.load(gate_x_weight_ptr + at_weight, mask=is_weight, other=0.0).to(IO)
    weight_a = tl.load(gate_a_weight_ptr + at_weight, mask=is_weight, other=0.0).to(IO)
    P_re = tl.load(dh_last_ptr + state_at, mask=mask, other=0.0)
    P_im = P_re
    if COMPLEX:
        P_im = tl.load(dh_last_ptr + half + state_at, mask=mask, other=0.0)
    sum_l = tl.zeros((BLOCK_N, BLOCK_G), STATE)
    sum_phi, sum_x, sum_a = sum_l, sum_l, sum_l
    chunks = tl.cdiv(frames, FRAMES)

    for chunk in tl.range(0, chunks):
        t0 = (chunks - 1 - chunk) * FRAMES
        h_re = tl.zeros((BLOCK_N, BLOCK_G), STATE)
        h_im = h_re
        if t0 > 0:
            at = states_ptr + (t0 // FRAMES - 1) * frame_size
            h_re = tl.load(at + saved_at, mask=mask, other=0.0)
            if COMPLEX:
                h_im = tl.load(at + half + saved_at, mask=mask, other=0.0)
        else:
            if h0_ptr is not None:
                h_re = tl.load(h0_ptr + state_at, mask=mask, other=0.0)
                if COMPLEX:
                    h_im = tl.load(h0_ptr + half + state_at, mask=mask, other=0.0)

        # Forward again.
        window_k = window_before(
            tail_ptr, u_ptr, resets_at, t0, u_lanes_k, tail_lanes_k, u_stride_t, tail_stride_t, is_k, TAPS
        )
        us_k, us_re, us_im, resets = (), (), (), ()
        for j in tl.static_range(FRAMES):
            t = tl.cast(tl.minimum(t0 + j, frames - 1), INDEX)
            us_k = us_k + (frame(u_ptr, t * u_stride_t, u_lanes_k, mask_k, PAD_K),)
            if not SHARED:
                us_re = us_re + (frame(u_ptr, t * u_stride_t, u_lanes_g, mask_g, PAD_G),)
            if COMPLEX:
                us_im = us_im + (frame(u_ptr + half, t * u_stride_t, u_lanes_g, mask_g, PAD_G),)
            if RESETS:
                resets = resets + (tl.load(resets_at + t) != 0,)
            else:
                resets = resets + (exists[:, None],)  # not used
        taps = taps_of(conv_weight_ptr, conv_bias_ptr, channels, col_k, is_k, TAPS, PAD_K, STATE)
        xs = ()
        for j in tl.static_range(FRAMES):
            window = slide(window_k, us_k[j], resets[j], TAPS, RESETS)
            xs = xs + (convolve(window, taps, TAPS, STATE),)
            window_k = without_first(window, TAPS)
        x = stack(xs, FRAMES).to(IO)
        gates_x = unstack(product(x, weight_x, STATE), FRAMES)
        gates_a = unstack(product(x, weight_a, STATE), FRAMES)

        bias_x = channel_tile(gate_x_bias_ptr, col_g, is_g, BLOCK_N, PAD_G, STATE) * -LOG2E
        bias_a = channel_tile(gate_a_bias_ptr, col_g, is_g, BLOCK_N, PAD_G, STATE) * -LOG2E
        decay = channel_row(decay_ptr, col_g, is_g, PAD_G, STATE)
        theta = decay
        if COMPLEX:
            theta = channel_row(a_imag_ptr, col_g, is_g, PAD_G, STATE)
        xs_re, xs_im = xs, xs
        if not SHARED:
            window_re = window_before(
                tail_ptr, u_ptr, resets_at, t0, u_lanes_g, tail_lanes_g, u_stride_t, tail_stride_t, is_g, TAPS
            )
            taps = taps_of(conv_weight_ptr, conv_bias_ptr, channels, col_g, is_g, TAPS, PAD_G, STATE)
            xs_re = ()
            for j in tl.static_range(FRAMES):
                window = slide(window_re, us_re[j], resets[j], TAPS, RESETS)
                xs_re = xs_re + (convolve(window, taps, TAPS, STATE),)
                window_re = without_first(window, TAPS)
        if COMPLEX:
            window_im = window_before(
                tail_ptr, u_ptr, resets_at, t0, u_lanes_g + half, tail_lanes_g + half, u_stride_t, tail_stride_t,
                is_g, TAPS,
            )  # fmt: skip
            taps = taps_of(conv_weight_ptr, conv_bias_ptr, channels, half + col_g, is_g, TAPS, PAD_G, STATE)
            xs_im = ()
            for j in tl.static_range(FRAMES):
                window = slide(window_im, us_im[j], resets[j], TAPS, RESETS)
                xs_im = xs_im + (convolve(window, taps, TAPS, STATE),)
                window_im = without_first(window, TAPS)
        # v and dz some frames ahead of their use; more would not fit into registers.
        vs_re, vs_im, dzs_re, dzs_im = (), (), (), ()
        for j in tl.static_range(FRAMES - 1, FRAMES - 1 - AHEAD, -1):
            t = tl.cast(tl.minimum(t0 + j, frames - 1), INDEX)
            vs_re = vs_re + (frame(v_ptr, t * v_stride_t, v_lanes, mask_g, PAD_G),)
            dzs_re = dzs_re + (frame(dz_ptr, t * dz_stride_t, dz_lanes, mask_g, PAD_G),)
            if COMPLEX:
                vs_im = vs_im + (frame(v_ptr + half, t * v_stride_t, v_lanes, mask_g, PAD_G),)
                dzs_im = dzs_im + (frame(dz_ptr + half, t * dz_stride_t, dz_lanes, mask_g, PAD_G),)
        is_, rs, ahs_re, ahs_im = (), (), (), ()
        for j in tl.static_range(FRAMES):
            cut = resets[j]
            if STARTS and j == 0:
                cut = is_before(t0, 1, BLOCK_N)
            i, r, a_re, a_im, beta = gates_of(
                gates_x[j],
                gates_a[j],
                bias_x,
                bias_a,
                decay,
                theta,
                cut,
                RESETS or (STARTS and j == 0),
                COMPLEX,
            )
            if RESETS or (STARTS and j == 0):
                h_re, h_im = tl.where(cut, 0.0, h_re), tl.where(cut, 0.0, h_im)
            ah_re, ah_im = advance(a_re, a_im, h_re, h_im, 0.0, 0.0, COMPLEX)
            h_re = ah_re + beta * i * xs_re[j]
            if COMPLEX:
                h_im = ah_im + beta * i * xs_im[j]
            is_, rs = is_ + (i,), rs + (r,)
            ahs_re, ahs_im = ahs_re + (ah_re,), ahs_im + (ah_im,)

        # Backward.
        for j in tl.static_range(FRAMES - 1, -1, -1):
            if j >= AHEAD:
                t = tl.cast(tl.minimum(t0 + (j - AHEAD), frames - 1), INDEX)
                vs_re = vs_re + (frame(v_ptr, t * v_stride_t, v_lanes, mask_g, PAD_G),)
                dzs_re = dzs_re + (frame(dz_ptr, t * dz_stride_t, dz_lanes, mask_g, PAD_G),)
                if COMPLEX:
                    vs_im = vs_im + (frame(v_ptr + half, t * v_stride_t, v_lanes, mask_g, PAD_G),)
                    dzs_im = dzs_im + (frame(dz_ptr + half, t * dz_stride_t, dz_lanes, mask_g, PAD_G),)
            is_frame = mask
            if not EVEN:
                is_frame = mask & is_before(t0 + j, frames, BLOCK_N)
            cut = resets[j]
            if STARTS and j == 0:
                cut = is_before(t0, 1, BLOCK_N)
            i, r, x_re, ah_re = is_[j], rs[j], xs_re[j], ahs_re[j]
            # Loaded anew, or the compiler would rather keep the decays of all frames than compute them twice.
            log2_a = channel_row(decay_ptr, col_g, is_g, PAD_G, STATE) * r
            magnitude, gap = decay_and_gap(log2_a)
            square = gap * (2.0 - gap)
            beta = tl.sqrt(square)
            inverse = tl.minimum(tl.rsqrt(square), 2.0 * MAX_SQRT_SLOPE)
            if RESETS or (STARTS and j == 0):
                magnitude = tl.where(cut, 0.0, magnitude)
                beta = tl.where(cut, 1.0, beta)
            a_re, a_im = magnitude, magnitude
            scale = beta * i
            value, slope = gelu_and_slope(vs_re[FRAMES - 1 - j].to(STATE))
            dz_re = dzs_re[FRAMES - 1 - j].to(STATE)
            to = (t0 + j) * frame_size
            tl.store(dv_ptr + to + out_at, (dz_re * (ah_re + scale * x_re) * slope).to(IO), mask=is_frame)
            G_re = dz_re * value + P_re
            x_G = x_re * G_re
            dl = ah_re * G_re
            G_im, dphi = G_re, dl
            if COMPLEX:
                phase = theta * r
                sin, cos = sin_cos(phase)
                a_re, a_im = magnitude * cos, magnitude * sin
                x_im, ah_im = xs_im[j], ahs_im[j]
                value, slope = gelu_and_slope(vs_im[FRAMES - 1 - j].to(STATE))
                dz_im = dzs_im[FRAMES - 1 - j].to(STATE)
                tl.store(
                    dv_ptr + half + to + out_at,
                    (dz_im * (ah_im + scale * x_im) * slope).to(IO),
                    mask=is_frame,
                )
                G_im = dz_im * value + P_im
                x_G += x_im * G_im
                dl += ah_im * G_im
                dphi = ah_re * G_im - ah_im * G_re
                tl.store(dx_ptr + half + to + out_at, (scale * G_im).to(IO), mask=is_frame)
            tl.store(dx_ptr + to + out_at, (scale * G_re).to(IO), mask=is_frame)
            dgate_x = scale * x_G * (1.0 - i)
            dl -= i * x_G * magnitude * magnitude * inverse
            if RESETS or (STARTS and j == 0):
                dl, dphi = tl.where(cut, 0.0, dl), tl.where(cut, 0.0, dphi)
            r_dr = (log2_a * LN2) * dl  # r times the gradient of r
            if COMPLEX:
                r_dr += phase * dphi
            dgate_a = r_dr * (1.0 - r)
            old_re, old_im = P_re, P_im
            P_re, P_im = pull_back(a_re, a_im, G_re, G_im, COMPLEX)
            if RESETS or (STARTS and j == 0):
                P_re, P_im = tl.where(cut, 0.0, P_re), tl.where(cut, 0.0, P_im)
            if not EVEN:
                P_re, P_im = tl.where(is_frame, P_re, old_re), tl.where(is_frame, P_im, old_im)
                dl, dphi = tl.where(is_frame, dl, 0.0), tl.where(is_frame, dphi, 0.0)
                dgate_x, dgate_a = tl.where(is_frame, dgate_x, 0.0), tl.where(is_frame, dgate_a, 0.0)
            sum_l += r * dl
            sum_x += dgate_x
            sum_a += dgate_a
            if COMPLEX:
                sum_phi += r * dphi
            to = (t0 + j) * gate_frame
            tl.store(dgate_x_ptr + to + gate_at, dgate_x.to(IO), mask=is_frame)
            tl.store(dgate_a_ptr + to + gate_at, dgate_a.to(IO), mask=is_frame)

    tl.store(dh0_ptr + state_at, P_re, mask=mask)
    if COMPLEX:
        tl.store(dh0_ptr + half + state_at, P_im, mask=mask)
    tiles = tl.cast(tl.num_programs(0), tl.int64)
    at = sums_ptr + tl.program_id(0) * gates + col_g
    tl.store(at, tl.sum(tl.where(mask, sum_l, 0.0), axis=0), mask=is_g)
    tl.store(at + tiles * gates, tl.sum(tl.where(mask, sum_x, 0.0), axis=0), mask=is_g)
    tl.store(at + 2 * tiles * gates, tl.sum(tl.where(mask, sum_a, 0.0), axis=0), mask=is_g)
    if COMPLEX:
        tl.store(at + 3 * tiles * gates, tl.sum(tl.where(mask, sum_phi, 0.0), axis=0), mask=is_g)
