"""Triton backend: allocates, chooses tiles and launches its kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.ops._triton import (
    Variant,
    interpreting,
    launch,
    multiprocessors,
    on_device_of,
    recording,
    strides,
    variant_of,
)
from trecvit_kernels.ops._triton_kernels import sum_rows
from trecvit_kernels.ops._views import dense, readable
from trecvit_kernels.ops.recurrent_mixer._triton_kernels import forward_kernel
from trecvit_kernels.ops.recurrent_mixer._triton_recurrence import recurrence_kernel
from trecvit_kernels.ops.recurrent_mixer._triton_weights import weights_kernel
from trecvit_kernels.ops.recurrent_mixer.op import frames_per_state


class Tile(NamedTuple):
    """tubes: of a program; frames: of a step; gates: channels of a program; warps."""

    tubes: int
    frames: int
    gates: int
    warps: int


def forward_tile(dtype: torch.dtype, width: int, gates: int, frames: int, tubes: int) -> Tile:
    """Launch parameters, from registers and spills of ahead-of-time builds (docs/kernels.md); not measured."""
    width, gates = power_of_two(width), power_of_two(gates)
    if interpreting():
        return Tile(min(power_of_two(tubes), 1024), 4 if frames > 1 else 1, gates, 1)
    if dtype.itemsize > 2:  # products on ordinary units: few rows, as their operands fill registers
        return Tile(8, 2 if frames > 1 else 1, min(gates, 64), 8)
    if frames == 1:
        return Tile(16, 1, min(gates, 64), 4)
    if frames <= 4:
        return Tile(16, 4, min(gates, 64), 4)
    return Tile(8, 8, min(gates, 128 if width <= 128 else 64), 8 if width > 64 else 4)


def recurrence_tile(dtype: torch.dtype, width: int, gates: int, frames: int, tubes: int) -> Tile:
    """For the backward pass through the recurrence. A step is what lies between two saved states."""
    is_complex = gates < width
    width, gates = power_of_two(width), power_of_two(gates)
    step = min(frames_per_state("triton", is_complex), 1 << (frames - 1).bit_length())
    if interpreting():
        return Tile(min(power_of_two(tubes), 1024), step, gates, 1)
    if dtype.itemsize > 2:
        return Tile(max(1, 16 // step), step, min(gates, 16 if is_complex else 64), 8)
    return Tile(32 // step, step, min(gates, 128 if width <= 128 else 64), 8 if width > 64 else 4)


class WeightsTile(NamedTuple):
    """tubes: of a program at a time; frames: of a step; channels: of a program; warps."""

    tubes: int
    frames: int
    channels: int
    warps: int


def weights_tile(dtype: torch.dtype, width: int, gates: int, frames: int, tubes: int) -> WeightsTile:
    """For the backward pass through the gates' weights."""
    width, gates = power_of_two(width), power_of_two(gates)
    step = min(8, 1 << (frames - 1).bit_length())
    if interpreting():
        return WeightsTile(min(power_of_two(tubes), 1024), step, width, 1)
    channels = min(width, max(16, 64 * 128 // gates), 64)
    if dtype.itemsize > 2:
        return WeightsTile(max(1, 16 // step), step, min(channels, 32), 8)
    return WeightsTile((64 if gates <= 128 else 32) // step, step, channels, 8)


_PROGRAMS_PER_MULTIPROCESSOR = 2
_FRAMES_AHEAD = 2  # by which the backward pass loads v and dz early


def programs_for(tiles: int, blocks: int, processors: int) -> int:
    """Programs that share the tiles of tubes, per block of channels: enough to fill the GPU, few enough that their
    sums of weight gradients cost little, and all with about as many tiles."""
    wanted = max(1, _PROGRAMS_PER_MULTIPROCESSOR * processors // blocks)
    return -(-tiles // -(-tiles // min(wanted, tiles)))


def power_of_two(size: int) -> int:
    """The power of two that covers ``size``, at least 16, as tensor cores need."""
    return max(16, 1 << (size - 1).bit_length())


class _Call:
    """The launch arguments that the kernels of a call share."""

    def __init__(
        self,
        u: Tensor,
        v: Tensor,
        parameters: tuple[Tensor, ...],
        a_imag: Tensor | None,
        h0: Tensor | None,
        tail: Tensor | None,
        reset: Tensor | None,
        starts: bool,
    ) -> None:
        self.dtype = state_dtype(u.dtype)
        conv_weight, conv_bias, gate_x_weight, gate_x_bias, gate_a_weight, gate_a_bias, a_param = (
            p.contiguous() for p in parameters
        )
        u, v = readable(u), readable(v)
        tail = None if tail is None or tail.numel() == 0 else readable(tail)
        self.heads, self.width, self.gates = gate_x_weight.shape
        self.frames, self.channels = u.shape[1], u.shape[-1]
        self.tokens = u[0, 0].numel() // self.channels
        self.tubes = u.shape[0] * self.tokens
        self.inputs: dict[str, Any] = {
            "u_ptr": u,
            "conv_weight_ptr": conv_weight,
            "conv_bias_ptr": conv_bias,
            "gate_x_weight_ptr": gate_x_weight,
            "gate_x_bias_ptr": gate_x_bias,
            "gate_a_weight_ptr": gate_a_weight,
            "gate_a_bias_ptr": gate_a_bias,
            "a_param_ptr": a_param,
            "a_imag_ptr": None if a_imag is None else a_imag.contiguous(),
            "v_ptr": v,
            "h0_ptr": dense(h0, self.dtype),
            "tail_ptr": tail,
            "reset_ptr": dense(reset, torch.bool),
            **_strides_of(u=u, v=v, tail=u if tail is None else tail),
            "tubes": self.tubes,
            "tokens": self.tokens,
            "frames": self.frames,
            "channels": self.channels,
            "WIDTH": self.width,
            "GATES": self.gates,
            "TAPS": conv_weight.shape[0],
            "COMPLEX": a_imag is not None,
            "STARTS": starts,
        }

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """What the tables of tiles go by, besides the dtype."""
        return self.width, self.gates, self.frames, self.tubes

    def launch(self, kernel: Any, grid: tuple[int, ...], frames: int, warps: int, **arguments: Any) -> None:
        """frames: of a step. Of the shared arguments those that the kernel has."""
        arguments |= {
            "EVEN": self.frames % frames == 0,
            "WIDE": _needs_wide_offsets(arguments | self.inputs),
            "FRAMES": frames,
        }
        shared = {name: value for name, value in self.inputs.items() if name in kernel.arg_names}
        launch(kernel, grid, shared | arguments, num_warps=warps)


def _needs_wide_offsets(arguments: dict[str, Any]) -> bool:
    """Whether an element lies 2^31 elements or more behind its tensor's first (with room for padding)."""
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    furthest = (
        sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) for x in tensors
    )
    return max(furthest) >= 2**31 - 2**20


def _strides_of(**tensors: Tensor) -> dict[str, int]:
    """Arguments u_stride_b, u_stride_t, u_stride_n, ..."""
    return {
        f"{name}_stride_{dim}": stride
        for name, tensor in tensors.items()
        for dim, stride in zip("btn", strides(tensor), strict=True)
    }


def recurrent_mixer_forward(
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    tail: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, h_last and the saved states (B, saved, *lanes, C)."""
    z = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    h_last = torch.empty((u.shape[0], *u.shape[2:]), dtype=state_dtype(u.dtype), device=u.device)
    spacing = frames_per_state("triton", a_imag is not None)
    saved = _schedule.saved_states(u.shape[1], spacing) if save_states else 0
    states = torch.empty((u.shape[0], saved, *u.shape[2:]), dtype=h_last.dtype, device=u.device)
    if z.numel() == 0:
        return z, h_last, states
    parameters = (conv_weight, conv_bias, gate_x_weight, gate_x_bias, gate_a_weight, gate_a_bias, a_param)
    call = _Call(u, v, parameters, a_imag, h0, tail, reset, starts)
    with on_device_of(u):
        tile = forward_tile(u.dtype, *call.sizes)
        call.launch(
            forward_kernel,
            (-(-call.tubes // tile.tubes), call.heads, -(-call.gates // tile.gates)),
            tile.frames,
            tile.warps,
            z_ptr=z,
            h_last_ptr=h_last,
            states_ptr=states if saved else None,
            saved=saved,
            FRAMES_PER_STATE=spacing,
            BLOCK_N=tile.tubes,
            BLOCK_K=power_of_two(call.width),
            BLOCK_G=tile.gates,
        )
    return z, h_last, states


def recurrent_mixer_backward(
    dz: Tensor,
    dh_last: Tensor,
    u: Tensor,
    v: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    gate_x_weight: Tensor,
    gate_x_bias: Tensor,
    gate_a_weight: Tensor,
    gate_a_bias: Tensor,
    a_param: Tensor,
    a_imag: Tensor | None,
    h0: Tensor | None,
    tail: Tensor | None,
    reset: Tensor | None,
    starts: bool,
    states: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of u, v, the parameters (state dtype; a_imag's empty if real), h0 and tail."""
    dtype, device = state_dtype(u.dtype), u.device

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    taps = conv_weight.shape[0]
    du, dv, dx = (empty(*u.shape, dtype=u.dtype) for _ in range(3))
    dh0 = empty(*dh_last.shape)
    dtail = empty(u.shape[0], taps - 1, *u.shape[2:], dtype=u.dtype)
    parameters = (conv_weight, conv_bias, gate_x_weight, gate_x_bias, gate_a_weight, gate_a_bias, a_param)
    gradients = tuple(empty(*p.shape) for p in parameters)
    da_imag = empty(*((0,) if a_imag is None else a_imag.shape))
    if u.numel() == 0:
        for gradient in (*gradients, da_imag):
            gradient.zero_()
        return du, dv, *gradients, da_imag, dh0, dtail
    dconv_weight, dconv_bias, dweight_x, dbias_x, dweight_a, dbias_a, da_param = gradients
    call = _Call(u, v, parameters, a_imag, h0, tail, reset, starts)
    dz = readable(dz)
    dgate_x, dgate_a = (empty(*u.shape[:-1], a_param.shape[0], dtype=u.dtype) for _ in range(2))
    # -8 log2(e) softplus(a_param), so that |a| = 2^(decay r)
    decay = torch.logaddexp(a_param.double(), a_param.new_zeros((), dtype=torch.float64))
    scratch = {"dx_ptr": dx, "dgate_x_ptr": dgate_x, "dgate_a_ptr": dgate_a}
    with on_device_of(u):
        tile = recurrence_tile(u.dtype, *call.sizes)
        tiles = -(-call.tubes // tile.tubes)
        sums = empty(3 if a_imag is None else 4, tiles, a_param.shape[0])
        call.launch(
            recurrence_kernel,
            (tiles, call.heads, -(-call.gates // tile.gates)),
            tile.frames,
            tile.warps,
            **scratch,
            **_strides_of(dz=dz),
            dz_ptr=dz,
            dh_last_ptr=dh_last.contiguous(),
            decay_ptr=(decay * (-8.0 * math.log2(math.e))).to(dtype),
            states_ptr=states,
            dv_ptr=dv,
            dh0_ptr=dh0,
            sums_ptr=sums,
            saved=states.shape[1],
            AHEAD=min(_FRAMES_AHEAD, tile.frames),
            BLOCK_N=tile.tubes,
            BLOCK_K=power_of_two(call.width),
            BLOCK_G=tile.gates,
        )
        sum_rows(sums, (da_param, dbias_x, dbias_a, *(() if a_imag is None else (da_imag,))), a_param)

        block = weights_tile(u.dtype, *call.sizes)
        tiles, blocks = -(-call.tubes // block.tubes), -(-call.width // block.channels)
        programs = programs_for(tiles, call.heads * blocks, multiprocessors(u))
        conv_sums = empty(1, programs, taps * call.channels)
        bias_sums = empty(1, programs, call.channels)
        weight_sums = empty(2, programs, dweight_x.numel())
        call.launch(
            weights_kernel,
            (programs, call.heads, blocks),
            block.frames,
            block.warps,
            **scratch,
            du_ptr=du,
            dtail_ptr=dtail,
            conv_sums_ptr=conv_sums,
            bias_sums_ptr=bias_sums,
            weight_sums_ptr=weight_sums,
            tiles=tiles,
            BLOCK_N=block.tubes,
            BLOCK_K=block.channels,
            BLOCK_G=power_of_two(call.gates),
        )
        for partial, outs in (
            (conv_sums, (dconv_weight,)),
            (bias_sums, (dconv_bias,)),
            (weight_sums, (dweight_x, dweight_a)),
        ):
            sum_rows(partial, [out.view(-1) for out in outs], None)
    return du, dv, *gradients, da_imag, dh0, dtail


class _Setting(NamedTuple):
    """A call whose kernels are built ahead of time."""

    name: str
    dtype: torch.dtype
    width: int
    complex: bool = False
    frames: int = 32
    continues: bool = False  # with a state, resets, and a number of frames that no step divides


_BF16, _F32 = torch.bfloat16, torch.float32
_SETTINGS = (
    _Setting("bfloat16-real-64", _BF16, 64),
    _Setting("bfloat16-real-64-continued", _BF16, 64, frames=35, continues=True),
    _Setting("bfloat16-real-64-step", _BF16, 64, frames=1, continues=True),
    _Setting("bfloat16-real-128", _BF16, 128),
    _Setting("bfloat16-real-256", _BF16, 256),
    _Setting("bfloat16-complex-128", _BF16, 128, complex=True),
    _Setting("float32-real-64", _F32, 64),
    _Setting("float32-complex-128", _F32, 128, complex=True),
)


def variants(arch: str) -> Iterator[Variant]:
    """The kernels that the tables of tiles select on an architecture, for the head widths of the models and the widest
    there is; a step of one frame forward only."""
    for setting in _SETTINGS:
        with recording(arch) as launches:
            _record(setting)
        for recorded in launches:
            if recorded.kernel in (forward_kernel, recurrence_kernel, weights_kernel):
                kernel = recorded.kernel.__name__.removesuffix("_kernel")
                yield variant_of(f"{kernel}-{setting.name}", recorded)


def _record(setting: _Setting) -> None:
    """Make the calls of a setting on meta tensors."""
    heads, width, taps = 2, setting.width, 4
    channels, gates = heads * width, width // 2 if setting.complex else width
    dtype, state = setting.dtype, state_dtype(setting.dtype)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    u = empty(2, setting.frames, 48, channels)
    weight, bias, h = empty(heads, width, gates), empty(heads, gates), empty(2, 48, channels, dtype=state)
    inputs = (
        u,
        u,
        empty(taps, channels),
        empty(channels),
        weight,
        bias,
        weight,
        bias,
        empty(heads * gates),
        empty(heads * gates) if setting.complex else None,
        h if setting.continues else None,
        empty(2, taps - 1, 48, channels) if setting.continues else None,
        empty(2, setting.frames, dtype=torch.bool) if setting.continues else None,
        not setting.continues,
    )
    *_, states = recurrent_mixer_forward(*inputs, setting.frames > 1)
    if setting.frames > 1:
        recurrent_mixer_backward(u, h, *inputs, states)
