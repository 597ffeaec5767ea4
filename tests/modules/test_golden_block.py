"""RecurrentBlock against DeepMind's ResidualBlock (golden/trecvit/recurrent_block*.npz)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trecvit_kernels.modules import RecurrentBlock

OUTPUT, GRADIENT = 1e-5, 2e-5  # golden/trecvit/README.md: absolute; relative to the largest element
_BLOCK = "recurrent_block"


def _names(complex_lru: bool) -> dict[str, str]:
    names = {"norm.scale": "temporal_pre_norm/scale"}
    for linear in ("linear_x", "linear_y", "linear_out"):
        names[f"{linear}.weight"] = f"{_BLOCK}/{linear}/kernel"
        names[f"{linear}.bias"] = f"{_BLOCK}/{linear}/bias"
    names |= {"conv_1d.weight": f"{_BLOCK}/conv_1d/w", "conv_1d.bias": f"{_BLOCK}/conv_1d/b"}
    for gate in ("input_gate", "a_gate"):
        names[f"rg_lru.{gate}.weight"] = f"{_BLOCK}/rg_lru/{gate}/w"
        names[f"rg_lru.{gate}.bias"] = f"{_BLOCK}/rg_lru/{gate}/b"
    names["rg_lru.a_param"] = f"{_BLOCK}/rg_lru/a_param"
    if complex_lru:
        names["rg_lru.a_imag_param"] = f"{_BLOCK}/rg_lru/a_imag_param"
    return names


class Golden:
    """One file and its block."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        complex_lru = "params/recurrent_block/rg_lru/a_imag_param" in self.arrays
        self.x = self["x"].requires_grad_()
        self.block = RecurrentBlock(48, 96, 4, conv1d_width=4, complex_lru=complex_lru)
        self.names = _names(complex_lru)
        state = {
            name: _transpose(official, self[f"params/{official}"]) for name, official in self.names.items()
        }
        self.block.load_state_dict(state, strict=True)

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name].clone()


def _transpose(official: str, tensor: Tensor) -> Tensor:
    return tensor.T if official.endswith("/kernel") else tensor


@pytest.fixture(params=["recurrent_block", "recurrent_block_complex"])
def case(request: pytest.FixtureRequest, golden: Path) -> Golden:
    return Golden(golden / "trecvit" / f"{request.param}.npz")


def error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    return (got - expected).abs().max().item()


@pytest.mark.parametrize("group", ["full", "segments"])
def test_whole_sequence(case: Golden, group: str, backend: str) -> None:
    reset = case[f"{group}/segment_pos"] == 0
    y, (h, tail) = case.block(case.x, reset=reset)
    assert error(y, case[f"{group}/y"]) <= OUTPUT
    assert error(h, case[f"{group}/cache_rg_lru_state"]) <= OUTPUT
    expected_tail = case[f"{group}/cache_conv1d_state"]
    # The official cache holds the last frames as they came; ours zeroes those before the last reset, which no
    # later frame may read in either.
    since = (reset.flip(1).cumsum(1) - reset.flip(1).long()).flip(1)[:, -3:] == 0
    assert error(tail, expected_tail * since[..., None]) <= OUTPUT

    # The zeroed frames still count in the golden loss: add their term from linear_x, so that gradients agree.
    loss = (y * case["g1"]).sum() + (h * case["g2"]).sum()
    u = case.block.linear_x(case.block.norm(case.x))[:, -3:]
    (loss + (u * case["g3"]).sum()).backward()
    parameters = dict(case.block.named_parameters())
    gradients = {
        f"params/{official}": _transpose(official, parameters[name].grad)
        for name, official in case.names.items()
    }
    gradients["x"] = case.x.grad
    wanted = {
        name.removeprefix(f"{group}/grad_") for name in case.arrays if name.startswith(f"{group}/grad_")
    }
    assert set(gradients) == wanted
    for name, gradient in gradients.items():
        expected = case[f"{group}/grad_{name}"]
        assert error(gradient, expected) <= GRADIENT * expected.abs().max(), name


def test_gradient_through_both_parts_of_the_state(case: Golden, backend: str) -> None:
    """The golden loss itself, without the term above: in `full` no frame of the tail is zeroed."""
    y, (h, tail) = case.block(case.x)
    ((y * case["g1"]).sum() + (h * case["g2"]).sum() + (tail * case["g3"]).sum()).backward()
    assert error(y, case["full/y"]) <= OUTPUT and error(tail, case["full/cache_conv1d_state"]) <= OUTPUT
    for name, gradient in (
        ("grad_x", case.x.grad),
        ("grad_params/recurrent_block/linear_x/kernel", case.block.linear_x.weight.grad.T),
    ):
        assert error(gradient, case[f"full/{name}"]) <= GRADIENT * case[f"full/{name}"].abs().max()


@pytest.mark.parametrize("frames", [1, 2])
def test_fewer_frames_than_taps(case: Golden, frames: int, backend: str) -> None:
    y, (h, tail) = case.block(case.x[:, :frames])
    assert error(y, case[f"short{frames}/y"]) <= OUTPUT
    assert error(h, case[f"short{frames}/cache_rg_lru_state"]) <= OUTPUT
    assert error(tail, case[f"short{frames}/cache_conv1d_state"]) <= OUTPUT


def test_decode_frame_by_frame(case: Golden, backend: str) -> None:
    state = None
    for t in range(case.x.shape[1]):
        y, state = case.block(case.x[:, t : t + 1], state=state)
        assert error(y, case["decode/y"][:, t : t + 1]) <= OUTPUT
        assert error(y, case["full/y"][:, t : t + 1]) <= OUTPUT
        assert error(state[0], case["decode/rg_lru_state"][t]) <= OUTPUT
        assert error(state[1], case["decode/conv1d_state"][t]) <= OUTPUT


def test_decode_from_a_zero_state_with_a_reset(case: Golden, backend: str) -> None:
    """The official way to start: an empty cache and segment_pos 0."""
    state = case.block.init_state(case.x.shape[0])
    start = torch.ones(case.x.shape[0], 1, dtype=torch.bool)
    y, state = case.block(case.x[:, :1], state=state, reset=start)
    assert error(y, case["decode/y"][:, :1]) <= OUTPUT
    assert error(state[0], case["decode/rg_lru_state"][0]) <= OUTPUT


def test_continue_after_a_prompt(case: Golden, backend: str) -> None:
    length = int(case["prompt/len"])
    _, state = case.block(case.x[:, :length])
    assert error(state[0], case["prompt/rg_lru_state"]) <= OUTPUT
    assert error(state[1], case["prompt/conv1d_state"]) <= OUTPUT
    y, state = case.block(case.x[:, length:], state=state)
    assert error(y, case["full/y"][:, length:]) <= OUTPUT
    assert error(state[0], case["full/cache_rg_lru_state"]) <= OUTPUT
    assert error(state[1], case["full/cache_conv1d_state"]) <= OUTPUT


def test_tokens_are_independent_lanes(case: Golden, backend: str) -> None:
    """(B, T, N, D) with the batch moved into N gives the same as (B, T, D)."""
    x = case.x.detach().transpose(0, 1).unsqueeze(0).contiguous()  # (1, T, B, D)
    y, (h, tail) = case.block(x)
    assert error(y[0].transpose(0, 1), case["full/y"]) <= OUTPUT
    assert error(h[0], case["full/cache_rg_lru_state"]) <= OUTPUT
    assert error(tail[0].transpose(0, 1), case["full/cache_conv1d_state"]) <= OUTPUT


def test_complex_decode_is_not_the_official_quirk(golden: Path, backend: str) -> None:
    """quirk_native_decode_step/y lost imaginary parts: a target to miss."""
    case = Golden(golden / "trecvit" / "recurrent_block_complex.npz")
    length = int(case["prompt/len"])
    _, state = case.block(case.x[:, :length])
    y, _ = case.block(case.x[:, length : length + 1], state=state)
    assert error(y, case["full/y"][:, length : length + 1]) <= OUTPUT
    assert error(y, case["quirk_native_decode_step/y"]) > 0.1
