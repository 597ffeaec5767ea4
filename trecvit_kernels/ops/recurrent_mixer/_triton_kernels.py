"""The recurrent mixer in one pass over memory: convolution, gates, gated LRU and output gate, forward.

A program owns BLOCK_N tubes (sequences, counted over batch and lanes) and BLOCK_G gate channels of one head, keeps
the head's two gate weight blocks on chip and walks time in steps of FRAMES frames. The frames of a step are separate
tiles (BLOCK_N, channels), so that convolution and recurrence run in registers; only for the gates' matrix products
they are stacked to one tile of BLOCK_N FRAMES rows (row = tube * FRAMES + frame), enough rows for tensor cores. With
rows in that order a warp's share of the product is its share of the tubes, and no data crosses warps.

u, v, z: (B, T, N, C); a tube is (b, n). Head h reads channels [h WIDTH, (h + 1) WIDTH) of the convolution's output for
its products and owns the gate channels [h GATES, (h + 1) GATES). Real: GATES = WIDTH and the recurrence runs on the
same channels. Complex: GATES = WIDTH / 2, and gate channel g scales the channels g and g + C / 2 (real and imaginary
part), which belong to other heads' products. BLOCK_K covers WIDTH, padded with zeros to a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trecvit_kernels.ops._triton_math import LOG2E
from trecvit_kernels.ops.recurrent_mixer._triton_parts import (
    DECAY_EXPONENT,
    advance,
    channel_row,
    channel_tile,
    convolve,
    frame,
    frames_before,
    gates_of,
    gelu,
    is_before,
    product,
    slide,
    softplus,
    stack,
    taps_of,
    tubes_of_tile,
    unstack,
    without_first,
)


@triton.jit
def forward_kernel(
    u_ptr,
    v_ptr,
    z_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    gate_x_weight_ptr,
    gate_x_bias_ptr,
    gate_a_weight_ptr,
    gate_a_bias_ptr,
    a_param_ptr,
    a_imag_ptr,
    h0_ptr,
    tail_ptr,
    reset_ptr,
    h_last_ptr,
    states_ptr,
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
    FRAMES_PER_STATE: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """z, the last state and, if states_ptr is given, the state before every FRAMES_PER_STATE-th frame but the first.

    Grid: (tiles of tubes, heads, blocks of a head's gate channels). STARTS: frame 0 resets. EVEN: FRAMES divides
    the number of frames. Weights and inputs are contiguous along channels; h0, h_last, states, z, reset are dense.
    """
    SHARED: tl.constexpr = (
        not COMPLEX
    ) and BLOCK_G == BLOCK_K  # products and recurrence read the same channels
    PAD_K: tl.constexpr = BLOCK_K != WIDTH
    PAD_G: tl.constexpr = GATES % BLOCK_G != 0
    RESETS: tl.constexpr = reset_ptr is not None
    IO: tl.constexpr = u_ptr.dtype.element_ty
    STATE: tl.constexpr = h_last_ptr.dtype.element_ty
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32  # of offsets

    i_r, i_b, i_n, exists = tubes_of_tile(tl.program_id(0), tubes, tokens, BLOCK_N, INDEX)
    head = tl.program_id(1)
    k = tl.arange(0, BLOCK_K)
    g = tl.program_id(2) * BLOCK_G + tl.arange(0, BLOCK_G)
    is_k, is_g = k < WIDTH, g < GATES
    col_k, col_g = (
        head * WIDTH + k,
        head * GATES + g,
    )  # of u; of the gates and of the (real part of the) state
    half = channels // 2
    mask = exists[:, None] & is_g[None, :]

    u_rows = (i_b * u_stride_b + i_n * u_stride_n)[:, None]
    v_rows = (i_b * v_stride_b + i_n * v_stride_n)[:, None]
    tail_rows = (i_b * tail_stride_b + i_n * tail_stride_n)[:, None]
    state_at = i_r[:, None] * channels + col_g[None, :]
    frame_size = tl.cast(tokens, INDEX) * channels
    z_at = (i_b * frames * frame_size + i_n * channels)[:, None] + col_g[None, :]
    saved_at = (i_b * saved * frame_size + i_n * channels)[:, None] + col_g[None, :]

    at_weight = (head * WIDTH + k)[:, None] * GATES + g[None, :]
    is_weight = is_k[:, None] & is_g[None, :]
    weight_x = tl.load(gate_x_weight_ptr + at_weight, mask=is_weight, other=0.0).to(IO)
    weight_a = tl.load(gate_a_weight_ptr + at_weight, mask=is_weight, other=0.0).to(IO)
    decay = softplus(channel_row(a_param_ptr, col_g, is_g, PAD_G, STATE)) * (-DECAY_EXPONENT * LOG2E)
    theta = decay
    if COMPLEX:
        theta = channel_row(a_imag_ptr, col_g, is_g, PAD_G, STATE)

    h_re = tl.zeros((BLOCK_N, BLOCK_G), STATE)
    h_im = h_re
    if h0_ptr is not None:
        h_re = tl.load(h0_ptr + state_at, mask=mask, other=0.0)
        if COMPLEX:
            h_im = tl.load(h0_ptr + half + state_at, mask=mask, other=0.0)
    lanes_k, lanes_g = u_rows + col_k[None, :], u_rows + col_g[None, :]
    mask_k, mask_g = is_k[None, :], is_g[None, :]
    window_k = frames_before(tail_ptr, u_ptr, tail_rows + col_k[None, :], tail_stride_t, mask_k, TAPS, PAD_K)
    window_re, window_im = window_k, window_k
    if not SHARED:
        window_re = frames_before(
            tail_ptr, u_ptr, tail_rows + col_g[None, :], tail_stride_t, mask_g, TAPS, PAD_G
        )
        window_im = window_re
    if COMPLEX:
        window_im = frames_before(
            tail_ptr, u_ptr, tail_rows + (half + col_g)[None, :], tail_stride_t, mask_g, TAPS, PAD_G
        )

    for t0 in tl.range(0, frames, FRAMES):
        if states_ptr is not None:  # noqa: SIM102  (known when the kernel is built)
            if (t0 > 0) & (t0 % FRAMES_PER_STATE == 0):
                to = states_ptr + (t0 // FRAMES_PER_STATE - 1) * frame_size
                tl.store(to + saved_at, h_re, mask=mask)
                if COMPLEX:
                    tl.store(to + half + saved_at, h_im, mask=mask)

        # All loads of the step first.
        us_k, us_re, us_im, vs_re, vs_im, resets = (), (), (), (), (), ()
        for j in tl.static_range(FRAMES):
            t = tl.cast(tl.minimum(t0 + j, frames - 1), INDEX)
            us_k = us_k + (frame(u_ptr, t * u_stride_t, lanes_k, mask_k, PAD_K),)
            if not SHARED:
                us_re = us_re + (frame(u_ptr, t * u_stride_t, lanes_g, mask_g, PAD_G),)
            vs_re = vs_re + (frame(v_ptr, t * v_stride_t, v_rows + col_g[None, :], mask_g, PAD_G),)
            if COMPLEX:
                us_im = us_im + (frame(u_ptr + half, t * u_stride_t, lanes_g, mask_g, PAD_G),)
                vs_im = vs_im + (frame(v_ptr + half, t * v_stride_t, v_rows + col_g[None, :], mask_g, PAD_G),)
            if RESETS:
                resets = resets + ((tl.load(reset_ptr + i_b * frames + t) != 0)[:, None],)
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
        taps_re, taps_im = taps, taps
        if not SHARED:
            taps_re = taps_of(conv_weight_ptr, conv_bias_ptr, channels, col_g, is_g, TAPS, PAD_G, STATE)
        if COMPLEX:
            taps_im = taps_of(
                conv_weight_ptr, conv_bias_ptr, channels, half + col_g, is_g, TAPS, PAD_G, STATE
            )
        for j in tl.static_range(FRAMES):
            cut = resets[j]
            x_re = xs[j]
            if not SHARED:
                window = slide(window_re, us_re[j], cut, TAPS, RESETS)
                x_re = convolve(window, taps_re, TAPS, STATE)
                window_re = without_first(window, TAPS)
            x_im = x_re
            if COMPLEX:
                window = slide(window_im, us_im[j], cut, TAPS, RESETS)
                x_im = convolve(window, taps_im, TAPS, STATE)
                window_im = without_first(window, TAPS)
            if STARTS and j == 0:
                cut = is_before(t0, 1, BLOCK_N)
            i, _, a_re, a_im, beta = gates_of(
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
            before_re, before_im = h_re, h_im
            if RESETS:
                before_re = tl.where(cut, 0.0, h_re)
                before_im = tl.where(cut, 0.0, h_im)
            scale = beta * i
            new_re, new_im = advance(a_re, a_im, before_re, before_im, scale * x_re, scale * x_im, COMPLEX)
            is_frame = mask
            if EVEN:
                h_re, h_im = new_re, new_im
            else:
                is_frame = mask & is_before(t0 + j, frames, BLOCK_N)
                h_re = tl.where(is_frame, new_re, h_re)
                h_im = tl.where(is_frame, new_im, h_im)
            to = z_ptr + (t0 + j) * frame_size
            tl.store(to + z_at, (h_re * gelu(vs_re[j].to(STATE))).to(IO), mask=is_frame)
            if COMPLEX:
                tl.store(to + half + z_at, (h_im * gelu(vs_im[j].to(STATE))).to(IO), mask=is_frame)
    tl.store(h_last_ptr + state_at, h_re, mask=mask)
    if COMPLEX:
        tl.store(h_last_ptr + half + state_at, h_im, mask=mask)
