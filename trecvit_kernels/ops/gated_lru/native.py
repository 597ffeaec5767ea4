"""Native CPU backend: csrc/gated_lru/cpu.cpp."""

from __future__ import annotations

from functools import partial

from trecvit_kernels.ops._native import CPU
from trecvit_kernels.ops.gated_lru import _compiled

gated_lru_forward = partial(_compiled.forward, CPU)
gated_lru_backward = partial(_compiled.backward, CPU)
