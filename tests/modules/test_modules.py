"""The layers one by one: formulas, chunks, resets, gradients, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels.modules import (
    BlockDiagonalLinear,
    CausalConv1d,
    GatedLRU,
    RecurrentBlock,
    RMSNorm,
    SpatialBlock,
)


def disturbed(module: nn.Module) -> nn.Module:
    """Every parameter moved off its initial value, so that zeros and ones hide nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def rand(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_rms_norm_formula() -> None:
    norm, x = disturbed(RMSNorm(6)), rand(2, 3, 6)
    expected = x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * (1 + norm.scale)
    close(norm(x), expected)
    small = 1e-4 * x  # here the eps inside the root counts
    close(norm(small), small * (small.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * (1 + norm.scale))
    assert (RMSNorm(6).scale == 0).all()


def test_block_diagonal_linear_is_a_block_diagonal_matrix() -> None:
    layer, x = disturbed(BlockDiagonalLinear(12, 6, 3)), rand(2, 4, 5, 12)
    close(layer(x), x @ torch.block_diag(*layer.weight) + layer.bias.flatten())


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("lanes", [(), (3,), (2, 3)])
def test_causal_conv_is_conv1d_with_left_padding(taps: int, lanes: tuple[int, ...]) -> None:
    layer, x = disturbed(CausalConv1d(5, taps)), rand(2, 6, *lanes, 5)
    y, tail = layer(x)
    columns = x.flatten(2, -2).permute(0, 2, 3, 1).reshape(-1, 5, 6) if lanes else x.transpose(1, 2)
    expected = F.conv1d(F.pad(columns, (taps - 1, 0)), layer.weight.T.unsqueeze(1), layer.bias, groups=5)
    if lanes:
        expected = expected.reshape(2, -1, 5, 6).permute(0, 3, 1, 2).reshape(x.shape)
    else:
        expected = expected.transpose(1, 2)
    close(y, expected)
    assert torch.equal(tail, x[:, 6 - (taps - 1) :])


def test_causal_conv_in_chunks_and_with_resets() -> None:
    layer, x = disturbed(CausalConv1d(5, 4)), rand(2, 7, 3, 5)
    whole, last = layer(x)
    first, tail = layer(x[:, :2])
    second, tail = layer(x[:, 2:3], tail=tail)
    third, tail = layer(x[:, 3:], tail=tail)
    close(torch.cat([first, second, third], dim=1), whole)
    assert torch.equal(tail, last)
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 5] = True
    cut, cut_tail = layer(x, reset=reset)
    close(cut[0, :5], whole[0, :5])
    close(cut[0, 5:], layer(x[:1, 5:])[0][0])
    close(cut[1], whole[1])
    assert not cut_tail[0, 0].any() and torch.equal(cut_tail[0, 1:], x[0, 5:])


@pytest.mark.parametrize("complex_lru", [False, True])
def test_recurrent_block_is_its_parts(complex_lru: bool, backend: str) -> None:
    """The fused mixer against CausalConv1d and GatedLRU, which hold its parameters."""
    block = disturbed(RecurrentBlock(6, 12, 3, conv1d_width=3, complex_lru=complex_lru))
    x, reset = rand(2, 5, 4, 6), torch.zeros(2, 5, dtype=torch.bool)
    reset[:, 0], reset[1, 3] = True, True
    out, (h, tail) = block(x, reset=reset)
    y = block.norm(x)
    z, expected_tail = block.conv_1d(block.linear_x(y), reset=reset)
    z, expected_h = block.rg_lru(z, reset=reset)
    close(out, x + block.linear_out(z * F.gelu(block.linear_y(y), approximate="tanh")))
    close(h, expected_h)
    close(tail, expected_tail)


def test_recurrent_block_starts_by_itself(backend: str) -> None:
    block, x = disturbed(RecurrentBlock(6, 12, 3)), rand(2, 3, 4, 6)
    reset = torch.tensor([[True, False, False]] * 2)
    close(block(x)[0], block(x, reset=reset)[0])
    close(block(x)[0], block(x, state=block.init_state(2, 4), reset=reset)[0])
    h, tail = block.init_state(2, 4)
    assert h.shape == (2, 4, 12) and tail.shape == (2, 3, 4, 12) and h.dtype == torch.float64


def test_spatial_block_is_a_vit_block(backend: str) -> None:
    """Against nn.MultiheadAttention on the same packed weights."""
    block, x = disturbed(SpatialBlock(8, 12, 2)), rand(2, 3, 5, 8)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    attention.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    frames = x.flatten(0, 1)
    y = F.layer_norm(frames, (8,), block.norm_1.weight, block.norm_1.bias, 1e-6)
    y = frames + attention(y, y, y, need_weights=False)[0]
    hidden = F.layer_norm(y, (8,), block.norm_2.weight, block.norm_2.bias, 1e-6)
    hidden = F.gelu(block.mlp_in(hidden), approximate="tanh")
    close(block(x), (y + block.mlp_out(hidden)).unflatten(0, (2, 3)))


def test_frames_do_not_see_each_other_in_space_nor_tokens_in_time(backend: str) -> None:
    x = rand(1, 4, 3, 6)
    changed = x.clone()
    changed[0, 2, 1] += rand(6, seed=3)
    space = disturbed(SpatialBlock(6, 8, 2))
    difference = (space(changed) - space(x)).abs().amax(dim=-1)[0]
    assert (difference[2] > 0).all() and not difference[[0, 1, 3]].any()
    time = disturbed(RecurrentBlock(6, 6, 2))
    difference = (time(changed)[0] - time(x)[0]).abs().amax(dim=-1)[0]
    assert (difference[2:, 1] > 0).all()
    assert not difference[:2].any() and not difference[:, [0, 2]].any()


@pytest.mark.parametrize(
    "module",
    [RMSNorm(4), CausalConv1d(4, 3), GatedLRU(4, 2), GatedLRU(4, 1, complex_lru=True), SpatialBlock(4, 6, 2)],
    ids=lambda module: type(module).__name__,
)
def test_gradients(module: nn.Module, backend: str) -> None:
    module = disturbed(module)
    x = rand(2, 3, 2, 4).requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        out = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return out if isinstance(out, tuple) else (out,)

    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize("complex_lru", [False, True])
def test_recurrent_block_gradients_through_its_state(complex_lru: bool, backend: str) -> None:
    block = disturbed(RecurrentBlock(3, 4, 2, conv1d_width=3, complex_lru=complex_lru))
    x = rand(1, 2, 2, 3).requires_grad_()
    h, tail = (rand(*part.shape, seed=2).requires_grad_() for part in block.init_state(1, 2))

    def run(x: Tensor, h: Tensor, tail: Tensor) -> tuple[Tensor, ...]:
        out, state = block(x, state=(h, tail))
        return out, *state

    assert torch.autograd.gradcheck(run, (x, h, tail))


X = torch.zeros(2, 3, 4, 12)
RESET = torch.zeros(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("module", "arguments", "error", "message"),
    [
        (GatedLRU(12, 2), {"x": [1.0]}, TypeError, "GatedLRU: x must be a torch.Tensor, got list"),
        (GatedLRU(12, 2), {"x": X[0, 0]}, ValueError, "GatedLRU: x must have at least 3 dimensions"),
        (
            GatedLRU(12, 2),
            {"x": X[..., :6]},
            ValueError,
            r"x must have shape \(2, 3, 4, 12\), got \(2, 3, 4, 6\)",
        ),
        (GatedLRU(12, 2), {"x": X.long()}, TypeError, "x must have dtype .* got int64"),
        (GatedLRU(12, 2), {"x": X.to("meta")}, ValueError, "x must be on device cpu, got meta"),
        (GatedLRU(12, 2), {"x": X, "h0": X[:1, 0]}, ValueError, r"h0 must have shape \(2, 4, 12\)"),
        (
            GatedLRU(12, 2),
            {"x": X, "h0": X[:, 0].double()},
            TypeError,
            "h0 must have dtype float32, got float64",
        ),
        (GatedLRU(12, 2), {"x": X, "reset": RESET[:, :2]}, ValueError, r"reset must have shape \(2, 3\)"),
        (
            GatedLRU(12, 2),
            {"x": X, "reset": RESET.long()},
            TypeError,
            "reset must have dtype bool, got int64",
        ),
        (GatedLRU(12, 2), {"x": X[:, :0]}, ValueError, "GatedLRU: x must have at least one frame, got"),
        (CausalConv1d(12), {"x": X[:, :0]}, ValueError, r"CausalConv1d: x must have at least one frame, got"),
        (CausalConv1d(12), {"x": X[..., :6]}, ValueError, r"CausalConv1d: x must have shape \(2, 3, 4, 12\)"),
        (CausalConv1d(12), {"x": X, "tail": X[:, :2]}, ValueError, r"tail must have shape \(2, 3, 4, 12\)"),
        (CausalConv1d(12), {"x": X, "reset": RESET.T}, ValueError, r"reset must have shape \(2, 3\)"),
        (
            RecurrentBlock(12, 8, 2),
            {"x": X[:, :0]},
            ValueError,
            "RecurrentBlock: x must have at least one frame",
        ),
        (RecurrentBlock(12, 8, 2), {"x": X[..., :6]}, ValueError, r"RecurrentBlock: x must have shape"),
        (
            RecurrentBlock(12, 8, 2),
            {"x": X, "state": X},
            TypeError,
            r"state must be a pair \(h, tail\), got Tensor",
        ),
        (
            RecurrentBlock(12, 8, 2),
            {"x": X, "state": RecurrentBlock(12, 8, 2).init_state(1, 4)},
            ValueError,
            r"state\[0\] must have shape \(2, 4, 8\), got \(1, 4, 8\)",
        ),
        (
            RecurrentBlock(12, 8, 2),
            {"x": X, "state": RecurrentBlock(12, 8, 2, conv1d_width=2).init_state(2, 4)},
            ValueError,
            r"state\[1\] must have shape \(2, 3, 4, 8\), got \(2, 1, 4, 8\)",
        ),
        (SpatialBlock(12, 8, 2), {"x": X[..., :6]}, ValueError, r"SpatialBlock: x must have shape"),
        (SpatialBlock(12, 8, 2), {"x": X.to(torch.int32)}, TypeError, "SpatialBlock: x must have dtype"),
    ],
)
def test_arguments_that_do_not_fit(
    module: nn.Module, arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        module(**arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GatedLRU(10, 4), "width must be a multiple of num_heads = 4, got 10"),
        (
            lambda: GatedLRU(12, 4, complex_lru=True),
            r"width must be a multiple of 2 \* num_heads = 8, got 12",
        ),
        (lambda: GatedLRU(12, 4, min_radius=1.0), "min_radius must lie between 0 and 0.999, got 1.0"),
        (lambda: GatedLRU(12, 4, normalizer="l2"), "normalizer must be one of sqrt, convex, got 'l2'"),
        (lambda: BlockDiagonalLinear(10, 10, 3), "width must be a multiple of num_heads = 3, got 10"),
        (lambda: BlockDiagonalLinear(9, 10, 3), "out_width must be a multiple of num_heads = 3, got 10"),
        (lambda: BlockDiagonalLinear(9, 9, 0), "num_heads must be at least 1, got 0"),
        (lambda: CausalConv1d(4, 0), "kernel_size must be at least 1, got 0"),
        (lambda: SpatialBlock(10, 4, 3), "width must be a multiple of num_heads = 3, got 10"),
        (lambda: SpatialBlock(12, 4, 3, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_do_not_fit(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_sizes_that_are_no_integers() -> None:
    with pytest.raises(TypeError, match="CausalConv1d: kernel_size must be an int, got float"):
        CausalConv1d(12, 2.5)
    with pytest.raises(TypeError, match="BlockDiagonalLinear: num_heads must be an int, got float"):
        BlockDiagonalLinear(12, 12, 2.0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
def test_gated_lru_under_autocast(dtype: torch.dtype, backend: str) -> None:
    """x becomes what the gates become."""
    layer, x = GatedLRU(12, 2), rand(2, 3, 12).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(x)
    expected = torch.float64 if dtype == torch.float64 else torch.bfloat16
    assert y.dtype == expected
    assert torch.equal(y, layer(x.to(expected))[0])
