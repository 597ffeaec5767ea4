"""What a model keeps for the backward pass, by the layer that keeps it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_ROOM = re.compile(r"trecvit_kernels[/\\]ops[/\\](\w+)[/\\]\w+\.py$")
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass
class _Storage:
    nbytes: int
    savers: dict[str, None] = field(default_factory=dict)  # in order, each once


def saved_by_layer(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Bytes that autograd saves in ``model(*inputs)``, by layer, largest first.

    A storage counts once, whoever saves views of it; if several layers save it, all are named, since it stays as long
    as one of them needs it. Parameters, buffers and inputs are not counted. Repeated blocks are one: "blocks.*.mlp".
    A layer is the innermost module that runs at that moment, with the op of this package in brackets, if it is one.

    Args:
        model: on fake tensors nothing is computed. Not one with activation checkpointing: what a checkpoint keeps
            is no tensor that autograd saves, and is not seen.
        inputs: positional arguments of the model.
    """
    ignored = {_storage(t) for t in (*model.parameters(), *model.buffers(), *inputs)}
    storages: dict[int, _Storage] = {}
    alive: list[Tensor] = []  # else an address could be used again
    with _layers(model) as layers:

        def pack(tensor: Tensor) -> None:
            key = _storage(tensor)
            if key in ignored:
                return
            if key not in storages:
                alive.append(tensor.detach())
                storages[key] = _Storage(tensor.untyped_storage().nbytes())
            storages[key].savers[_name(layers[-1])] = None

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
            model(*inputs)
    held: dict[str, int] = {}
    for storage in storages.values():
        name = " + ".join(storage.savers)
        held[name] = held.get(name, 0) + storage.nbytes
    return dict(sorted(held.items(), key=lambda item: -item[1]))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _layers(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules that are running, innermost last; the model's own is ""."""
    names = {module: name for name, module in model.named_modules()}
    running = [""]

    def enter(module: nn.Module, inputs: object) -> None:
        running.append(names.get(module, running[-1]))

    def leave(module: nn.Module, inputs: object, result: object) -> None:
        running.pop()

    # Global hooks: our blocks keep more around a module with hooks of its own.
    first = register_module_forward_pre_hook(enter)
    last = register_module_forward_hook(leave, always_call=True)
    try:
        yield running
    finally:
        first.remove()
        last.remove()


def _name(layer: str) -> str:
    op = _op()
    layer = _INDEX.sub("*", layer) or "model"
    return f"{layer} ({op})" if op else layer


def _op() -> str | None:
    """The op of this package whose call is under way."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if found := _ROOM.search(frame.f_code.co_filename):
            return found[1]
        if frame.f_code.co_name == "_call_impl":  # the call of a module: what is further out is not its op
            return None
    return None
