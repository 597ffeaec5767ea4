"""What the blocks keep for the backward pass, to the byte, and that making the rest again changes no number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trecvit_kernels import backends
from trecvit_kernels.modules import RecurrentBlock, SpatialBlock, norm, recurrent_block, spatial_block
from trecvit_kernels.modules.linear import Linear

pytestmark = pytest.mark.skipif(not backends.available()["native"].available, reason="native")

WIDTH, LRU, MLP, HEADS = 16, 24, 40, 2
B, T, N = 2, 20, 5
ROWS = B * T * N
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def block(kind: str, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    """Every parameter moved off its initial value, so that zeros and ones hide nothing."""
    torch.manual_seed(0)
    made: nn.Module
    if kind == "time":
        made = RecurrentBlock(WIDTH, LRU, HEADS, **settings)
    else:
        made = SpatialBlock(WIDTH, MLP, HEADS, **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.to(dtype)


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, T, N, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture
def keep_everything(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on nothing is made again."""

    def switch() -> None:
        for module in (norm, recurrent_block, spatial_block):
            monkeypatch.setattr(module, "worthwhile", lambda value: False)

    return switch


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct storages that autograd saves, parameters aside."""
    known = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}
    alive = []  # so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module(x.clone().requires_grad_())
    del result
    return sum(kept.values())


def run(module: nn.Module, x: Tensor, **arguments: object) -> list[Tensor]:
    """Output, gradient of x and of every parameter, for a loss that looks at all outputs."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    torch.manual_seed(2)  # dropout
    output = module(x, **arguments)
    y = output if isinstance(output, Tensor) else output[0]
    rest = () if isinstance(output, Tensor) else output[1]
    (y.float().sin().sum() + sum(part.float().square().sum() for part in rest)).backward()
    gradients = [p.grad for p in module.parameters()]
    assert all(gradient is not None for gradient in (x.grad, *gradients))
    return [y.detach(), x.grad, *gradients]


def same(one: list[Tensor], other: list[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(one, other, strict=True)):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), index


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_bytes_kept_by_a_recurrent_block(dtype: torch.dtype, keep_everything: Callable[[], None]) -> None:
    module, x, size = block("time", dtype), tokens(dtype), torch.empty(0, dtype=dtype).element_size()
    states = 4 * B * N * LRU  # one, float32
    stream, mixer_inputs = WIDTH, 2 * LRU
    assert kept_bytes(module, x) == size * ROWS * (stream + mixer_inputs) + states
    keep_everything()
    normed, mixer_output = WIDTH, LRU
    assert kept_bytes(module, x) == size * ROWS * (stream + mixer_inputs + normed + mixer_output) + states


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_bytes_kept_by_a_spatial_block(dtype: torch.dtype, keep_everything: Callable[[], None]) -> None:
    module, x, size = block("space", dtype), tokens(dtype), torch.empty(0, dtype=dtype).element_size()
    means_and_spreads = 2 * 2 * ROWS * size  # of two norms
    log_sum_exp = 4 * ROWS * HEADS  # float32
    stream, qkv, attended, hidden = 2 * WIDTH, 3 * WIDTH, WIDTH, MLP
    expected = size * ROWS * (stream + qkv + attended + hidden) + means_and_spreads + log_sum_exp
    assert kept_bytes(module, x) == expected
    keep_everything()
    assert kept_bytes(module, x) == expected + size * ROWS * (2 * WIDTH + MLP)


@pytest.mark.parametrize("kind", ("time", "space"))
def test_the_reference_backend_stays_plain_pytorch(kind: str, keep_everything: Callable[[], None]) -> None:
    module, x = block(kind), tokens()
    with backends.use("reference"):
        before = kept_bytes(module, x)
        keep_everything()
        assert kept_bytes(module, x) == before


@pytest.mark.parametrize("kind", ("time", "complex", "space", "dropout"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_number_changes(kind: str, dtype: torch.dtype, keep_everything: Callable[[], None]) -> None:
    settings = {"complex": {"complex_lru": True}, "dropout": {"dropout": 0.3}}.get(kind, {})
    module = block({"complex": "time", "dropout": "space"}.get(kind, kind), dtype, **settings)
    wide = torch.randn(B, N, T, 2 * WIDTH).to(dtype)
    inputs = [tokens(dtype), wide[..., ::2].transpose(1, 2), wide.transpose(1, 2)[..., WIDTH:]]
    made_again = [run(module, x) for x in inputs]
    keep_everything()
    for x, got in zip(inputs, made_again, strict=True):
        same(got, run(module, x))


@pytest.mark.parametrize("kind", ("time", "space"))
@pytest.mark.parametrize("cast", (torch.float32, torch.bfloat16), ids=str)
def test_no_number_changes_under_autocast(
    kind: str, cast: torch.dtype, keep_everything: Callable[[], None]
) -> None:
    """Also for activations in bfloat16 and parameters in float32; the backward pass runs outside of autocast."""
    module, x = _Autocast(block(kind)), tokens(cast)
    made_again, fewer_bytes = run(module, x), kept_bytes(module, x)
    keep_everything()
    same(made_again, run(module, x))
    assert fewer_bytes < 0.8 * kept_bytes(module, x)


class _Autocast(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.module(x)


def test_autocast_at_the_time_of_the_backward_pass_does_not_matter() -> None:
    module, x = block("space"), tokens()

    def gradients(enabled: bool) -> list[Tensor]:
        module.zero_grad()
        y = module(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y.sin().sum().backward()
        return [module.mlp_out.weight.grad, module.mlp_in.weight.grad, module.qkv.weight.grad]

    same(gradients(True), gradients(False))


def test_states_and_resets(keep_everything: Callable[[], None]) -> None:
    module, x = block("time"), tokens()
    h, tail = (torch.randn(part.shape) for part in module.init_state(B, N))
    reset = torch.rand(B, T) < 0.2
    calls: list[dict[str, object]] = [
        {"state": (h, tail)},
        {"state": (h, tail.bfloat16())},
        {"reset": reset},
        {"state": (h, tail), "reset": reset},
    ]
    made_again = [run(module, x, **arguments) for arguments in calls]
    keep_everything()
    for arguments, got in zip(calls, made_again, strict=True):
        same(got, run(module, x, **arguments))


@pytest.mark.parametrize("kind", ("time", "space"))
def test_the_backend_is_that_of_the_forward_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = block(kind), tokens()
    expected = run(module, x)
    x = x.requires_grad_()
    module.zero_grad()
    output = module(x)
    with backends.use("reference"):
        y, rest = (output, ()) if isinstance(output, Tensor) else output
        (y.sin().sum() + sum(part.square().sum() for part in rest)).backward()
    same([y.detach(), x.grad, *(p.grad for p in module.parameters())], expected)


@pytest.mark.parametrize("kind", ("time", "space"))
@pytest.mark.filterwarnings("ignore:.*falling back to the slow reference")
def test_on_pytorchs_ops_as_on_a_gpu(
    kind: str, monkeypatch: pytest.MonkeyPatch, keep_everything: Callable[[], None]
) -> None:
    """Without the native backend the same layers save as little: their norms, GELU and products are PyTorch's."""
    why_not = backends._why_not
    monkeypatch.setattr(
        backends,
        "_why_not",
        lambda name, device=None: "hidden" if name == "native" else why_not(name, device),
    )
    module, x = block(kind), tokens()
    made_again, fewer_bytes = run(module, x), kept_bytes(module, x)
    keep_everything()
    same(made_again, run(module, x))
    again = WIDTH if kind == "time" else 2 * WIDTH + MLP
    assert kept_bytes(module, x) - fewer_bytes == 4 * ROWS * again


class _Doubled(nn.Module):
    """A layer that somebody put in the place of a linear one: it takes one argument."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(2 * x)


def _hook_on_a_norm(module: nn.Module) -> None:
    module.get_submodule("norm" if hasattr(module, "norm") else "norm_2").register_forward_hook(
        lambda module, inputs, y: 2 * y
    )


def _hook_on_linear_layers(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, Linear):
            layer.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0], *inputs[1:]))


def _other_layers(module: nn.Module) -> None:
    for name, layer in list(module.named_children()):
        if isinstance(layer, Linear):
            setattr(module, name, _Doubled(layer))


@pytest.mark.parametrize("kind", ("time", "space"))
@pytest.mark.parametrize("change", (_hook_on_a_norm, _hook_on_linear_layers, _other_layers))
def test_hooks_and_other_layers(
    kind: str, change: Callable[[nn.Module], None], keep_everything: Callable[[], None]
) -> None:
    module, x = block(kind), tokens()
    before = run(module, x)
    change(module)
    made_again = run(module, x)
    assert not torch.equal(made_again[0], before[0])
    keep_everything()
    same(made_again, run(module, x))


@pytest.mark.parametrize("kind", ("time", "space"))
def test_frozen_parameters_and_a_second_backward_pass(kind: str, keep_everything: Callable[[], None]) -> None:
    module, x = block(kind), tokens()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("bias" in name)

    def gradients() -> list[Tensor]:
        module.zero_grad()
        output = module(x.clone().requires_grad_())
        y = output if isinstance(output, Tensor) else output[0]
        y.sin().sum().backward(retain_graph=True)
        y.sin().sum().backward()
        return [p.grad for p in module.parameters() if p.requires_grad]

    made_again = gradients()
    keep_everything()
    same(made_again, gradients())


@pytest.mark.parametrize("kind", ("time", "space"))
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_every_example_by_torch_func(kind: str) -> None:
    module, x = block(kind, torch.float64), tokens(torch.float64)[:, :3]
    names, values = zip(*module.named_parameters(), strict=True)

    def loss(values: tuple[Tensor, ...], x: Tensor) -> Tensor:
        output = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x[None],))
        return (output if isinstance(output, Tensor) else output[0]).sin().sum()

    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(tuple(v.detach() for v in values), x)
    for index in range(B):
        expected = torch.autograd.grad(loss(values, x[index]), values)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one[index], other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ("time", "space"))
def test_second_derivatives_are_refused_as_by_the_ops(kind: str) -> None:
    module, x = block(kind), tokens().requires_grad_()
    output = module(x)
    y = output if isinstance(output, Tensor) else output[0]
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"second derivatives are not implemented|derivative for .* is not impl"
    ):
        torch.autograd.grad(first.square().sum(), x)
