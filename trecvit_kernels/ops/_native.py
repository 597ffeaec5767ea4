"""What the native (C++) backends of the recurrent ops share: views for the kernels and their launch settings."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels.ops._memory import empty as empty
from trecvit_kernels.ops._views import dense as dense
from trecvit_kernels.ops._views import readable as readable
from trecvit_kernels.ops._views import row_stride

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

View = tuple[int, int, int, int]  # address and the strides of batch, frame and row, in elements


def view(x: Tensor) -> View:
    """Address and strides of a tensor that ``readable`` accepted."""
    row = row_stride(x)
    assert row is not None
    return x.data_ptr(), x.stride(0), x.stride(1), row


def pointer(x: Tensor | None) -> int:
    """Address of a dense tensor; 0 for None."""
    return 0 if x is None else x.data_ptr()


def threads(elements: int) -> int:
    """Threads for a kernel over so many elements, at most ``torch.get_num_threads()``."""
    return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))
