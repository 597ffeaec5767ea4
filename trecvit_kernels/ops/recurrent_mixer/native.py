"""Native CPU backend: csrc/recurrent_mixer/cpu.cpp and csrc/gated_lru/cpu.cpp."""

from __future__ import annotations

from functools import partial

from trecvit_kernels.ops._native import CPU
from trecvit_kernels.ops.recurrent_mixer import _compiled

recurrent_mixer_forward = partial(_compiled.forward, CPU)
recurrent_mixer_again = partial(_compiled.again, CPU)
recurrent_mixer_backward = partial(_compiled.backward, CPU)
recurrent_mixer_backward_from = partial(_compiled.backward_from, CPU)
