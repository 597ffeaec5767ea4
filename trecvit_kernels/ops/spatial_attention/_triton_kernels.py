"""Triton kernels of spatial_attention: all keys of a frame and head on chip, a plain softmax.

qkv (B, T, N, 3 H D) is read in place, channels contiguous: q of head h at channel h D, k at (H + h) D, v at
(2 H + h) D. For every frame and head::

    s = scale log2(e) q k^T        lse = log2 sum 2^s        p = 2^(s - lse)        out = p v        (forward)
    delta = sum over D of dout out      ds = p (dout v^T - delta)
    dq = scale ds k        dk = scale ds^T q        dv = p^T dout                                    (backward)

Queries (in the gradients of k and v: keys) go by tiles of BLOCK rows, and what a tile meets comes in PIECES.
RESIDENT: the pieces are descending powers of two that cover N with little waste (196 = 128 + 64 + 16 - 12), as
Triton's tiles are powers of two. A program loads them all once, keeps them in shared memory and walks the tiles of
its frame and head; the softmax is a plain one over all keys. Otherwise, for wide dtypes, small memories and few
frames, a program has one tile and loops over pieces of one size, with the running maximum and sum of a softmax.

out (B, T, N, H D), dqkv (B, T, N, 3 H D) and lse (B, T, H, N) are dense. Rows past N are read as
zeros: as queries they add nothing to any sum, as keys they are masked out. NEGATIVE moves the scale's sign
to one factor of s, so that the largest product is the largest score; scale_log2 > 0 is the rest times log2(e).
EXACT: (scale, scale_log2) in double for float64, where the launcher's numbers are too short.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def _start(pieces, index):
    """Row at which a piece starts."""
    return sum(pieces[:index])


@triton.constexpr_function
def _padded(head_dim):
    """Channels of a tile: a power of two, and what the matrix units need at least."""
    return max(triton.next_power_of_2(head_dim), 16)


@triton.jit
def _row_pointers(x_ptr, start, x_stride_n, rows, i_d):
    start_ptr = x_ptr + tl.cast(start, tl.int64) * x_stride_n
    return start_ptr + (rows[:, None].to(tl.int64) * x_stride_n + i_d[None, :])


@triton.jit
def _load_rows(
    x_ptr, start, x_stride_n, ROWS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr
):
    """Rows start .. start + ROWS and their channels, padded; zeros past N and D. MASKED: rows may lie past N."""
    rows = tl.arange(0, ROWS)
    i_d = tl.arange(0, _padded(D))
    x_ptrs = _row_pointers(x_ptr, start, x_stride_n, rows, i_d)
    if MASKED or _padded(D) > D:
        return tl.load(x_ptrs, mask=(start + rows < N)[:, None] & (i_d < D)[None, :], other=0.0)
    return tl.load(x_ptrs)


@triton.jit
def _store_rows(x_ptr, b_x, start, x_stride_n, N: tl.constexpr, D: tl.constexpr):
    rows = tl.arange(0, b_x.shape[0])
    i_d = tl.arange(0, b_x.shape[1])
    mask = (start + rows < N)[:, None] & (i_d < D)[None, :]
    tl.store(_row_pointers(x_ptr, start, x_stride_n, rows, i_d), b_x.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_vector(x_ptr, start, ROWS: tl.constexpr, N: tl.constexpr):
    rows = start + tl.arange(0, ROWS)
    return tl.load(x_ptr + rows, mask=rows < N, other=0.0)


@triton.jit
def _store_vector(x_ptr, b_x, start, N: tl.constexpr):
    rows = start + tl.arange(0, b_x.shape[0])
    tl.store(x_ptr + rows, b_x, mask=rows < N)


@triton.jit
def _load_piece(
    x_ptr, x_stride_n, INDEX: tl.constexpr, PIECES: tl.constexpr, N: tl.constexpr, D: tl.constexpr
):
    start: tl.constexpr = _start(PIECES, INDEX)
    rows: tl.constexpr = PIECES[INDEX]
    return _load_rows(x_ptr, start, x_stride_n, rows, N, D, start + rows > N)


@triton.jit
def _load_pieces(x_ptr, x_stride_n, PIECES: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    """All rows, as a tuple of tiles."""
    pieces = ()
    for i in tl.static_range(len(PIECES)):
        pieces = pieces + (_load_piece(x_ptr, x_stride_n, i, PIECES, N, D),)
    return pieces


@triton.jit
def _mask_keys(b_x, value: tl.constexpr, start, N: tl.constexpr, MASKED: tl.constexpr):
    """``value`` in the columns, from key ``start`` on, that lie past N. MASKED: there may be such."""
    if MASKED:
        return tl.where((start + tl.arange(0, b_x.shape[1]) < N)[None, :], b_x, value)
    return b_x


@triton.jit
def _dot(b_x, b_y, b_acc, PRECISION: tl.constexpr):
    """b_acc + b_x b_y. PRECISION None is for Triton's interpreter, which takes bfloat16 for integers in products."""
    if PRECISION is None:
        return tl.dot(b_x.to(b_acc.dtype), b_y.to(b_acc.dtype), b_acc, out_dtype=b_acc.dtype)
    return tl.dot(b_x, b_y, b_acc, input_precision=PRECISION, out_dtype=b_acc.dtype)


@triton.jit
def _dot_transposed(b_x, b_y, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """b_x b_y^T."""
    return _dot(b_x, b_y.T, tl.zeros([b_x.shape[0], b_y.shape[0]], DTYPE), PRECISION)


@triton.jit
def _scaled(b_x, scale, EXACT: tl.constexpr, INDEX: tl.constexpr):
    return b_x * scale if EXACT is None else b_x * EXACT[INDEX]


@triton.jit
def _signed(b_x, NEGATIVE: tl.constexpr, DTYPE: tl.constexpr):
    return (-b_x.to(DTYPE)).to(b_x.dtype) if NEGATIVE else b_x


@triton.jit
def forward_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    frames,
    heads,
    qkv_stride_b,
    qkv_stride_t,
    qkv_stride_n,
    scale_log2,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
    RESIDENT: tl.constexpr,
    PREFETCH: tl.constexpr,
    NEGATIVE: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out and, unless lse_ptr is None, lse. Programs: B T H, times the tiles unless RESIDENT. ``frames`` is T."""
    DTYPE: tl.constexpr = tl.float32 if EXACT is None else tl.float64
    TILES: tl.constexpr = (N + BLOCK - 1) // BLOCK
    PARTS: tl.constexpr = 1 if RESIDENT else TILES
    i_bth = tl.program_id(0).to(tl.int64) // PARTS
    i_bt, i_h = i_bth // heads, i_bth % heads
    q_ptr = qkv_ptr + (i_bt // frames) * qkv_stride_b + (i_bt % frames) * qkv_stride_t + i_h * D
    k_ptr = q_ptr + heads * D
    v_ptr = k_ptr + heads * D
    out_ptr += (i_bt * N * heads + i_h) * D

    first = tl.program_id(0) % PARTS
    if RESIDENT:
        if PREFETCH:
            b_next = _load_rows(q_ptr, 0, qkv_stride_n, BLOCK, N, D, BLOCK > N)
        keys = _load_pieces(k_ptr, qkv_stride_n, PIECES, N, D)
        values = _load_pieces(v_ptr, qkv_stride_n, PIECES, N, D)
    # What could be hoisted out of the loop, addresses and matrix descriptors, would cost more registers than time.
    for i_t in tl.range(first, TILES if RESIDENT else first + 1, disable_licm=True):
        if RESIDENT and PREFETCH:
            b_q = b_next
            b_next = _load_rows(q_ptr, (i_t + 1) * BLOCK, qkv_stride_n, BLOCK, N, D, True)
        else:
            b_q = _load_rows(q_ptr, i_t * BLOCK, qkv_stride_n, BLOCK, N, D, N % BLOCK != 0)
        b_q = _signed(b_q, NEGATIVE, DTYPE)

        b_max = tl.full([BLOCK], -float("inf"), DTYPE)
        b_sum = tl.zeros([BLOCK], DTYPE)
        b_out = tl.zeros(b_q.shape, DTYPE)
        if RESIDENT:
            scores = ()
            for i in tl.static_range(len(PIECES)):
                b_s = _dot_transposed(b_q, keys[i], DTYPE, PRECISION)
                b_s = _mask_keys(b_s, -float("inf"), _start(PIECES, i), N, _start(PIECES, i + 1) > N)
                b_max = tl.maximum(b_max, tl.max(b_s, 1))
                scores = scores + (b_s,)
            b_max = _scaled(b_max, scale_log2, EXACT, 1)
            for i in tl.static_range(len(PIECES)):
                b_p = tl.exp2(_scaled(scores[i], scale_log2, EXACT, 1) - b_max[:, None])
                b_sum += tl.sum(b_p, 1)
                b_out = _dot(b_p.to(b_q.dtype), values[i], b_out, PRECISION)
        else:
            for start in tl.range(0, N, PIECES[0], disable_licm=True):
                b_k = _load_rows(k_ptr, start, qkv_stride_n, PIECES[0], N, D, N % PIECES[0] != 0)
                b_v = _load_rows(v_ptr, start, qkv_stride_n, PIECES[0], N, D, N % PIECES[0] != 0)
                b_s = _scaled(_dot_transposed(b_q, b_k, DTYPE, PRECISION), scale_log2, EXACT, 1)
                b_s = _mask_keys(b_s, -float("inf"), start, N, N % PIECES[0] != 0)
                b_new = tl.maximum(b_max, tl.max(b_s, 1))
                b_shrink = tl.exp2(b_max - b_new)
                b_p = tl.exp2(b_s - b_new[:, None])
                b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
                b_out = _dot(b_p.to(b_q.dtype), b_v, b_out * b_shrink[:, None], PRECISION)
                b_max = b_new

        _store_rows(out_ptr, b_out * (1.0 / b_sum)[:, None], i_t * BLOCK, heads * D, N, D)
        if lse_ptr is not None:
            _store_vector(lse_ptr + i_bth * N, b_max + tl.log2(b_sum), i_t * BLOCK, N)


@triton.jit
def _score_gradients(
    b_x, b_y, b_dx, b_dy, b_lse, b_delta, scale_log2, EXACT: tl.constexpr, PRECISION: tl.constexpr
):
    """(p, ds) from the factors of s = scale log2(e) x y^T and of dp = dx dy^T; lse and delta as rows or columns."""
    b_s = _scaled(_dot_transposed(b_x, b_y, b_lse.dtype, PRECISION), scale_log2, EXACT, 1)
    b_p = tl.exp2(b_s - b_lse)
    return b_p, b_p * (_dot_transposed(b_dx, b_dy, b_lse.dtype, PRECISION) - b_delta)


@triton.jit
def _row_products(b_x, b_y, DTYPE: tl.constexpr):
    return tl.sum(b_x.to(DTYPE) * b_y.to(DTYPE), 1)


@triton.jit
def backward_kernel(
    qkv_ptr,
    out_ptr,
    dout_ptr,
    lse_ptr,
    rows_ptr,
    dqkv_ptr,
    frames,
    heads,
    qkv_stride_b,
    qkv_stride_t,
    qkv_stride_n,
    dout_stride_b,
    dout_stride_t,
    dout_stride_n,
    scale,
    scale_log2,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
    RESIDENT: tl.constexpr,
    PREFETCH: tl.constexpr,
    NEGATIVE: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, dk and dv. Programs: B T H, times 2 for dq apart from dk and dv, times the tiles unless RESIDENT.

    All recompute the probabilities from lse. Where one tile is all, one program makes the three gradients. rows
    (B, T, H, 2, sum of PIECES) is scratch of RESIDENT: lse and delta, padded, as rows to be read along the columns of
    a tile, over and over.
    """
    DTYPE: tl.constexpr = tl.float32 if EXACT is None else tl.float64
    TILES: tl.constexpr = (N + BLOCK - 1) // BLOCK
    SINGLE: tl.constexpr = RESIDENT and PIECES[0] == BLOCK and BLOCK >= N
    PARTS: tl.constexpr = 1 if SINGLE else (2 if RESIDENT else 2 * TILES)
    MASKED: tl.constexpr = N % BLOCK != 0
    PIECE_MASKED: tl.constexpr = N % PIECES[0] != 0
    PADDED: tl.constexpr = _start(PIECES, len(PIECES))
    i_bth = tl.program_id(0).to(tl.int64) // PARTS
    i_bt, i_h = i_bth // heads, i_bth % heads
    q_ptr = qkv_ptr + (i_bt // frames) * qkv_stride_b + (i_bt % frames) * qkv_stride_t + i_h * D
    k_ptr = q_ptr + heads * D
    v_ptr = k_ptr + heads * D
    dout_ptr += (i_bt // frames) * dout_stride_b + (i_bt % frames) * dout_stride_t + i_h * D
    out_ptr += (i_bt * N * heads + i_h) * D
    dq_ptr = dqkv_ptr + (i_bt * N * 3 * heads + i_h) * D
    dk_ptr = dq_ptr + heads * D
    dv_ptr = dk_ptr + heads * D
    out_stride_n = heads * D
    dqkv_stride_n = 3 * heads * D
    lse_ptr += i_bth * N
    part = tl.program_id(0) % PARTS

    if SINGLE:
        b_q = _load_rows(q_ptr, 0, qkv_stride_n, BLOCK, N, D, MASKED)
        b_k = _load_rows(k_ptr, 0, qkv_stride_n, BLOCK, N, D, MASKED)
        b_v = _load_rows(v_ptr, 0, qkv_stride_n, BLOCK, N, D, MASKED)
        b_dout = _load_rows(dout_ptr, 0, dout_stride_n, BLOCK, N, D, MASKED)
        b_delta = _row_products(b_dout, _load_rows(out_ptr, 0, out_stride_n, BLOCK, N, D, MASKED), DTYPE)
        b_lse = _load_vector(lse_ptr, 0, BLOCK, N)
        b_signed = _signed(b_k, NEGATIVE, DTYPE)
        zeros = tl.zeros(b_q.shape, DTYPE)
        b_p, b_ds = _score_gradients(
            b_q, b_signed, b_dout, b_v, b_lse[:, None], b_delta[:, None], scale_log2, EXACT, PRECISION
        )
        b_ds = _mask_keys(b_ds, 0.0, 0, N, MASKED)
        b_dq = _dot(b_ds.to(b_k.dtype), b_k, zeros, PRECISION)
        _store_rows(dq_ptr, _scaled(b_dq, scale, EXACT, 0), 0, dqkv_stride_n, N, D)
        b_p, b_ds = _score_gradients(
            b_signed, b_q, b_v, b_dout, b_lse[None, :], b_delta[None, :], scale_log2, EXACT, PRECISION
        )
        b_dk = _dot(b_ds.to(b_q.dtype), b_q, zeros, PRECISION)
        _store_rows(dk_ptr, _scaled(b_dk, scale, EXACT, 0), 0, dqkv_stride_n, N, D)
        _store_rows(dv_ptr, _dot(b_p.to(b_dout.dtype), b_dout, zeros, PRECISION), 0, dqkv_stride_n, N, D)
    elif part % 2 == 0:
        first = part // 2
        if RESIDENT:
            keys = _load_pieces(k_ptr, qkv_stride_n, PIECES, N, D)
            values = _load_pieces(v_ptr, qkv_stride_n, PIECES, N, D)
            if PREFETCH:
                n_q = _load_rows(q_ptr, 0, qkv_stride_n, BLOCK, N, D, BLOCK > N)
                n_dout = _load_rows(dout_ptr, 0, dout_stride_n, BLOCK, N, D, BLOCK > N)
        for i_t in tl.range(first, TILES if RESIDENT else first + 1, disable_licm=True):
            row = i_t * BLOCK
            if RESIDENT and PREFETCH:
                b_q = _signed(n_q, NEGATIVE, DTYPE)
                b_dout = n_dout
                n_q = _load_rows(q_ptr, row + BLOCK, qkv_stride_n, BLOCK, N, D, True)
                n_dout = _load_rows(dout_ptr, row + BLOCK, dout_stride_n, BLOCK, N, D, True)
            else:
                b_q = _signed(_load_rows(q_ptr, row, qkv_stride_n, BLOCK, N, D, MASKED), NEGATIVE, DTYPE)
                b_dout = _load_rows(dout_ptr, row, dout_stride_n, BLOCK, N, D, MASKED)
            b_out = _load_rows(out_ptr, row, out_stride_n, BLOCK, N, D, MASKED)
            b_delta = _row_products(b_dout, b_out, DTYPE)[:, None]
            b_lse = _load_vector(lse_ptr, row, BLOCK, N)[:, None]
            b_dq = tl.zeros(b_q.shape, DTYPE)
            if RESIDENT:
                for i in tl.static_range(len(PIECES)):
                    b_p, b_ds = _score_gradients(
                        b_q, keys[i], b_dout, values[i], b_lse, b_delta, scale_log2, EXACT, PRECISION
                    )
                    b_ds = _mask_keys(b_ds, 0.0, _start(PIECES, i), N, _start(PIECES, i + 1) > N)
                    b_dq = _dot(b_ds.to(b_q.dtype), keys[i], b_dq, PRECISION)
            else:
                for start in tl.range(0, N, PIECES[0], disable_licm=True):
                    b_k = _load_rows(k_ptr, start, qkv_stride_n, PIECES[0], N, D, PIECE_MASKED)
                    b_v = _load_rows(v_ptr, start, qkv_stride_n, PIECES[0], N, D, PIECE_MASKED)
                    b_p, b_ds = _score_gradients(
                        b_q, b_k, b_dout, b_v, b_lse, b_delta, scale_log2, EXACT, PRECISION
                    )
                    b_ds = _mask_keys(b_ds, 0.0, start, N, PIECE_MASKED)
                    b_dq = _dot(b_ds.to(b_q.dtype), b_k, b_dq, PRECISION)
            _store_rows(dq_ptr, _scaled(b_dq, scale, EXACT, 0), row, dqkv_stride_n, N, D)
    else:
        first = part // 2
        if RESIDENT:
            queries = _load_pieces(q_ptr, qkv_stride_n, PIECES, N, D)
            douts = _load_pieces(dout_ptr, dout_stride_n, PIECES, N, D)
            rows_ptr += i_bth * 2 * PADDED
            for i in tl.static_range(len(PIECES)):
                b_out = _load_piece(out_ptr, out_stride_n, i, PIECES, N, D)
                b_vector = _load_vector(lse_ptr, _start(PIECES, i), PIECES[i], N)
                _store_vector(rows_ptr, b_vector, _start(PIECES, i), PADDED)
                b_vector = _row_products(douts[i], b_out, DTYPE)
                _store_vector(rows_ptr + PADDED, b_vector, _start(PIECES, i), PADDED)
            tl.debug_barrier()  # other threads will read them
            if PREFETCH:
                n_k = _load_rows(k_ptr, 0, qkv_stride_n, BLOCK, N, D, BLOCK > N)
                n_v = _load_rows(v_ptr, 0, qkv_stride_n, BLOCK, N, D, BLOCK > N)
        for i_t in tl.range(first, TILES if RESIDENT else first + 1, disable_licm=True):
            row = i_t * BLOCK
            if RESIDENT and PREFETCH:
                b_k = _signed(n_k, NEGATIVE, DTYPE)
                b_v = n_v
                n_k = _load_rows(k_ptr, row + BLOCK, qkv_stride_n, BLOCK, N, D, True)
                n_v = _load_rows(v_ptr, row + BLOCK, qkv_stride_n, BLOCK, N, D, True)
            else:
                b_k = _signed(_load_rows(k_ptr, row, qkv_stride_n, BLOCK, N, D, MASKED), NEGATIVE, DTYPE)
                b_v = _load_rows(v_ptr, row, qkv_stride_n, BLOCK, N, D, MASKED)
            b_dk = tl.zeros(b_k.shape, DTYPE)
            b_dv = tl.zeros(b_k.shape, DTYPE)
            if RESIDENT:
                for i in tl.static_range(len(PIECES)):
                    b_lse = _load_vector(rows_ptr, _start(PIECES, i), PIECES[i], PADDED)[None, :]
                    b_delta = _load_vector(rows_ptr + PADDED, _start(PIECES, i), PIECES[i], PADDED)[None, :]
                    b_p, b_ds = _score_gradients(
                        b_k, queries[i], b_v, douts[i], b_lse, b_delta, scale_log2, EXACT, PRECISION
                    )
                    b_dv = _dot(b_p.to(b_v.dtype), douts[i], b_dv, PRECISION)
                    b_dk = _dot(b_ds.to(b_k.dtype), queries[i], b_dk, PRECISION)
            else:
                for start in tl.range(0, N, PIECES[0], disable_licm=True):
                    b_q = _load_rows(q_ptr, start, qkv_stride_n, PIECES[0], N, D, PIECE_MASKED)
                    b_dout = _load_rows(dout_ptr, start, dout_stride_n, PIECES[0], N, D, PIECE_MASKED)
                    b_out = _load_rows(out_ptr, start, out_stride_n, PIECES[0], N, D, PIECE_MASKED)
                    b_lse = _load_vector(lse_ptr, start, PIECES[0], N)
                    b_delta = _row_products(b_dout, b_out, DTYPE)
                    b_p, b_ds = _score_gradients(
                        b_k, b_q, b_v, b_dout, b_lse[None, :], b_delta[None, :], scale_log2, EXACT, PRECISION
                    )
                    b_dv = _dot(b_p.to(b_v.dtype), b_dout, b_dv, PRECISION)
                    b_dk = _dot(b_ds.to(b_k.dtype), b_q, b_dk, PRECISION)
            _store_rows(dk_ptr, _scaled(b_dk, scale, EXACT, 0), row, dqkv_stride_n, N, D)
            _store_rows(dv_ptr, b_dv, row, dqkv_stride_n, N, D)
