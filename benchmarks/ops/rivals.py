"""What others offer for an op at a size: eager code, torch.compile, scans and attention kernels of other packages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import peers as gpu_peers
from benchmarks.ops import peers
from benchmarks.ops.checks import (
    check_attention,
    check_gated_lru,
    check_linear_scan,
    check_mixer,
    check_whole,
)
from benchmarks.ops.rooms import Room, takes_only
from benchmarks.setting import Setting

# Frames up to which: loops in Python are worth a wait; so is the reference's backward pass, in which every frame
# touches all of them (other eager peers have none of that); and compiling, on a CPU fewer with gradients, in bfloat16
# and complex: it takes time as the number of frames squared, minutes for the gradients of 32, and these are slow.
_LOOPED, _SHORT = 4096, 16
_COMPILED, _COMPILED_ALSO = 32, 16
_MULTIPLY = ("recurrent_mixer",)  # ops whose reference multiplies matrices in 16 bits
_SDPA = {"cpu": ("FLASH_ATTENTION", "MATH"), "cuda": gpu_peers.SDPA}
_GATED_LRU = ("x", "gate_x", "gate_a", "a_param", "a_imag")
_MIXER = ("u", "v", "conv_weight", "conv_bias", "gate_x_weight", "gate_x_bias", "gate_a_weight", "gate_a_bias",
          "a_param", "a_imag")  # fmt: skip

Function = Callable[..., Tensor]  # of the op's arguments by name
Own = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rival:
    """A function of the op's arguments by name.

    own: brings every tensor into the layout that it wants; it gets that for free. back: turns its results into ours.
    """

    name: str
    function: Function
    own: Own | None = None
    back: Callable[[object], object] = lambda result: result


def rivals(room: Room, case: Any, at: Setting, direction: str, backend: str) -> list[Rival]:
    """Those that can do this case on this device; backend: of our op, where a peer is made of parts of ours."""
    frames = getattr(case, "frames", 1)
    found, reference = [], room.reference
    if room.name in _MULTIPLY:
        reference = peers.multiplied_as_ours(reference, case.dtype, at)
    if frames <= (_LOOPED if direction == "forward" else _SHORT):
        found.append(Rival("eager reference", reference))
    if _compiles(at, case, direction):
        found.append(Rival("torch.compile of the reference", peers.compiled(reference)))
    return found + _OTHERS.get(room.name, _none)(case, at, direction, backend)


def check(room: Room, backend: str, arguments: Mapping[str, Any]) -> str:
    """Is the op right on these arguments? Empty, or what is wrong."""
    function, dims = room.function(backend), arguments.get("u", torch.empty(0)).ndim
    plain = takes_only(arguments, h0=None, reset=None, normalizer="sqrt", reverse=False)
    if room.name == "gated_lru" and plain:
        return check_gated_lru([arguments[name] for name in _GATED_LRU], _positional(function, *_GATED_LRU))
    if room.name == "linear_scan" and plain:
        return check_linear_scan(arguments["a"], arguments["b"], _positional(function, "a", "b"))
    if room.name == "recurrent_mixer" and plain and dims == 4:
        return check_mixer(arguments, function)
    if room.name == "spatial_attention":
        scale = arguments["scale"]
        run = _positional(functools.partial(function, scale=scale), "qkv", "num_heads")
        return check_attention(arguments["qkv"], arguments["num_heads"], run, scale)
    return check_whole(arguments, function, room.reference)


def _none(case: Any, at: Setting, direction: str, backend: str) -> list[Rival]:
    """An op that came after this file has its reference as a peer."""
    return []


def _gated_lru(case: Any, at: Setting, direction: str, backend: str) -> list[Rival]:
    if case.h0 or case.reset != "none" or case.normalizer != "sqrt":
        return []
    found = {"associative_scan": peers.in_float32(peers.associative_gated_lru)}
    if case.frames <= _LOOPED:
        found["eager, gates of all frames at once"] = peers.in_float32(peers.eager_gated_lru)
    if at.device == "cuda" and not case.complex:
        compiling = not (at.quick or at.tiny)
        compiled = gpu_peers.compiler(at.tiny) if compiling else _as_it_is
        gates, lanes_first = (compiled(made) for made in (gpu_peers.gates, gpu_peers.gates_lanes_first))
        prefix = "compiled gates" if compiling else "gates"
        for kernel in ("fused_recurrent_hgrn", "chunk_hgrn"):
            found[f"{prefix} + {kernel}"] = _real(gpu_peers.hgrn(kernel, gates))
        if case.frames > 64:
            for kernel in gpu_peers.real_scans():
                scan = gpu_peers.accelerated_scan_gates(kernel, lanes_first)
                found[f"{prefix} + accelerated_scan.{kernel}"] = _real(scan)
    return [Rival(name, _named(function, *_GATED_LRU)) for name, function in found.items()]


def _linear_scan(case: Any, at: Setting, direction: str, backend: str) -> list[Rival]:
    if case.h0 or case.reverse:
        return []
    found = [Rival("associative_scan", _named(peers.in_float32(peers.associative_linear_scan), "a", "b"))]
    if case.frames <= _LOOPED:
        eager = _named(peers.in_float32(peers.eager_linear_scan), "a", "b")
        found.append(Rival("eager, fused multiply-adds", eager))
        # The forward pass that is compiled is the reference's, which is the same. This one's gradient compiles fast.
        if at.device == "cpu" and direction != "forward" and _compiles(at, case, "forward"):
            found.append(Rival("torch.compile, fused multiply-adds", peers.compiled(eager)))
    if at.device == "cuda":
        kernels = ["complex"] if case.dtype.is_complex else ["scalar", "warp"]
    else:
        kernels = ["ref"]
    if case.frames & (case.frames - 1) == 0:
        back = peers.from_lanes_first(torch.Size((case.batch, case.frames, *case.lanes)))
        for kernel in kernels:
            run = _named(functools.partial(peers.accelerated_scan, kernel=kernel), "a", "b")
            found.append(Rival(f"accelerated_scan.{kernel}", run, _widened_lanes_first, back))
    return found


def _recurrent_mixer(case: Any, at: Setting, direction: str, backend: str) -> list[Rival]:
    if case.reset != "none" or case.frames > _LOOPED:
        return []
    eager, ours = (
        peers.multiplied_as_ours(parts, case.dtype, at)
        for parts in (
            functools.partial(peers.mixer_by_parts, recurrence=peers.in_float32(peers.eager_gated_lru)),
            functools.partial(gpu_peers.recurrent_mixer, backend=backend),
        )
    )
    found = [
        Rival("eager conv, gate products, recurrence, GELU gate", _named(eager, *_MIXER, more=("state",))),
        Rival("eager conv, gate products, our gated_lru, GELU gate", _named(ours, *_MIXER, more=("state",))),
    ]
    if at.device == "cuda" and _compiles(at, case, direction):
        parts = _named(peers.compiled(ours), *_MIXER, more=("state",))
        found.append(Rival("compiled conv, gate products, our gated_lru, GELU gate", parts))
    return found


def _spatial_attention(case: Any, at: Setting, direction: str, backend: str) -> list[Rival]:
    return [
        Rival(f"SDPA {name}", peers.multiplied_as_ours(_named(run, "qkv"), case.dtype, at))
        for name in _SDPA[at.device]
        for run in (gpu_peers.attention(name, case.heads, case.scale),)
    ]


_OTHERS: dict[str, Callable[[Any, Setting, str, str], list[Rival]]] = {
    "gated_lru": _gated_lru,
    "linear_scan": _linear_scan,
    "recurrent_mixer": _recurrent_mixer,
    "spatial_attention": _spatial_attention,
}


def _compiles(at: Setting, case: Any, direction: str) -> bool:
    """Whether compiling is worth the wait: on a CPU not in float16 too, which bfloat16 stands for."""
    is_complex, frames = getattr(case, "complex", case.dtype.is_complex), getattr(case, "frames", 1)
    if at.quick or at.tiny or frames > _COMPILED:
        return False
    if at.device == "cuda":
        return not is_complex
    if case.dtype == torch.float32:
        return frames <= _COMPILED_ALSO or (direction == "forward" and not is_complex)
    return case.dtype == torch.bfloat16 and not is_complex and frames <= _COMPILED_ALSO


def _named(function: Function, *names: str, more: tuple[str, ...] = ()) -> Function:
    """function of positions as one of names; ``more`` stay names, other arguments are dropped."""

    def run(**arguments: Any) -> Tensor:
        return function(*(arguments[name] for name in names), **{name: arguments[name] for name in more})

    return run


def _positional(function: Function, *names: str) -> Function:
    return lambda *values: function(**dict(zip(names, values)))


def _as_it_is(function: Function) -> Function:
    return function


def _real(function: Function) -> Function:
    """Without a_imag, which is None."""
    return lambda *tensors: function(*tensors[:4])


def _widened_lanes_first(t: Tensor) -> Tensor:
    return peers.lanes_first(t if t.is_complex() else t.float())
