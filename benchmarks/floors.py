"""What no implementation can beat on this machine: copying the bytes, and the model's matrix products alone.

What the floor of the model counts, for the same weights and the same shapes as the model has:
every ``nn.Linear``'s product without bias (patch embedding and head too), the block-diagonal gates' products
(batched, on contiguous heads), and scaled_dot_product_attention on contiguous random q, k, v. Outputs of
products are written into buffers that exist already; attention allocates its own. Training counts two more
products for each (gradient of the input, not for the embedding, and of the weight) and attention's backward
pass. Nothing else: no norm, bias, activation, residual, convolution, recurrence, loss or accumulation.

The products are ``torch.mm``. Our linear layers call oneDNN instead, which on some processors takes half as long in
float32; ``onednn=True`` is the floor with those products (into fresh outputs: the op has no other form).

A floor takes the fastest way there is: where a CPU has no instructions for a 16-bit dtype, its products and attention
are those of float32 numbers, converted before the clock starts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Work
from trecvit_kernels import TRecViT
from trecvit_kernels.ops._products import multiplied_in
from trecvit_kernels.ops.linear.native import linear_forward

MATMUL = 2048  # rows and columns


def copy_of_gated_lru(x: Tensor, gate_x: Tensor, gate_a: Tensor) -> Work:
    """Copy the bytes that the forward pass moves, with its allocations.

    It reads three tensors and writes a fresh one; here two are read and two written, one of them fresh.
    """
    existing = torch.empty_like(gate_x)

    def run() -> Tensor:
        existing.copy_(gate_x)
        return x.clone()

    return run


def matmul(dtype: torch.dtype, device: str = "cpu", size: int = MATMUL) -> tuple[Work, float]:
    """A square matrix product into an existing buffer, and its floating-point operations."""
    a, b = (_as_multiplied(torch.randn(size, size, device=device).to(dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def _as_multiplied(t: Tensor) -> Tensor:
    return t.to(multiplied_in(t))


class ModelFloor:
    """Matrix products and attention of ``model`` on ``batch`` videos of ``frames`` frames."""

    def __init__(self, model: TRecViT, batch: int, frames: int, *, onednn: bool = False) -> None:
        config = model.config
        self.onednn = onednn
        self.dtype, self.device = multiplied_in(model.embedding.weight), model.embedding.weight.device
        images, patches = batch * frames, config.grid[0] * config.grid[1]
        tokens = images * config.tokens
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        # (rows, weight (out, in), whether the input's gradient is needed)
        self.linears: list[tuple[int, Tensor, bool]] = [(images * patches, model.embedding.weight, False)]
        self.gates: list[tuple[int, Tensor]] = []
        for block in model.blocks:
            time, space = block.time, block.space
            for linear in (time.linear_x, time.linear_y, time.linear_out):
                self.linears.append((tokens, linear.weight, True))
            for linear in (space.qkv, space.out, space.mlp_in, space.mlp_out):
                self.linears.append((tokens, linear.weight, True))
            for gate in (time.rg_lru.input_gate, time.rg_lru.a_gate):
                self.gates.append((tokens, gate.weight))
        if model.pre_logits is not None:
            rows = images if config.pool == "cls" else tokens
            self.linears.append((rows, model.pre_logits.weight, True))
        if model.cls_head is not None:
            self.linears.append((batch, model.cls_head.weight, True))
        self.linears = [
            (rows, _as_multiplied(weight.detach()), needs_dx) for rows, weight, needs_dx in self.linears
        ]
        self.gates = [(rows, _as_multiplied(weight.detach())) for rows, weight in self.gates]
        self.attentions = config.depth
        shape = (images, config.num_heads, config.tokens, config.width // config.num_heads)
        self.qkv = [torch.randn(shape, device=self.device).to(self.dtype) for _ in range(3)]
        self.d_attended = torch.randn(shape, device=self.device).to(self.dtype)

    def _buffer(self, role: str, *shape: int) -> Tensor:
        """One random buffer for each role and shape, made on first use (the warm-up)."""
        key = (role, shape)
        if key not in self._buffers:
            self._buffers[key] = torch.randn(shape, device=self.device).to(self.dtype)
        return self._buffers[key]

    def _multiply(self, a: Tensor, b: Tensor, role: str) -> None:
        if self.onednn:
            linear_forward(a, b.t(), None)
        else:
            torch.mm(a, b, out=self._buffer(role, a.shape[0], b.shape[1]))

    @torch.no_grad()
    def forward(self) -> None:
        for rows, weight, _ in self.linears:
            self._multiply(self._buffer("x", rows, weight.shape[1]), weight.t(), "y")
        for rows, weight in self.gates:
            heads, narrow, wide = weight.shape
            torch.bmm(
                self._buffer("x", heads, rows, narrow), weight, out=self._buffer("y", heads, rows, wide)
            )
        for _ in range(self.attentions):
            F.scaled_dot_product_attention(*self.qkv)

    def train(self) -> None:
        """Forward and both backward products."""
        with torch.no_grad():
            for rows, weight, needs_dx in self.linears:
                wide, narrow = weight.shape
                x, dy = self._buffer("x", rows, narrow), self._buffer("dy", rows, wide)
                self._multiply(x, weight.t(), "y")
                if needs_dx:
                    self._multiply(dy, weight, "dx")
                self._multiply(dy.t(), x, "dw")
            for rows, weight in self.gates:
                heads, narrow, wide = weight.shape
                x, y = self._buffer("x", heads, rows, narrow), self._buffer("y", heads, rows, wide)
                torch.bmm(x, weight, out=y)
                torch.bmm(y, weight.transpose(1, 2), out=self._buffer("dx", heads, rows, narrow))
                torch.bmm(x.transpose(1, 2), y, out=self._buffer("dw", heads, narrow, wide))
        leaves = [t.detach().requires_grad_() for t in self.qkv]
        for _ in range(self.attentions):
            torch.autograd.grad(F.scaled_dot_product_attention(*leaves), leaves, self.d_attended)
