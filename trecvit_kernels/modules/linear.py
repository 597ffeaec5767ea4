"""``nn.Linear`` on the products that are fastest here."""

from __future__ import annotations

from torch import Tensor, nn

from trecvit_kernels.ops.linear.op import linear_unchecked


class Linear(nn.Linear):
    """``nn.Linear`` (same parameters, names and initialisation) computed by ``ops/linear``: (..., in) -> (..., out)."""

    def forward(self, input: Tensor) -> Tensor:
        return linear_unchecked(input, self.weight, self.bias)
