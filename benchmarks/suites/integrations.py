"""Our kernels inside other people's models (docs/integrations.md), after against before.

A layer around a bare scan; RecurrentGemma's RG-LRU with the width and heads of the 2B model; and a RecurrentGemma of
three layers, most of whose time is in parts that the patch leaves alone. Before anything is timed, outputs and
gradients are compared with the original in float64.
"""

from __future__ import annotations

import copy
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import trecvit_kernels as tk
from benchmarks.ops import peers
from benchmarks.rows import Comparison, Peer, within_reference
from benchmarks.setting import Setting
from benchmarks.timing import Budget, Work

_GROUP = "integrations"
_USUAL, _QUICK = Budget(1.5, 3, 60), Budget(0.3, 2, 10)
_ORIGINAL = "transformers' own"
# In 16 bits the original rounds its decays too, and its gradients suffer: there only the check can judge.
_EXACT, _ROUNDED = 1e-3, math.inf

Call = Callable[..., Tensor]  # (module, *inputs) -> result


@dataclass(frozen=True)
class Sizes:
    """Shapes (B, T, C), and those of the whole model: its width, heads, tokens of the prompt and cached steps."""

    scan: tuple[int, int, int] = (1, 1024, 1024)
    rg_lru: tuple[int, int, int] = (1, 512, 2560)
    heads: int = 10
    width: int = 1024
    model_heads: int = 4
    tokens: int = 256
    steps: int = 16


_TINY = Sizes((1, 16, 32), (1, 16, 32), 2, 32, 2, 8, 3)


@dataclass(frozen=True)
class Case:
    """The same work with our kernel and without it.

    Attributes:
        what: name of the rows; "{}" becomes the direction.
        call: what is timed, given a module and the inputs.
        ours: the module with our kernel.
        originals: the others by name; the first is what ours replaces, and the truth once it is in float64.
        inputs: floating tensors, whose gradients are wanted too.
        gradients: False: forward only.
        channels: how many of the inputs and the output are compared with float64; None: all.
        cut: a copy of a module, of these channels only.
        exact: makes a module compute in float64.
    """

    what: str
    call: Call
    ours: nn.Module
    originals: dict[str, nn.Module]
    inputs: tuple[Tensor, ...]
    gradients: bool = True
    channels: int | None = None
    cut: Callable[[nn.Module], nn.Module] = copy.deepcopy
    exact: Callable[[nn.Module], nn.Module] = nn.Module.double


def rows(at: Setting) -> Iterator[Comparison]:
    """The rows of the scan, then those that need transformers."""
    if at.floors_only:
        return
    sizes = _TINY if at.tiny else Sizes()
    for dtype in at.dtypes_or(torch.float32):
        yield from _rows_of(at, _scan_case(at, sizes, dtype))
    source = importlib.import_module("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    for dtype in at.dtypes_or(torch.float32, torch.bfloat16):
        yield from _rows_of(at, _rg_lru_case(at, sizes, dtype, source))
        yield from _rows_of(at, _decoding_case(at, sizes, dtype, source))
        if at.in_dtype(dtype).floors_only:
            continue  # without instructions for products in it, these are emulated in most of the model, on both sides
        for case in _model_cases(at, sizes, dtype, source):
            yield from _rows_of(at, case)


def _rows_of(at: Setting, case: Case) -> Iterator[Comparison]:
    check = functools.cache(functools.partial(_check, case))
    works: dict[str, Callable[[nn.Module], Work]] = {
        "forward": lambda module: _inference(case.call, module, case.inputs)
    }
    if case.gradients:
        dy = functools.cache(functools.partial(_output_gradient, case))
        works["forward + backward"] = lambda module: _training(case.call, module, case.inputs, dy)
    for direction, work in works.items():
        yield Comparison(
            _GROUP,
            case.what.format(direction),
            work(case.ours),
            [Peer(name, work(module)) for name, module in case.originals.items()],
            check,
            budget=at.budget(_USUAL, _QUICK),
            tolerance=_EXACT if _dtype(case).itemsize > 2 else _ROUNDED,
        )


def _dtype(case: Case) -> torch.dtype:
    return next(case.ours.parameters()).dtype


def _output_gradient(case: Case) -> Tensor:
    return torch.randn_like(_inference(case.call, case.ours, case.inputs)())


def _inference(call: Call, module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    return torch.no_grad()(functools.partial(call, module, *inputs))


def _training(
    call: Call, module: nn.Module, inputs: tuple[Tensor, ...], dy: Callable[[], Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """Output, and gradients of the inputs and all parameters."""
    leaves = [t.detach().requires_grad_() for t in inputs]

    def work() -> tuple[Tensor, ...]:
        y = call(module, *leaves)
        return y.detach(), *torch.autograd.grad(y, [*leaves, *module.parameters()], dy())

    return work


def _check(case: Case) -> str:
    """Ours at its full size, against the first original and its float64 run, cut down to some channels or not."""
    part = slice(case.channels)
    original = case.cut(next(iter(case.originals.values())))
    exact = case.exact(copy.deepcopy(original))
    inputs = tuple(t[..., part] for t in case.inputs)
    wide = tuple(t.double() for t in inputs)
    if case.gradients:
        dy = _output_gradient(case)
        few = dy[..., part]
        ours = _training(case.call, case.ours, case.inputs, lambda: dy)()
        theirs = _training(case.call, original, inputs, lambda: few)()
        truth = _training(case.call, exact, wide, lambda: few.double())()
    else:
        ours = (_inference(case.call, case.ours, case.inputs)(),)
        theirs = (_inference(case.call, original, inputs)(),)
        truth = (_inference(case.call, exact, wide)(),)
    same = [a[tuple(map(slice, t.shape))] for a, t in zip(ours, truth, strict=True)]
    return within_reference(same, theirs, truth)


class LinearRNN(nn.Module):
    """The layer of docs/integrations.md around a scan of (a, b), (B, T, C) each."""

    def __init__(self, width: int, scan: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gates = nn.Linear(width, 2 * width)
        self.scan = scan

    def forward(self, x: Tensor) -> Tensor:
        decay, value = self.gates(x).chunk(2, dim=-1)
        a = torch.sigmoid(decay)
        return self.scan(a, (1 - a) * value)


def _linear_scan(a: Tensor, b: Tensor) -> Tensor:
    return tk.ops.linear_scan(a, b)[0]


def _accelerated_scan(a: Tensor, b: Tensor) -> Tensor:
    return peers.accelerated_scan(a.mT.contiguous(), b.mT.contiguous()).mT


def _scan_case(at: Setting, sizes: Sizes, dtype: torch.dtype) -> Case:
    ours = LinearRNN(sizes.scan[-1], _linear_scan).to(at.device, dtype)

    def around(scan: Callable[..., Tensor]) -> LinearRNN:
        other = copy.deepcopy(ours)
        other.scan = peers.in_float32(scan)
        return other

    return Case(
        f"layer around a bare scan, {{}}, {_name(dtype)}, {sizes.scan}",
        nn.Module.__call__,
        ours,
        {
            "associative_scan": around(peers.associative_linear_scan),
            "accelerated_scan.ref between transposes": around(_accelerated_scan),
        },
        (torch.randn(sizes.scan, device=at.device, dtype=dtype),),
    )


def _rg_lru_case(at: Setting, sizes: Sizes, dtype: torch.dtype, source: Any) -> Case:
    """Compared with float64 in the first of its heads, which have nothing to do with each other."""
    batch, frames, width = sizes.rg_lru
    original = _rg_lru(at, sizes, dtype, source)
    positions = torch.arange(frames, device=at.device)[None]

    def call(module: Any, x: Tensor) -> Tensor:
        module.recurrent_states = None
        return module(x, positions)

    originals: dict[str, nn.Module] = {_ORIGINAL: original}
    if dtype in at.widened:  # ours multiplies in float32 there
        originals[f"{_ORIGINAL}, in float32"] = _InFloat32(original)
    x = torch.randn(
        batch, width, frames, device=at.device, dtype=dtype
    ).mT  # as the convolution hands it over
    return Case(
        f"RecurrentGemma's RG-LRU, {{}}, {_name(dtype)}, {sizes.rg_lru}",
        call,
        _patched(original),
        originals,
        (x,),
        cut=functools.partial(_first_head, source),
        channels=width // sizes.heads,
        exact=functools.partial(_in_float64, source),
    )


class _InFloat32(nn.Module):
    """A float32 copy of an RG-LRU, for 16-bit activations."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.inner: Any = copy.deepcopy(original).float()

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        self.inner.recurrent_states = None
        return self.inner(x.float(), positions).to(x.dtype)


def _decoding_case(at: Setting, sizes: Sizes, dtype: torch.dtype, source: Any) -> Case:
    """Both sides multiply one frame in the dtype of the weights, whether the CPU has instructions for it or not."""
    batch, _, width = sizes.rg_lru
    original = _rg_lru(at, sizes, dtype, source)
    state = torch.randn(batch, width, device=at.device)
    positions = torch.full((1, 1), sizes.rg_lru[1], device=at.device)

    def call(module: Any, x: Tensor) -> Tensor:
        module.recurrent_states = state
        return module(x, positions)

    return Case(
        f"RecurrentGemma's RG-LRU, cached decoding step, {_name(dtype)}, {(batch, 1, width)}",
        call,
        _patched(original),
        {_ORIGINAL: original},
        (torch.randn(batch, 1, width, device=at.device, dtype=dtype),),
        gradients=False,
        exact=functools.partial(_in_float64, source),
    )


def _model_cases(at: Setting, sizes: Sizes, dtype: torch.dtype, source: Any) -> Iterator[Case]:
    config = source.RecurrentGemmaConfig(
        num_hidden_layers=3,
        hidden_size=sizes.width,
        intermediate_size=6 * sizes.width,  # as in the released 2B model
        num_attention_heads=sizes.model_heads,
        num_key_value_heads=1,
        vocab_size=1024,
    )

    def modules() -> tuple[nn.Module, dict[str, nn.Module]]:
        """Of each case its own, as a state that is left behind cannot be copied after training."""
        original = source.RecurrentGemmaForCausalLM(config).to(at.device, dtype).eval()
        for module in original.modules():
            if isinstance(module, source.RecurrentGemmaRglru):
                _randomise(module)
        return _patched(original), {_ORIGINAL: original}

    prompt = torch.randint(3, config.vocab_size, (1, sizes.tokens), device=at.device)
    steps = torch.randint(3, config.vocab_size, (1, sizes.steps), device=at.device).split(1, dim=1)

    def whole(model: Any) -> Tensor:
        return model(prompt, use_cache=False).logits

    def cached(model: Any) -> Tensor:
        cache = source.DynamicCache(config=model.config)
        logits = [
            model(ids, past_key_values=cache, use_cache=True).logits[:, -1:] for ids in (prompt, *steps)
        ]
        return torch.cat(logits, dim=1)

    name = f"RecurrentGemma, 3 layers of width {sizes.width}"
    exact = functools.partial(_in_float64, source)
    what = f"{name}, {{}}, {_name(dtype)}, {sizes.tokens} tokens"
    yield Case(what, whole, *modules(), (), exact=exact)
    what = f"{name}, {sizes.tokens} tokens and {sizes.steps} cached steps, {_name(dtype)}"
    yield Case(what, cached, *modules(), (), gradients=False, exact=exact)


def _rg_lru(at: Setting, sizes: Sizes, dtype: torch.dtype, source: Any) -> nn.Module:
    config = SimpleNamespace(num_attention_heads=sizes.heads, lru_width=sizes.rg_lru[-1])
    module = source.RecurrentGemmaRglru(config)
    _randomise(module)
    return module.to(at.device, dtype)


@torch.no_grad()
def _randomise(module: Any) -> None:
    """Gates that spread over (0, 1) as trained ones do; decays as the model initialises them."""
    for gate in ("input_gate", "recurrent_gate"):
        getattr(module, f"{gate}_weight").normal_(std=module.block_width**-0.5)
        getattr(module, f"{gate}_bias").normal_()
    radius = torch.empty_like(module.recurrent_param, dtype=torch.float32).uniform_(0.9**2, 0.999**2).sqrt()
    module.recurrent_param.copy_((1 / radius - 1).log())  # softplus of it is -log(radius)


def _patched(original: nn.Module) -> nn.Module:
    return tk.integrations.patch_recurrent_gemma(copy.deepcopy(original))


def _first_head(source: Any, module: Any) -> nn.Module:
    width = module.block_width
    head = source.RecurrentGemmaRglru(SimpleNamespace(num_attention_heads=1, lru_width=width))
    state = {
        name: value[:width] if value.ndim == 1 else value[:1] for name, value in module.state_dict().items()
    }
    head.load_state_dict(state)
    return head.to(module.recurrent_param)


def _in_float64(source: Any, module: nn.Module) -> nn.Module:
    """The scan too, which is otherwise in float32 whatever the model's dtype."""
    module = module.double()
    for part in module.modules():
        if isinstance(part, source.RecurrentGemmaRglru):
            part._rnn_scan = functools.partial(part._rnn_scan, acc_dtype=torch.float64)  # type: ignore[assignment]
    return module


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
