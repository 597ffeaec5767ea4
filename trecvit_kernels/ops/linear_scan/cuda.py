"""CUDA backend: csrc/linear_scan/*.cu."""

from __future__ import annotations

from functools import partial

from trecvit_kernels.ops._cuda import GPU
from trecvit_kernels.ops.linear_scan import _compiled

linear_scan_forward = partial(_compiled.forward, GPU)
linear_scan_backward = partial(_compiled.backward, GPU)
