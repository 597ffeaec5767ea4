"""What the recurrent ops' Triton kernels share: lanes of a program, the scan of carries, sums over rows.

Lanes are (row, channel) pairs, rows the dimensions between time and channels. In a complex recurrence a lane is a
pair of numbers. A program owns BLOCK lanes of one batch item and one segment of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trecvit_kernels.ops._triton import interpreting, is_flat, launch, programs
from trecvit_kernels.ops._triton_math import advance, sigmoid


@triton.jit
def place(
    lanes, channels, batches, segments, FLAT: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr = 0
):
    """(segment, batch, lane, row, channel, whether the lane exists) of this program's lanes, 64-bit but the channel.

    Neighbouring programs have neighbouring lanes. FLAT: lanes are counted through the batch, so that many examples of
    few lanes share a program, and the batch is a tile; otherwise it is a number. Tiles are divided in 32 bits.
    VECTOR: so many neighbouring lanes go to a thread, of all tensors alike; it must divide the channels. 0: no wish.
    """
    index = tl.program_id(0).to(tl.int64)
    if FLAT:
        blocks = tl.cdiv(batches * lanes, BLOCK)
        segment = index // blocks
        first = index % blocks * BLOCK
        within = (first % lanes).to(tl.int32) + tl.arange(0, BLOCK)
        batch = first // lanes + (within // lanes).to(tl.int64)
        local = within % lanes
        lane = local.to(tl.int64)
        row = (local // channels).to(tl.int64)
        channel = local % channels
        if VECTOR > 0:
            lane = tl.max_contiguous(lane, VECTOR)
            channel = tl.max_contiguous(channel, VECTOR)
        return segment, batch, lane, row, channel, first + tl.arange(0, BLOCK) < batches * lanes
    blocks = tl.cdiv(lanes, BLOCK)
    rest = index // blocks
    first = index % blocks * BLOCK
    within = (first % channels).to(tl.int32) + tl.arange(0, BLOCK)
    lane = first + tl.arange(0, BLOCK)
    is_lane = lane < lanes
    row = first // channels + (within // channels).to(tl.int64)
    channel = within % channels
    if VECTOR > 0:
        lane = tl.max_contiguous(lane, VECTOR)
        channel = tl.max_contiguous(channel, VECTOR)
    return rest // batches, rest % batches, lane, row, channel, is_lane


@triton.jit
def is_before(frame, left, BLOCK: tl.constexpr):
    """frame < left as a tile: the interpreter does not combine masks with scalar conditions."""
    return tl.full((BLOCK,), frame, tl.int32) < left


# Rows of a (frames, lanes) tile whose frames lie in one thread: the compiler makes registers of them.


@triton.jit
def pick_row(tile, rows, k):
    """Row k; rows numbers the rows, (K, 1)."""
    return tl.sum(tl.where(rows == k, tile, -0.0), axis=0)  # adding -0 changes nothing, so nothing is added


@triton.jit
def put_row(tile, rows, k, values):
    """The tile with row k replaced."""
    return tl.where(rows == k, values[None, :], tile)


@triton.jit
def frame_masks(left, is_lane, K: tl.constexpr, BLOCK: tl.constexpr):
    """Per frame of K: which lanes exist, none from frame ``left`` on."""
    masks = ()
    for k in tl.static_range(K):
        masks = masks + (is_lane & is_before(k, left, BLOCK),)
    return masks


# The carry scan: from summaries of segments to the states that they start from


@triton.jit(do_not_specialize=["batches", "segments"])
def carry_kernel(
    end_ptr,
    product_ptr,
    start_ptr,
    lanes,
    channels,
    batches,
    segments,
    COMPLEX: tl.constexpr,
    RESETS: tl.constexpr,
    FLAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """In: the state at the end of each segment, walked from zero, and the product of the segment's decays. Out, in
    place of the former: the state that each segment starts from.

    Both are (B, segments, rows, C), start (B, rows, C) or None for zeros; if complex each row has C real parts and
    then C imaginary parts. RESETS: a product of zero lets nothing of the state through, whatever it held.
    """
    _, batch, _, row, channel, is_lane = place(lanes, channels, batches, 1, FLAT, BLOCK)
    parts: tl.constexpr = 2 if COMPLEX else 1
    slot = tl.cast(lanes, tl.int64) * parts
    at = row * channels * parts + channel
    h_re = tl.zeros((BLOCK,), dtype=end_ptr.dtype.element_ty)
    h_im = h_re
    if start_ptr is not None:
        h_re = tl.load(start_ptr + batch * slot + at, mask=is_lane, other=0.0)
        if COMPLEX:
            h_im = tl.load(start_ptr + batch * slot + at + channels, mask=is_lane, other=0.0)
    at += batch * segments * slot
    for first in range(0, segments, GROUP):
        masks = frame_masks(segments - first, is_lane, GROUP, BLOCK)
        ends_re, ends_im, products_re, products_im = (), (), (), ()
        for k in tl.static_range(GROUP):  # all loads of a group at once, as each takes long to arrive
            mask = masks[k]
            ends_re = ends_re + (tl.load(end_ptr + at + k * slot, mask=mask, other=0.0),)
            products_re = products_re + (tl.load(product_ptr + at + k * slot, mask=mask, other=0.0),)
            if COMPLEX:
                ends_im = ends_im + (tl.load(end_ptr + at + channels + k * slot, mask=mask, other=0.0),)
                products_im = products_im + (
                    tl.load(product_ptr + at + channels + k * slot, mask=mask, other=0.0),
                )
        for k in tl.static_range(GROUP):
            mask = masks[k]
            tl.store(end_ptr + at + k * slot, h_re, mask=mask)
            if COMPLEX:
                tl.store(end_ptr + at + channels + k * slot, h_im, mask=mask)
                next_re, next_im = advance(
                    products_re[k], products_im[k], h_re, h_im, ends_re[k], ends_im[k], True
                )
                if RESETS:
                    cut = (products_re[k] == 0.0) & (products_im[k] == 0.0)
                    next_re = tl.where(cut, ends_re[k], next_re)
                    next_im = tl.where(cut, ends_im[k], next_im)
                h_im = next_im
            else:
                next_re = products_re[k] * h_re + ends_re[k]
                if RESETS:
                    next_re = tl.where(products_re[k] == 0.0, ends_re[k], next_re)
            h_re = next_re
        at += GROUP * slot


def scan_carries(
    ends: Tensor, products: Tensor, start: Tensor | None, *, channels: int, is_complex: bool, resets: bool
) -> None:
    """Turn the ends of segments, walked from zero, into the states that the segments start from, in place.

    ends, products: (B, segments, numbers of a state) in the state dtype; start (B, numbers of a state) or None.
    channels: so many real parts in a row are followed by as many imaginary parts.
    """
    batch, segments, numbers = ends.shape
    lanes = numbers // 2 if is_complex else numbers
    block = 1024 if interpreting() else 32
    arguments: dict[str, Any] = {
        "end_ptr": ends,
        "product_ptr": products,
        "start_ptr": start,
        "lanes": lanes,
        "channels": channels,
        "batches": batch,
        "segments": segments,
        "COMPLEX": is_complex,
        "RESETS": resets,
        "FLAT": is_flat(batch, lanes, block),
        "GROUP": 16 if ends.element_size() * (2 if is_complex else 1) == 4 else 8,
        "BLOCK": block,
    }
    launch(carry_kernel, programs(batch, lanes, 1, block), arguments, num_warps=1)


# Sums over rows, in double and in a fixed order


@triton.jit
def sum_kernel(
    partial_ptr,
    a_param_ptr,
    out_ptr,
    rows,
    channels,
    group_rows,
    groups,
    DECAY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial (kinds, rows, channels) -> out (kinds, groups, channels), each group the sum of group_rows rows.

    DECAY: times d(log|a| / r) / d(a_param) = -8 sigmoid(a_param), which turns the sums of r dl into da_param.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    index = tl.program_id(0)
    kind = tl.program_id(1).to(tl.int64)
    group = (index // blocks).to(tl.int64)
    c = (index % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    is_channel = c < channels
    first = group * group_rows
    end = tl.minimum(first + group_rows, rows)
    at = partial_ptr + kind * rows * channels + c[None, :]
    total = tl.zeros((BLOCK_C,), dtype=tl.float64)
    for start in range(first, end, BLOCK_M):
        row = start + m
        mask = (row < end)[:, None] & is_channel[None, :]
        tile = tl.load(at + row.to(tl.int64)[:, None] * channels, mask=mask, other=0.0)
        total += tl.sum(tile.to(tl.float64), axis=0)
    if DECAY:
        a_param = tl.load(a_param_ptr + c, mask=is_channel, other=0.0).to(tl.float64)
        total *= -8.0 * sigmoid(a_param)
    tl.store(
        out_ptr + (kind * groups + group) * channels + c, total.to(out_ptr.dtype.element_ty), mask=is_channel
    )


_ROWS_PER_GROUP, _MAX_GROUPS = 64, 64


def sum_rows(partial: Tensor, outs: Sequence[Tensor], a_param: Tensor | None) -> None:
    """Sum partial (kinds, rows, channels) over rows into one (channels) tensor per kind.

    a_param: the first sum is of r dl and is to be the gradient of a_param.
    """
    kinds, rows, channels = partial.shape
    groups = min(_MAX_GROUPS, -(-rows // _ROWS_PER_GROUP))
    if groups > 1:
        part = partial.new_empty((kinds, groups, channels), dtype=torch.float64)
        _launch_sum(partial, None, part, groups)
        partial = part
    for kind, out in enumerate(outs):
        _launch_sum(partial[kind : kind + 1], a_param if kind == 0 else None, out, 1)


def _launch_sum(partial: Tensor, a_param: Tensor | None, out: Tensor, groups: int) -> None:
    kinds, rows, channels = partial.shape
    block_m, block_c = (512, 256) if interpreting() else (16, 64)
    arguments: dict[str, Any] = {
        "partial_ptr": partial,
        "a_param_ptr": a_param,
        "out_ptr": out,
        "rows": rows,
        "channels": channels,
        "group_rows": -(-rows // groups),
        "groups": groups,
        "DECAY": a_param is not None,
        "BLOCK_M": block_m,
        "BLOCK_C": block_c,
    }
    launch(sum_kernel, (groups * -(-channels // block_c), kinds), arguments, num_warps=4)
