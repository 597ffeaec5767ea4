"""What a model costs: parameters, floating-point operations and memory, found without doing the work.

Under fake tensors (shapes and dtypes without data) a model runs forward and backward in seconds, whatever its
size: PyTorch's ``FlopCounterMode`` counts the operations and its ``MemTracker`` follows every tensor's life.

- Operations: 2 per multiply-add of matrix products, convolutions and attention. An op of this package counts
  by its own formula, elementwise work included; elementwise PyTorch ops and reductions count nothing.
  PyTorch's fused attention counts the scores again in its backward pass, because it computes them again.
  Its formula for the weights' gradient of a grouped convolution is ``groups`` times too high.
- Memory: the tensors that PyTorch allocates. Not in it: scratch space inside a kernel, the allocator's
  rounding and fragmentation, and what is no tensor.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

_aten = torch.ops.aten


# FlopCounterMode knows the fused attention of GPUs but skips the CPU's without a word.
def _cpu_attention_flops(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def _cpu_attention_backward_flops(  # type: ignore[no-untyped-def]
    grad_out_shape, query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs
) -> int:
    return sdpa_backward_flop_count(grad_out_shape, query_shape, key_shape, value_shape)


for _op, _formula in (
    (_aten._scaled_dot_product_flash_attention_for_cpu, _cpu_attention_flops),
    (_aten._scaled_dot_product_flash_attention_for_cpu_backward, _cpu_attention_backward_flops),
):
    if _op not in flop_registry:
        register_flop_formula(_op)(_formula)


@dataclass(frozen=True)
class Memory:
    """Bytes held at the moment when the total was highest, by what the tensors are.

    Attributes:
        total: the peak, in bytes; the others add up to it.
        parameters, buffers, gradients: of the model; gradients are those that exist at the peak.
        activations: made in the forward pass (in inference, its temporaries too).
        temporaries: made in the backward pass, gradients of activations among them.
        optimizer: states of the optimizer.
        inputs: what the model was called with.
        saved: not part of the total: activations alive when the forward pass is over, which is what autograd
            keeps for the backward pass (and the output).
    """

    total: int
    parameters: int
    buffers: int
    gradients: int
    activations: int
    temporaries: int
    optimizer: int
    inputs: int
    saved: int = 0

    def breakdown(self) -> dict[str, int]:
        """Category -> bytes, without ``total`` and ``saved``."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("total", "saved")}


@dataclass(frozen=True)
class Costs:
    """Everything about one model and one input shape; FLOPs are plain counts, memory is in bytes."""

    parameters: int
    flops_forward: int
    flops_training: int
    inference: Memory
    training: Memory


def parameters(model: nn.Module) -> int:
    """Number of scalar parameters; one that several modules share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops(fn: Callable[[], Any], *, backward: bool = False) -> int:
    """Floating-point operations of ``fn()``, with ``backward`` also of a backward pass from its results.

    ``fn`` is run: on real tensors it computes, on fake or meta tensors it does not (see ``fake_model``).
    Without ``backward`` it runs without gradients.
    """
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        result = fn()
        if backward:
            _loss(result).backward()
    return counter.get_total_flops()


def uncounted(fn: Callable[[], Any], *, backward: bool = False) -> list[str]:
    """Names of the ops in ``fn()`` whose work ``flops`` would miss: it skips what has no formula, silently.

    These are products, convolutions and attention of PyTorch without a formula, found by name, and ops of
    other libraries without one, whatever they do. ``fn`` and ``backward`` as in ``flops``.
    """
    # The counter, entered last, comes first: it takes composite ops apart and hands on the pieces.
    with torch.set_grad_enabled(backward), _Uncounted() as seen, FlopCounterMode(display=False):
        result = fn()
        if backward:
            _loss(result).backward()
    return sorted(seen.names)


# Words in the names of PyTorch's ops that multiply matrices or filters: addmm, _scaled_mm, convolution_backward ...
_PRODUCTS = re.compile(
    r"(^|_)([a-z]*mm|(add)?mv|v?dot|addr|matmul|(bi)?linear|einsum|(?!convert)conv[a-z]*\d?d?|[a-z]*attention|lstm|gru|rnn"
    r"|cdist|encoder)(_|$)"
)


class _Uncounted(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = getattr(func, "_overloadpacket", func)
        if op not in flop_registry and (
            func.namespace not in ("aten", "prim", "prims") or _PRODUCTS.search(op.__name__)
        ):
            self.names.add(f"{func.namespace}.{op.__name__}")
        return func(*args, **(kwargs or {}))


def memory(
    model: nn.Module,
    *inputs: Tensor,
    training: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
) -> Memory:
    """Peak memory of ``model(*inputs)`` and, with ``training``, of a backward pass from the results' sum.

    Args:
        model: on fake tensors (``fake_model``, inside its ``FakeTensorMode``) nothing is computed; on real
            ones everything is. Its parameters get gradients.
        inputs: positional arguments of the model.
        training: False runs the forward pass without gradients.
        optimizer: one that holds the model's parameters: its step is part of the training then. States that do not
            exist yet are made by that step, after the peak of the backward pass.
    """
    tracker = _tracker()()
    tracker.track_external(model, *inputs, *([optimizer] if optimizer is not None else []))
    kept: dict[str, int] = {}
    with tracker:
        training_step(
            model,
            *inputs,
            training=training,
            optimizer=optimizer,
            after_forward=lambda: kept.update(_by_category(tracker.get_tracker_snapshot("current"))),
        )
    peak = _by_category(tracker.get_tracker_snapshot("peak"))
    return Memory(
        total=peak.get("Total", 0),
        parameters=peak.get("Parameter", 0),
        buffers=peak.get("Buffer", 0),
        gradients=peak.get("Gradient", 0),
        activations=peak.get("Activation", 0),
        temporaries=peak.get("Temp", 0),
        optimizer=peak.get("Optstate", 0),
        inputs=peak.get("Other", 0),
        saved=kept.get("Activation", 0) if training else 0,
    )


def training_step(
    model: nn.Module,
    *inputs: Tensor,
    training: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
    after_forward: Callable[[], object] | None = None,
) -> None:
    """What ``memory`` follows: ``model(*inputs)``, a backward pass from the results' sum, the optimizer's step.

    ``training=False`` runs the forward pass alone, without gradients; ``after_forward`` is called when it is over.
    """
    with torch.set_grad_enabled(training):
        result = model(*inputs)
        if after_forward is not None:
            after_forward()
        if training:
            _loss(result).backward()
            if optimizer is not None:
                optimizer.step()


def fake_model(
    build: Callable[[], nn.Module], *, device: str = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """A model without data; call inside ``with FakeTensorMode():``.

    Args:
        build: makes the model; it runs on the meta device, so it costs neither memory nor initialisation.
        device: where the fake parameters pretend to be (kernels are chosen by it).
        dtype: of floating parameters and buffers; None keeps theirs.
    """
    # Some models read values of small CPU tensors as they are built, which fake tensors have not.
    with unset_fake_temporarily(), torch.device("meta"):
        model = build()
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:  # shared parameters stay shared
                    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                    new = torch.empty(tensor.shape, dtype=kind, device=device)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
                table[name] = made[id(tensor)]  # type: ignore[assignment]
    return model


def costs(
    build: Callable[[], nn.Module],
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Costs:
    """Costs of one forward pass, and of one training step without optimizer, on an input of one shape.

    Args:
        build: makes the model, as in ``fake_model``; it is in training mode (dropout and all) for training,
            in evaluation mode for inference.
        shape: of the only input, for TRecViT and ViViT (B, T, 3, H, W).
        dtype: of the parameters and of the input.
        device: device type whose kernels are meant; ops of this package choose their backend as they would
            there.
    """
    with FakeTensorMode():
        model = fake_model(build, device=device, dtype=dtype)
        video = torch.empty(tuple(shape), dtype=dtype, device=device)
        model.eval()
        with FlopCounterMode(display=False) as forward:
            inference = memory(model, video, training=False)
        model.train()
        with FlopCounterMode(display=False) as both:
            training = memory(model, video)
    return Costs(
        parameters=parameters(model),
        flops_forward=forward.get_total_flops(),
        flops_training=both.get_total_flops(),
        inference=inference,
        training=training,
    )


def vivit_l(
    *,
    frames: int = 32,
    tubelet_frames: int = 1,
    num_classes: int = 400,
    attention: str = "eager",
    image_size: int = 224,
) -> nn.Module:
    """ViViT-L (arXiv 2103.15691, model 1: attention over all tubelets) from ``transformers``, random weights.

    Width 1024, 24 layers, 16 heads, MLP 4096. GELU is the fused tanh approximation; the default of
    ``transformers``, ``gelu_fast``, is the same function in several steps that keep 14 GB more for training.

    Args:
        frames: of a video (B, frames, 3, image_size, image_size).
        tubelet_frames: a token covers (tubelet_frames, 16, 16) pixels. The TRecViT paper's figures correspond
            to 1, the ViViT paper's ViViT-L/16x2 has 2.
        attention: ``"eager"`` materialises the scores, ``"sdpa"`` uses PyTorch's fused attention.

    Raises:
        ImportError: transformers is not installed.
    """
    config = vivit_config(
        "L",
        frames=frames,
        tubelet_frames=tubelet_frames,
        num_classes=num_classes,
        attention=attention,
        image_size=image_size,
    )
    from transformers import VivitForVideoClassification

    return VivitForVideoClassification(config)


_VIVIT_SIZES = {"B": (768, 12, 12), "L": (1024, 24, 16)}  # width, layers, heads


def vivit_config(
    size: str,
    *,
    frames: int = 32,
    tubelet_frames: int = 1,
    num_classes: int = 400,
    attention: str = "eager",
    image_size: int = 224,
) -> Any:
    """The ``transformers.VivitConfig`` of ViViT ``size`` "B" or "L"; the other arguments as in ``vivit_l``."""
    if size not in _VIVIT_SIZES:
        raise ValueError(f'size must be "B" or "L", got {size!r}')
    try:
        from transformers import VivitConfig
    except ImportError as error:
        raise ImportError(
            "ViViT comes from transformers: pip install 'trecvit-kernels[benchmarks]'", name="transformers"
        ) from error
    width, layers, heads = _VIVIT_SIZES[size]
    return VivitConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_act="gelu_pytorch_tanh",
        num_frames=frames,
        image_size=image_size,
        tubelet_size=[tubelet_frames, 16, 16],
        num_labels=num_classes,
        attn_implementation=attention,
    )


@functools.cache
def _tracker() -> Any:
    """``MemTracker`` without its statistics of single modules, which take most of its time."""
    # It lives beside torch.distributed and is slow to import.
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.utils.weak import WeakIdKeyDictionary

    class Tracker(MemTracker):
        def _update_peak_stats(self, peak_state: Any) -> None:
            modules, self.memory_tracking = self.memory_tracking, WeakIdKeyDictionary()
            try:
                super()._update_peak_stats(peak_state)
            finally:
                self.memory_tracking = modules

    return Tracker


def _loss(result: object) -> Tensor:
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not outputs:
        raise ValueError("accounting: the result must hold a tensor that requires a gradient, got none")
    return torch.stack([output.sum() for output in outputs]).sum()


def _by_category(snapshot: dict[Any, dict[Any, int]]) -> dict[str, int]:
    """A MemTracker snapshot (device -> category -> bytes), summed over devices."""

    def entries() -> Iterator[tuple[str, int]]:
        for categories in snapshot.values():
            for category, size in categories.items():
                yield getattr(category, "value", category), size

    totals: dict[str, int] = {}
    for name, size in entries():
        totals[name] = totals.get(name, 0) + size
    return totals
