"""Layers of TRecViT on top of the ops, usable in other models."""

from trecvit_kernels.modules import temporal
from trecvit_kernels.modules.conv import CausalConv1d
from trecvit_kernels.modules.gated_lru import BlockDiagonalLinear, GatedLRU
from trecvit_kernels.modules.norm import RMSNorm
from trecvit_kernels.modules.recurrent_block import RecurrentBlock
from trecvit_kernels.modules.spatial_block import SpatialBlock

__all__ = [
    "BlockDiagonalLinear",
    "CausalConv1d",
    "GatedLRU",
    "RMSNorm",
    "RecurrentBlock",
    "SpatialBlock",
    "temporal",
]
