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

from trecvit_kernels.ops import _schedule

from ._suite import OPS, run, truth

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


@triton.jit
def _arithmetic(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    less, odd = x < tl.load(x_ptr), ((i * 3 - 1) & 1) == 1
    y = tl.where(less | odd, (1 - 0.1 * x) / 3, -x)
    tl.store(out_ptr + tl.where(i < N - 1, i + 1, 0), tl.where(i.to(tl.int64) * 2 + 1 > 4, y / x, y - x))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_numbers_take_the_type_of_the_tile(dtype):
    x, i = torch.randn(8, dtype=dtype), torch.arange(8)
    out = torch.empty_like(x)
    _arithmetic[(1,)](x, out, 8)
    y = torch.where((x < x[0]) | (i % 2 == 0), (1 - x * torch.tensor(0.1, dtype=dtype)) / 3, -x)
    assert out.roll(-1).equal(torch.where(i > 1, y / x, y - x))


@triton.jit
def _to_bfloat16_and_back(x_ptr, half_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    half = tl.load(x_ptr + i).to(tl.bfloat16)
    tl.store(half_ptr + i, half)
    tl.store(out_ptr + i, half.to(tl.float32))


def test_bfloat16_is_the_upper_half_of_float32():
    x = torch.tensor([0.0, -0.0, 1.0, -3.14159, 3e38, 1.2e-38, torch.inf, torch.nan])
    half, out = torch.empty(8, dtype=torch.bfloat16), torch.empty(8)
    _to_bfloat16_and_back[(1,)](x, half, out, 8)
    upper = (x.view(torch.int32) >> 16) << 16
    assert out.view(torch.int32).equal(upper)
    assert half.float().view(torch.int32).equal(upper)


class _Asked(Exception):
    pass


class _Unknown:
    """A forced schedule of which nobody may ask what it is."""

    def __eq__(self, other):
        raise _Asked

    __hash__ = None


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if "triton" in op.backends])
def test_schedules_are_chosen_where_the_suite_forces_them(name, monkeypatch):
    """In every op but the mixer, which walks time in one way: the suite runs it once."""
    op = OPS[name]
    expected = truth(
        op, op.case("video-f32" if name in ("linear_scan", "spatial_attention") else "video-real-f32")
    )
    monkeypatch.setattr(_schedule, "_forced", _Unknown())
    if op.schedules("triton") == (None,):
        run(op, expected.inputs, "triton", expected.cotangents)
    else:
        with pytest.raises(_Asked):
            run(op, expected.inputs, "triton", expected.cotangents)
