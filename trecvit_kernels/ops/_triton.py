"""What the Triton backends of the ops share on the host: launches, views, devices, ahead-of-time variants.

Kernels are launched through ``launch``. Inside ``recording(arch)`` nothing is launched: the launches that the
host code would make on that architecture are collected instead. Host code run on meta tensors so yields the very
kernel variants (for ahead-of-time compilation) and the tensors they read and write (for counting bytes).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._views import row_stride

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
_MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 188, "gfx942": 304}
INTERPRETER = "interpreter"  # the architecture of a CPU tensor under TRITON_INTERPRET=1


# Devices


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (decided when their module is imported)."""
    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _properties(device: int) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0], properties.multi_processor_count
    return f"sm_{properties.major}{properties.minor}", properties.multi_processor_count


def architecture(x: Tensor) -> str:
    """ "sm_90", "gfx942", ... of the device of ``x``; "interpreter" for the CPU."""
    if _recorder is not None:
        return _recorder.arch
    if x.device.type == "cpu":
        return INTERPRETER
    return _properties(_index(x))[0]


def multiprocessors(x: Tensor) -> int:
    """Streaming multiprocessors (compute units) of the device of ``x``; a few on the interpreter."""
    if _recorder is not None:
        return _MULTIPROCESSORS[_recorder.arch]
    if x.device.type == "cpu":
        return 2
    return _properties(_index(x))[1]


def warp_size(x: Tensor) -> int:
    """Threads of a warp (wavefront) on the device of ``x``."""
    return 64 if architecture(x).startswith("gfx9") else 32


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the device of ``x`` current, as launches need it."""
    if x.device.type != "cuda" or torch.cuda.current_device() == _index(x):
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def _index(x: Tensor) -> int:
    return torch.cuda.current_device() if x.device.index is None else x.device.index


# Views


def strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, frame and row, in elements, of a (B, T, *lanes, C) tensor that ``readable`` accepted."""
    row = row_stride(x)
    assert row is not None
    return x.stride(0), x.stride(1), row


def strides_of(**tensors: Tensor) -> dict[str, int]:
    """Kernel arguments NAME_stride_b, NAME_stride_t and NAME_stride_r of the tensors given by name."""
    return {
        f"{name}_stride_{dim}": stride
        for name, tensor in tensors.items()
        for dim, stride in zip("btr", strides(tensor), strict=True)
    }


# Launches


@dataclass(frozen=True)
class Launch:
    """One launch: kernel, grid, arguments by name (tensors, numbers, None, compile-time values) and options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int


@dataclass
class _Recorder:
    arch: str
    launches: list[Launch] = field(default_factory=list)


_recorder: _Recorder | None = None


@contextlib.contextmanager
def recording(arch: str) -> Iterator[list[Launch]]:
    """Collect the launches of the ``with`` block as for ``arch`` instead of making them (for meta tensors)."""
    global _recorder
    if arch not in ARCHITECTURES:
        raise ValueError(f"recording: arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    previous, _recorder = _recorder, _Recorder(arch)
    try:
        yield _recorder.launches
    finally:
        _recorder = previous


def launch(
    kernel: Any, grid: Sequence[int], arguments: Mapping[str, Any], *, num_warps: int, num_stages: int = 1
) -> None:
    """Run ``kernel`` over ``grid``. The caller has made the tensors' device current.

    Floating-point contraction is asked for explicitly, as Triton's default changes with 3.10.
    """
    if _recorder is not None:
        _recorder.launches.append(Launch(kernel, tuple(grid), dict(arguments), num_warps, num_stages))
        return
    kernel[tuple(grid)](**arguments, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)


class Tile(NamedTuple):
    """Neighbouring lanes of a thread, frames that it holds in registers at once, warps of a program."""

    vector: int
    frames: int
    warps: int


_MOST_LANES = 2**31 - 2**16  # of one frame: kernels number them in 32 bits


def is_flat(batch: int, lanes: int, block: int) -> bool:
    """Whether programs take lanes across examples, because one example has too few for a block."""
    return batch > 1 and lanes < block


def programs(batch: int, lanes: int, segments: int, block: int) -> tuple[int]:
    """Grid: one program per segment and block of lanes, each example's or all examples' together."""
    if lanes > _MOST_LANES:
        raise ValueError(f"a frame may have up to {_MOST_LANES} lanes, got {lanes}")
    if is_flat(batch, lanes, block):
        return (segments * -(-batch * lanes // block),)
    return (segments * batch * -(-lanes // block),)


class Walk:
    """How programs share a recurrence over (B, T, lanes), and the launch arguments that all its kernels take.

    channels: lanes in a row. tile: of the main kernel, which decides how time is cut into segments.
    """

    def __init__(self, like: Tensor, lanes: int, channels: int, tile: Tile) -> None:
        self.batch, self.frames = like.shape[:2]
        self.lanes, self.channels, self.tile = lanes, channels, tile
        self._warp = warp_size(like)
        (blocks,) = programs(self.batch, lanes, 1, self.block(tile))
        segments = _schedule.gpu_segments(blocks * tile.warps, self.frames, multiprocessors(like))
        self.segment_frames = _schedule.segment_frames(self.frames, segments)
        self.segments = -(-self.frames // self.segment_frames)

    def block(self, tile: Tile) -> int:
        """Lanes of a program."""
        return tile.vector * self._warp * tile.warps

    def masked(self, tile: Tile) -> bool:
        """Whether lanes or frames end inside a tile."""
        return self.lanes % self.block(tile) != 0 or self.frames % tile.frames != 0

    def launch(self, kernel: Any, arguments: Mapping[str, Any], tile: Tile | None = None) -> None:
        """One program per segment and block of lanes."""
        tile = tile or self.tile
        block = self.block(tile)
        shared = {
            "batches": self.batch,
            "frames": self.frames,
            "lanes": self.lanes,
            "channels": self.channels,
            "segment_frames": self.segment_frames,
            "segments": self.segments,
            "FLAT": is_flat(self.batch, self.lanes, block),
            "K": tile.frames,
            "BLOCK": block,
        }
        grid = programs(self.batch, self.lanes, self.segments, block)
        launch(kernel, grid, {**arguments, **shared}, num_warps=tile.warps)

    def summaries(self, state: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """Memory for ends and products of segments: (B, segments, numbers of a state), real, dtype of the state."""
        dtype = state.dtype.to_real() if state.is_complex() else state.dtype
        shape = (self.batch, self.segments, parts * self.lanes)
        return tuple(torch.empty(shape, dtype=dtype, device=state.device) for _ in range(2))  # type: ignore[return-value]


# Ahead-of-time compilation


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel.

    signature: argument -> Triton type ("*bf16", "i32", ...), with ":16" behind it where pointer or value are
    multiples of 16, as the JIT would specialise them; "constexpr" for the arguments in ``constexprs``.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1


_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


def variant_of(name: str, recorded: Launch) -> Variant:
    """The specialisation that the JIT would compile for a recorded launch, on 16-byte aligned tensors."""
    signature, constexprs = {}, {}
    for parameter in recorded.kernel.params:
        value = recorded.arguments[parameter.name]
        kind = "constexpr" if parameter.is_constexpr or value is None else _type_of(parameter, value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constexprs[parameter.name] = value
    return Variant(name, recorded.kernel, signature, constexprs, recorded.num_warps, recorded.num_stages)


def _type_of(parameter: Any, value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}:16"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    width = "i32" if -(2**31) <= value < 2**31 else "i64"
    if parameter.do_not_specialize:
        return width
    if value == 1:
        return "constexpr"
    return f"{width}:16" if value % 16 == 0 else width


def target_of(arch: str) -> GPUTarget:
    """Triton's description of "sm_90", "gfx942", ..."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch[3:]), 32)
    return GPUTarget("hip", arch, 64)


def compile_variant(variant: Variant, arch: str) -> Any:
    """Triton's compiled kernel, without a GPU (binary and assembly in ``.asm``, numbers in ``.metadata``)."""
    signature = {name: kind.removesuffix(":16") for name, kind in variant.signature.items()}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(variant.signature.values())
        if kind.endswith(":16")
    }
    source = ASTSource(variant.kernel, signature, dict(variant.constexprs), attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=target_of(arch), options=options)
