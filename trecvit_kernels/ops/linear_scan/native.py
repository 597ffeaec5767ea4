"""Native CPU backend: csrc/linear_scan/cpu.cpp."""

from __future__ import annotations

from functools import partial

from trecvit_kernels.ops._native import CPU
from trecvit_kernels.ops.linear_scan import _compiled

linear_scan_forward = partial(_compiled.forward, CPU)
linear_scan_backward = partial(_compiled.backward, CPU)
