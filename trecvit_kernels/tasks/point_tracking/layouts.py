"""Names and layouts of the two kinds of official TAPNext checkpoints, and the way in both directions.

``torch`` is the state dict of the official PyTorch port, ``jax`` the flat .npz of the original: flax parameters with
keys joined by "/", kernels stored [in, out].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor

from trecvit_kernels.models import official
from trecvit_kernels.models.official import KERNEL, OUT_KERNEL, PATCH, QKV_BIAS, QKV_KERNEL, SAME, Layout
from trecvit_kernels.tasks.point_tracking.config import PointTrackerConfig

Config = PointTrackerConfig
Entry = tuple[str, tuple[str, ...], Layout]

# Patch kernel (out, 3, rows, columns) <-> (out, rows * columns * 3).
TORCH_PATCH = Layout(
    lambda parts, _: parts[0].permute(0, 2, 3, 1).flatten(1),
    lambda tensor, config: [tensor.unflatten(1, (*config.patch_size, 3)).permute(0, 3, 1, 2)],
)
# [gate, value] kernels (2, in, hidden) <-> one (2 * hidden, in), and biases (2, 1, 1, hidden) <-> (2 * hidden).
GATED_KERNEL = Layout(
    lambda parts, _: parts[0].transpose(1, 2).flatten(0, 1),
    lambda tensor, _: [tensor.unflatten(0, (2, -1)).transpose(1, 2)],
)
GATED_BIAS = Layout(lambda parts, _: parts[0].flatten(), lambda tensor, _: [tensor.reshape(2, 1, 1, -1)])


def table(layout: str, config: Config) -> Iterator[Entry]:
    """(our name, official names, how they correspond) of every parameter."""
    return _torch_table(config) if layout == "torch" else _jax_table(config)


def _torch_table(config: Config) -> Iterator[Entry]:
    yield "embedding.weight", ("lin_proj.weight",), TORCH_PATCH
    yield "embedding.bias", ("lin_proj.bias",), SAME
    yield "pos_embedding", ("image_pos_emb",), SAME
    for name in ("mask_token", "unknown_token", "point_query_token"):
        yield name, (name,), SAME
    for i in range(config.depth):
        for ours, theirs, kind in _time():
            yield f"blocks.{i}.{ours}", (f"blocks.{i}.ssm_block.{theirs}",), kind
        for ours, theirs in (
            ("norm_1", "ln_1"),
            ("qkv", "self_attention.in_proj"),
            ("out", "self_attention.out_proj"),
            ("norm_2", "ln_2"),
            ("mlp_in", "mlp.0"),
            ("mlp_out", "mlp.3"),
        ):
            joint = "_" if ours == "qkv" else "."
            for part in ("weight", "bias"):
                official_name = f"blocks.{i}.vit_block.{theirs}{joint}{part}"
                yield f"blocks.{i}.space.{ours}.{part}", (official_name,), SAME
    for part in ("weight", "bias"):
        yield f"encoder_norm.{part}", (f"encoder_norm.{part}",), SAME
    for name in _head_parameters():
        yield name, (name,), SAME


def _jax_table(config: Config) -> Iterator[Entry]:
    yield "embedding.weight", ("backbone/embedding/kernel",), PATCH
    yield "embedding.bias", ("backbone/embedding/bias",), SAME
    yield "pos_embedding", ("backbone/pos_embedding",), SAME
    for name in ("mask_token", "unknown_token", "point_query_token"):
        yield name, (f"backbone/{name}",), SAME
    for i in range(config.depth):
        block = f"backbone/Transformer/encoderblock_{i}"
        for ours, theirs, kind in _time():
            # The linear layers' "weight" is a "kernel" here, [in, out].
            linear = theirs.endswith(".weight")
            key = theirs.replace(".", "/").removesuffix("weight") + ("kernel" if linear else "")
            yield f"blocks.{i}.{ours}", (f"{block}/ssm_block/{key}",), KERNEL if linear else kind
        yield from _jax_space(f"blocks.{i}.space", f"{block}/vit_block")
    yield from _jax_norm("encoder_norm", "backbone/Transformer/encoder_norm")
    for name in _head_parameters():
        head, index, part = name.split(".")
        norm = index in ("1", "4")
        key = part if part == "bias" else "scale" if norm else "kernel"
        yield name, (f"{head}/layers_{index}/{key}",), KERNEL if key == "kernel" else SAME


def _time() -> Iterator[tuple[str, str, Layout]]:
    """Recurrent block and gated MLP of one block, their names in the PyTorch port."""
    yield "time.norm.scale", "temporal_pre_norm.scale", SAME
    for linear in ("linear_y", "linear_x", "linear_out"):
        for part in ("weight", "bias"):
            yield f"time.{linear}.{part}", f"recurrent_block.{linear}.{part}", SAME
    for name in ("conv_1d", "rg_lru.input_gate", "rg_lru.a_gate"):
        yield f"time.{name}.weight", f"recurrent_block.{name}.w", SAME
        yield f"time.{name}.bias", f"recurrent_block.{name}.b", SAME
    yield "time.rg_lru.a_param", "recurrent_block.rg_lru.a_param", SAME
    yield "mlp.norm.scale", "channel_pre_norm.scale", SAME
    yield "mlp.up.weight", "mlp_block.ffw_up.w", GATED_KERNEL
    yield "mlp.up.bias", "mlp_block.ffw_up.b", GATED_BIAS
    for part in ("weight", "bias"):
        yield f"mlp.down.{part}", f"mlp_block.ffw_down.{part}", SAME


def _jax_norm(ours: str, theirs: str) -> Iterator[Entry]:
    yield f"{ours}.weight", (f"{theirs}/scale",), SAME
    yield f"{ours}.bias", (f"{theirs}/bias",), SAME


def _jax_space(ours: str, theirs: str) -> Iterator[Entry]:
    attention = f"{theirs}/MultiHeadDotProductAttention_0"
    parts = ("query", "key", "value")
    yield from _jax_norm(f"{ours}.norm_1", f"{theirs}/LayerNorm_0")
    yield f"{ours}.qkv.weight", tuple(f"{attention}/{part}/kernel" for part in parts), QKV_KERNEL
    yield f"{ours}.qkv.bias", tuple(f"{attention}/{part}/bias" for part in parts), QKV_BIAS
    yield f"{ours}.out.weight", (f"{attention}/out/kernel",), OUT_KERNEL
    yield f"{ours}.out.bias", (f"{attention}/out/bias",), SAME
    yield from _jax_norm(f"{ours}.norm_2", f"{theirs}/LayerNorm_1")
    for name, dense in (("mlp_in", "Dense_0"), ("mlp_out", "Dense_1")):
        yield f"{ours}.{name}.weight", (f"{theirs}/MlpBlock_0/{dense}/kernel",), KERNEL
        yield f"{ours}.{name}.bias", (f"{theirs}/MlpBlock_0/{dense}/bias",), SAME


def _head_parameters() -> Iterator[str]:
    for head in ("visible_head", "coordinate_head"):
        for index in (0, 1, 3, 4, 6):
            for part in ("weight", "bias"):
                yield f"{head}.{index}.{part}"


def read(layout: str, tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Our state dict (or gradients) from official tensors, which must be complete and of the right shapes."""
    return {
        ours: kind.read([tensors[name] for name in names], _sizes(config)).contiguous()
        for ours, names, kind in table(layout, config)
    }


def write(layout: str, state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Official tensors from our state dict (or gradients); meta tensors give their shapes."""
    tensors: dict[str, Tensor] = {}
    for ours, names, kind in table(layout, config):
        parts = kind.write(state[ours], _sizes(config))
        tensors.update(zip(names, (part.contiguous() for part in parts), strict=True))
    return tensors


def _sizes(config: Config) -> official.Config:
    """The layouts shared with TRecViT read ``num_heads`` and ``patch_size`` alone, which both configurations have."""
    return cast(official.Config, config)
