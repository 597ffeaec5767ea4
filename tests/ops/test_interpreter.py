"""What ``_interpreter`` makes of Triton's interpreter: the same numbers, and overflow is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trecvit_kernels import backends

if not backends.interpreted():
    pytest.skip("TRITON_INTERPRET is not set", allow_module_level=True)

import triton
import triton.language as tl

pytestmark = pytest.mark.about("triton")


@triton.jit
def _combine(rows_ptr, columns_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    rows, columns = tl.load(rows_ptr + i), tl.load(columns_ptr + i)
    tile = rows[:, None] * columns[None, :] + 1 - 0.5 * rows[:, None]
    tile = tl.where(columns[None, :] > 2, tile, -1.0) / 4
    tl.store(out_ptr + i[:, None] * N + i[None, :], tile)


@pytest.mark.parametrize("columns", (torch.float32, torch.int32), ids=str)
@pytest.mark.parametrize("rows", (torch.float32, torch.float16), ids=str)
def test_rows_columns_numbers_and_mixed_types(rows, columns):
    x, y = torch.arange(8).to(rows) / 4 - 1, torch.arange(8).to(columns)
    out = torch.empty(8, 8)
    _combine[(1,)](x, y, out, 8)
    a, b = x.double()[:, None], y.double()[None, :]
    assert out.double().equal(
        torch.where(b > 2, a * b + 1 - 0.5 * a, -1.0) / 4
    )  # exact in all of these types


@triton.jit
def _shift(x_ptr, step, out_ptr, SUBTRACT: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x - step if SUBTRACT else x + step)


@pytest.mark.parametrize("subtract", (False, True))
def test_an_integer_that_leaves_its_type_is_found(subtract):
    limits = np.iinfo(np.int32)
    edge = limits.min if subtract else limits.max
    x, out = torch.tensor([0, edge], dtype=torch.int32), torch.empty(2, dtype=torch.int32)
    _shift[(1,)](x, 0, out, subtract, 2)
    assert out.equal(x)
    with pytest.raises(Exception, match=f"int32 overflows in {'sub' if subtract else 'add'}"):
        _shift[(1,)](x, 1, out, subtract, 2)
