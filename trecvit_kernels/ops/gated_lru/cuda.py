"""CUDA backend: csrc/gated_lru/*.cu."""

from __future__ import annotations

from functools import partial

from trecvit_kernels.ops._cuda import GPU
from trecvit_kernels.ops.gated_lru import _compiled

gated_lru_forward = partial(_compiled.forward, GPU)
gated_lru_backward = partial(_compiled.backward, GPU)
