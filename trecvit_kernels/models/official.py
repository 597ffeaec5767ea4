"""The names and layouts of DeepMind's flat .npz checkpoints, and the way in both directions.

An official file holds flax parameters, keys joined by "/": ``tokenizer/...``,
``encoder/residualblock_00/...``, ``encoder/encoderblock_0/...``, ``decoder/...``; kernels are stored [in,
out].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trecvit_kernels.models.config import TRecViTConfig

Config = TRecViTConfig


@dataclass(frozen=True)
class Layout:
    """How one of our tensors is made of official ones, and back."""

    read: Callable[[list[Tensor], Config], Tensor]
    write: Callable[[Tensor, Config], list[Tensor]]


def _split_heads(weight: Tensor, config: Config) -> Tensor:
    """(out = heads * d, in) -> flax DenseGeneral (in, heads, d)."""
    return weight.T.unflatten(1, (config.num_heads, -1))


SAME = Layout(lambda parts, _: parts[0], lambda tensor, _: [tensor])
KERNEL = Layout(lambda parts, _: parts[0].T, lambda tensor, _: [tensor.T])
# Patch kernel (1, rows, columns, 3, out) <-> (out, rows * columns * 3).
PATCH = Layout(
    lambda parts, _: parts[0].flatten(0, 3).T,
    lambda tensor, config: [tensor.T.reshape(1, *config.patch_size, 3, -1)],
)
# Query, key, value kernels (in, heads, d) <-> one (3 * heads * d, in).
QKV_KERNEL = Layout(
    lambda parts, _: torch.cat([part.flatten(1).T for part in parts]),
    lambda tensor, config: [_split_heads(part, config) for part in tensor.chunk(3)],
)
QKV_BIAS = Layout(
    lambda parts, _: torch.cat([part.flatten() for part in parts]),
    lambda tensor, config: [part.reshape(config.num_heads, -1) for part in tensor.chunk(3)],
)
# Attention output kernel (heads, d, out) <-> (out, heads * d).
OUT_KERNEL = Layout(
    lambda parts, _: parts[0].flatten(0, 1).T,
    lambda tensor, config: [tensor.T.unflatten(0, (config.num_heads, -1))],
)

Entry = tuple[str, tuple[str, ...], Layout]


def table(config: Config) -> Iterator[Entry]:
    """(our name, official names, layout) of every parameter of a model with this configuration."""
    yield "embedding.weight", ("tokenizer/embedding/kernel",), PATCH
    yield "embedding.bias", ("tokenizer/embedding/bias",), SAME
    if config.posemb == "learned":
        yield "pos_embedding", ("tokenizer/pos_embedding",), SAME
    if config.pool == "cls":
        yield "cls", ("tokenizer/cls",), SAME
    for i in range(config.depth):
        yield from _time(f"blocks.{i}.time", f"encoder/residualblock_{i:02d}", config)
        yield from _space(f"blocks.{i}.space", f"encoder/encoderblock_{i}")
    yield from _norm("encoder_norm", "encoder/encoder_norm")
    if config.head_width:
        yield from _linear("pre_logits", "decoder/pre_logits")
    if config.num_classes:
        yield from _linear("cls_head", "decoder/cls_head")


def _linear(ours: str, official: str) -> Iterator[Entry]:
    yield f"{ours}.weight", (f"{official}/kernel",), KERNEL
    yield f"{ours}.bias", (f"{official}/bias",), SAME


def _norm(ours: str, official: str) -> Iterator[Entry]:
    yield f"{ours}.weight", (f"{official}/scale",), SAME
    yield f"{ours}.bias", (f"{official}/bias",), SAME


def _time(ours: str, official: str, config: Config) -> Iterator[Entry]:
    yield f"{ours}.norm.scale", (f"{official}/temporal_pre_norm/scale",), SAME
    block = f"{official}/recurrent_block"
    for name in ("linear_x", "linear_y", "linear_out"):
        yield from _linear(f"{ours}.{name}", f"{block}/{name}")
    yield f"{ours}.conv_1d.weight", (f"{block}/conv_1d/w",), SAME
    yield f"{ours}.conv_1d.bias", (f"{block}/conv_1d/b",), SAME
    for name in ("input_gate", "a_gate"):
        yield f"{ours}.rg_lru.{name}.weight", (f"{block}/rg_lru/{name}/w",), SAME
        yield f"{ours}.rg_lru.{name}.bias", (f"{block}/rg_lru/{name}/b",), SAME
    yield f"{ours}.rg_lru.a_param", (f"{block}/rg_lru/a_param",), SAME
    if config.complex_lru:
        yield f"{ours}.rg_lru.a_imag_param", (f"{block}/rg_lru/a_imag_param",), SAME


def _space(ours: str, official: str) -> Iterator[Entry]:
    attention = f"{official}/MultiHeadDotProductAttention_0"
    parts = ("query", "key", "value")
    yield from _norm(f"{ours}.norm_1", f"{official}/LayerNorm_0")
    yield f"{ours}.qkv.weight", tuple(f"{attention}/{part}/kernel" for part in parts), QKV_KERNEL
    yield f"{ours}.qkv.bias", tuple(f"{attention}/{part}/bias" for part in parts), QKV_BIAS
    yield f"{ours}.out.weight", (f"{attention}/out/kernel",), OUT_KERNEL
    yield f"{ours}.out.bias", (f"{attention}/out/bias",), SAME
    yield from _norm(f"{ours}.norm_2", f"{official}/LayerNorm_1")
    yield from _linear(f"{ours}.mlp_in", f"{official}/MlpBlock_0/Dense_0")
    yield from _linear(f"{ours}.mlp_out", f"{official}/MlpBlock_0/Dense_1")


def from_official(arrays: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Our state dict (or gradients) from official arrays, which must be complete and of the right shapes."""
    return {
        ours: layout.read([arrays[name] for name in names], config).contiguous()
        for ours, names, layout in table(config)
    }


def to_official(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Official arrays from our state dict (or gradients); meta tensors give their shapes."""
    arrays: dict[str, Tensor] = {}
    for ours, names, layout in table(config):
        arrays.update(zip(names, layout.write(state[ours], config), strict=True))
    return arrays
