"""``python -m benchmarks.cuda_launches``: what the CUDA backend launches at real sizes, recorded without a GPU.

TRECVIT_SIMT must name the module that ``make simt`` builds. ``--write docs/cuda_kernels.md`` puts the table between
that page's second markers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import trecvit_kernels as tk
from benchmarks.kernels import rewrite, size
from trecvit_kernels import backends
from trecvit_kernels.ops import _cuda

BEGIN, END = "<!-- launches: begin -->", "<!-- launches: end -->"
MULTIPROCESSORS = 132  # of an H200
_BF16 = torch.bfloat16

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and call of what is recorded, forward with gradients wanted; the result's backward pass is recorded too."""
    for shape in ((8, 32, 196, 1536), (1, 65_536, 1, 1024)):
        for is_complex in (False, True):
            kind = "complex " if is_complex else ""
            yield f"`gated_lru` {kind}{_size(shape)}", _gated_lru(shape, is_complex)
    yield f"`linear_scan` float32 {(8, 32, 196, 1536)}", _linear_scan((8, 32, 196, 1536))
    yield f"`linear_scan` float32 {(1, 65_536, 1024)}", _linear_scan((1, 65_536, 1024))
    for tokens, head_dim in ((196, 64), (256, 64), (256, 128)):
        yield f"`spatial_attention` {tokens} tokens, D = {head_dim}", _attention(tokens, head_dim)
    yield f"`recurrent_mixer` {_size((8, 32, 196, 1536))}", _mixer((8, 32, 196, 1536))
    yield f"`recurrent_mixer` step {_size((1, 1, 196, 1536))}", _mixer((1, 1, 196, 1536))


def _size(shape: tuple[int, ...]) -> str:
    return f"bfloat16 {shape}"


def _leaf(*shape: int, dtype: torch.dtype = _BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=True)


def _gated_lru(shape: tuple[int, ...], is_complex: bool) -> Callable[[], Any]:
    gates = shape[-1] // 2 if is_complex else shape[-1]
    parameters = [_leaf(gates, dtype=torch.float32) for _ in range(1 + is_complex)]
    x, gate = _leaf(*shape), _leaf(*shape[:-1], gates)
    return lambda: tk.ops.gated_lru(x, gate, gate, *parameters)[0]


def _linear_scan(shape: tuple[int, ...]) -> Callable[[], Any]:
    a = _leaf(*shape, dtype=torch.float32)
    return lambda: tk.ops.linear_scan(a, a)[0]


def _attention(tokens: int, head_dim: int) -> Callable[[], Any]:
    qkv = _leaf(8, 32, tokens, 3 * 12 * head_dim)
    return lambda: tk.ops.spatial_attention(qkv, 12)


def _mixer(shape: tuple[int, ...]) -> Callable[[], Any]:
    channels, heads = shape[-1], 12
    weight, bias = _leaf(heads, channels // heads, channels // heads), _leaf(heads, channels // heads)
    u, conv, channel = _leaf(*shape), _leaf(4, channels), _leaf(channels)
    step = shape[1] == 1

    def call() -> Tensor:
        with torch.set_grad_enabled(not step):
            return tk.ops.recurrent_mixer(u, u, conv, channel, weight, bias, weight, bias, channel)[0]

    return call


def table() -> str:
    """What stands between the markers."""
    simulator = _cuda.load_simulator(_cuda.SIMULATOR)
    command = "`python -m benchmarks.cuda_launches --write docs/cuda_kernels.md`"
    lines = [
        BEGIN,
        f"Written by {command}, for {MULTIPROCESSORS} multiprocessors.",
        "",
        "| call | launch | blocks | threads | dynamic shared memory |",
        "| --- | --- | --: | --: | --: |",
    ]
    _cuda.SIMULATED_MULTIPROCESSORS = MULTIPROCESSORS
    with backends.use("cuda"):
        for name, call in _calls():

            def both(call: Callable[[], Any] = call) -> None:
                y = call()
                if y.requires_grad:
                    y.backward(torch.empty_like(y))

            for kernel, blocks, threads, shared in simulator.record(both):
                lines.append(f"| {name} | {kernel} | {blocks:,} | {threads} | {size(shared)} |")
                name = ""
    return "\n".join([*lines, END])


@app.command()
def main(
    write: Annotated[
        Path | None, typer.Option(help="Page to put the table into.", show_default=False)
    ] = None,
) -> None:
    """Record what the CUDA backend launches."""
    if not backends.simulated():
        raise typer.BadParameter("TRECVIT_SIMT must name the module that `make simt` builds")
    text = table()
    if write is None:
        print(text)
    else:
        rewrite(write, text, BEGIN, END)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.cuda_launches")
