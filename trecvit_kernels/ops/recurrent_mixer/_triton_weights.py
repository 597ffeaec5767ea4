"""Pass 2 of the recurrent mixer backward (pass 1: ``_triton_recurrence``): gates' weights and convolution."""

from __future__ import annotations

import triton
import triton.language as tl

from trecvit_kernels.ops.recurrent_mixer._triton_parts import (
    convolve,
    device_function,
    frame,
    frames_before,
    is_before,
    product,
    slide,
    stack,
    taps_of,
    tubes_of_tile,
    unstack,
    without_first,
)


@device_function
def store_frame(du_ptr, dtail_ptr, t, frames, frame_size, out_at, dtail_at, value, mask, TAPS: tl.constexpr):
    """Store the gradient of frame t of u, or, where t < 0, of the tail; none from frame ``frames`` on."""
    n: tl.constexpr = value.shape[0]
    inside = mask & is_before(-t, 1, n) & is_before(t, frames, n)
    tl.store(du_ptr + tl.maximum(t, 0) * frame_size + out_at, value, mask=inside)
    if TAPS > 1:  # noqa: SIM102  (the first is known when the kernel is built)
        if t < 0:
            tl.store(dtail_ptr + (t + (TAPS - 1)) * frame_size + dtail_at, value, mask=mask)


@triton.jit
def weights_kernel(
    u_ptr,
    dx_ptr,
    dgate_x_ptr,
    dgate_a_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    gate_x_weight_ptr,
    gate_a_weight_ptr,
    tail_ptr,
    reset_ptr,
    du_ptr,
    dtail_ptr,
    conv_sums_ptr,
    bias_sums_ptr,
    weight_sums_ptr,
    u_stride_b,
    u_stride_t,
    u_stride_n,
    tail_stride_b,
    tail_stride_t,
    tail_stride_n,
    tubes,
    tokens,
    frames,
    channels,
    tiles,
    WIDTH: tl.constexpr,
    GATES: tl.constexpr,
    TAPS: tl.constexpr,
    COMPLEX: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """du, dtail and, summed over the program's tubes, the gradients of the convolution's weights (programs, TAPS, C)
    and bias (programs, C) and of the gates' weights (2, programs, heads, WIDTH, GATES).

    Grid: (programs per block of channels, heads, blocks of BLOCK_K of a head's WIDTH channels); each takes every
    programs-th tile of tubes. BLOCK_G covers GATES. dx: the part from pass 1. The convolution runs backwards by
    keeping the unfinished gradients of the last TAPS - 1 frames.
    """
    PAD: tl.constexpr = WIDTH % BLOCK_K != 0
    RESETS: tl.constexpr = reset_ptr is not None
    IO: tl.constexpr = u_ptr.dtype.element_ty
    STATE: tl.constexpr = weight_sums_ptr.dtype.element_ty
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32  # of offsets

    head = tl.program_id(1)
    k = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    g = tl.arange(0, BLOCK_G)
    is_k, is_g = k < WIDTH, g < GATES
    col_k, col_g = head * WIDTH + k, head * GATES + g
    gates = channels // 2 if COMPLEX else channels
    frame_size, gate_frame = tl.cast(tokens, INDEX) * channels, tl.cast(tokens, INDEX) * gates
    at_weight = (head * WIDTH + k)[None, :] * GATES + g[:, None]
    is_weight = is_k[None, :] & is_g[:, None]
    weight_x = tl.load(gate_x_weight_ptr + at_weight, mask=is_weight, other=0.0).to(IO)  # transposed
    weight_a = tl.load(gate_a_weight_ptr + at_weight, mask=is_weight, other=0.0).to(IO)

    dweight_x = tl.zeros((BLOCK_K, BLOCK_G), STATE)
    dweight_a = dweight_x
    dbias = tl.zeros((BLOCK_N, BLOCK_K), STATE)
    dtaps = ()
    for _ in tl.static_range(TAPS):
        dtaps = dtaps + (dbias,)

    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        _, i_b, i_n, exists = tubes_of_tile(tile, tubes, tokens, BLOCK_N, INDEX)
        mask, mask_k = exists[:, None] & is_k[None, :], is_k[None, :]
        u_lanes = (i_b * u_stride_b + i_n * u_stride_n)[:, None] + col_k[None, :]
        tail_lanes = (i_b * tail_stride_b + i_n * tail_stride_n)[:, None] + col_k[None, :]
        out_at = (i_b * frames * frame_size + i_n * channels)[:, None] + col_k[None, :]
        dtail_at = (i_b * (TAPS - 1) * frame_size + i_n * channels)[:, None] + col_k[None, :]
        # Rows of the products: tube * FRAMES + frame.
        row = tl.arange(0, BLOCK_N * FRAMES)
        row_frame = row % FRAMES
        row_tube = tl.cast(tile, INDEX) * BLOCK_N + row // FRAMES
        row_exists = row_tube < tubes
        row_tube = tl.minimum(row_tube, tl.cast(tubes, INDEX) - 1)
        row_b = row_tube // tokens
        row_n = row_tube - row_b * tokens
        gate_at = (row_b * frames * gate_frame + row_frame * gate_frame + row_n * gates)[:, None] + col_g[
            None, :
        ]
        mask_gate = row_exists[:, None] & is_g[None, :]

        window = frames_before(tail_ptr, u_ptr, tail_lanes, tail_stride_t, mask_k, TAPS, PAD)
        unfinished, reached = (), ()
        for _ in tl.static_range(TAPS - 1):
            unfinished = unfinished + (tl.zeros((BLOCK_N, BLOCK_K), STATE),)
            reached = reached + (tl.full((BLOCK_N, 1), 1, tl.int32),)

        for t0 in tl.range(0, frames, FRAMES):
            at = t0 * gate_frame + gate_at
            is_gate = mask_gate
            if not EVEN:
                is_gate = mask_gate & ((row_frame + t0) < frames)[:, None]
            dgate_x = tl.load(dgate_x_ptr + at, mask=is_gate, other=0.0)
            dgate_a = tl.load(dgate_a_ptr + at, mask=is_gate, other=0.0)
            us, dxs, resets = (), (), ()
            for j in tl.static_range(FRAMES):
                t = tl.cast(tl.minimum(t0 + j, frames - 1), INDEX)
                us = us + (frame(u_ptr, t * u_stride_t, u_lanes, mask_k, PAD),)
                is_frame = mask
                if not EVEN:
                    is_frame = mask & is_before(t0 + j, frames, BLOCK_N)
                dxs = dxs + (tl.load(dx_ptr + t * frame_size + out_at, mask=is_frame, other=0.0),)
                if RESETS:
                    resets = resets + ((tl.load(reset_ptr + i_b * frames + t) != 0)[:, None],)
                else:
                    resets = resets + (exists[:, None],)  # not used
            through_gates = unstack(
                product(dgate_x, weight_x, STATE) + product(dgate_a, weight_a, STATE), FRAMES
            )
            taps = taps_of(conv_weight_ptr, conv_bias_ptr, channels, col_k, is_k, TAPS, PAD, STATE)
            xs = ()
            for j in tl.static_range(FRAMES):
                full = slide(window, us[j], resets[j], TAPS, RESETS)
                xs = xs + (convolve(full, taps, TAPS, STATE),)
                window = without_first(full, TAPS)
                dx = dxs[j].to(STATE) + through_gates[j]
                dbias += dx
                sums, grown, open_ = (), (), ()
                for i in tl.static_range(TAPS):
                    sums = sums + (dtaps[i] + dx * full[i].to(STATE),)
                    if i == TAPS - 1:
                        grown = grown + (dx * taps[i],)
                        open_ = open_ + (tl.full((BLOCK_N, 1), 1, tl.int32),)
                    elif RESETS:
                        still = tl.where(resets[j], 0, reached[i])
                        grown = grown + (unfinished[i] + tl.where(still != 0, dx * taps[i], 0.0),)
                        open_ = open_ + (still,)
                    else:
                        grown = grown + (unfinished[i] + dx * taps[i],)
                        open_ = open_ + (reached[i],)
                dtaps = sums
                store_frame(
                    du_ptr, dtail_ptr, t0 + j - (TAPS - 1), frames, frame_size, out_at, dtail_at, grown[0].to(IO), mask,
                    TAPS,
                )  # fmt: skip
                unfinished, reached = without_first(grown, TAPS), without_first(open_, TAPS)
            x = tl.trans(stack(xs, FRAMES).to(IO))
            dweight_x += product(x, dgate_x, STATE)
            dweight_a += product(x, dgate_a, STATE)
        end = tl.cdiv(frames, FRAMES) * FRAMES
        for i in tl.static_range(TAPS - 1):
            store_frame(
                du_ptr, dtail_ptr, end - (TAPS - 1) + i, frames, frame_size, out_at, dtail_at, unfinished[i].to(IO),
                mask, TAPS,
            )  # fmt: skip

    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for i in tl.static_range(TAPS):
        at = conv_sums_ptr + (program * TAPS + i) * channels + col_k
        tl.store(at, tl.sum(dtaps[i], axis=0), mask=is_k)
    tl.store(bias_sums_ptr + program * channels + col_k, tl.sum(dbias, axis=0), mask=is_k)
    size = tl.cast(channels, tl.int64) * GATES  # of one gate's weights
    at = weight_sums_ptr + program * size + (head * WIDTH + k)[:, None] * GATES + g[None, :]
    is_weight = is_k[:, None] & is_g[None, :]
    tl.store(at, dweight_x, mask=is_weight)
    tl.store(at + programs * size, dweight_a, mask=is_weight)
