"""What the native (C++) backends of the recurrent ops share: views for the kernels and their launch settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trecvit_kernels import _native

# Codes of csrc/common/dtype.h.
DTYPE_CODES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float64: 3,
    torch.complex64: 4,
    torch.complex128: 5,
}
_ELEMENTS_PER_THREAD = 16_384  # below this, waking another thread costs more than it saves

_HUGE_BYTES = 8 * 2**20  # from here on, outputs ask for huge pages

View = tuple[int, int, int, int]  # address and the strides of batch, frame and row, in elements


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An output to be written whole. Large ones are hinted to the kernel as huge pages, which saves most of the
    page faults that would otherwise take longer than the op."""
    x = torch.empty(tuple(shape), dtype=dtype)
    if x.nbytes >= _HUGE_BYTES:
        _native.advise_huge_pages(x.data_ptr(), x.nbytes)
    return x


def readable(x: Tensor) -> Tensor:
    """``x`` (B, T, *lanes, C) itself if C is contiguous and lanes collapse to one stride, else a contiguous copy."""
    return x if _row_stride(x) is not None else x.contiguous()


def view(x: Tensor) -> View:
    """Address and strides of a tensor that ``readable`` accepted."""
    row_stride = _row_stride(x)
    assert row_stride is not None
    return x.data_ptr(), x.stride(0), x.stride(1), row_stride


def pointer(x: Tensor | None) -> int:
    """Address of a dense tensor; 0 for None."""
    return 0 if x is None else x.data_ptr()


def dense(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous, in ``dtype``, no lazy conjugate; None stays None."""
    return None if x is None else x.to(dtype).resolve_conj().resolve_neg().contiguous()


def threads(elements: int) -> int:
    """Threads for a kernel over so many elements, at most ``torch.get_num_threads()``."""
    return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))


def _row_stride(x: Tensor) -> int | None:
    """The one stride of the dimensions between T and C, or None if there is none such or C is not contiguous."""
    if x.is_contiguous():
        return x.shape[-1]
    if x.shape[-1] != 1 and x.stride(-1) != 1:
        return None
    expected = stride = None
    for size, step in zip(reversed(x.shape[2:-1]), reversed(x.stride()[2:-1]), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = step
        elif step != expected:
            return None
        expected = step * size
    return x.shape[-1] if stride is None else stride
