"""The ops: one folder each, with its mathematics, reference, kernels, bindings and test cases."""

from trecvit_kernels.ops.gated_lru.op import gated_lru
from trecvit_kernels.ops.linear_scan.op import linear_scan
from trecvit_kernels.ops.recurrent_mixer.op import recurrent_mixer
from trecvit_kernels.ops.spatial_attention.op import spatial_attention

__all__ = ["gated_lru", "linear_scan", "recurrent_mixer", "spatial_attention"]
