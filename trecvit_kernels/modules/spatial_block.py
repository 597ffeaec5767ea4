"""Space and channel mixing of TRecViT: a pre-norm ViT block inside each frame."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels import ops
from trecvit_kernels._checks import check_like, check_tensor
from trecvit_kernels.modules import _init
from trecvit_kernels.modules._residual import Residual
from trecvit_kernels.modules.linear import Linear, call_linear, check_weights
from trecvit_kernels.modules.norm import norm_recipe
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.ops._recipe import Recipe, worthwhile
from trecvit_kernels.ops.gelu.op import choose, gelu_tanh

EPS = 1e-6


class SpatialBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on (..., N, width): every token of a frame sees all
    others.

    LayerNorm eps 1e-6, tanh GELU, dropout after attention, inside and after the MLP (Dosovitskiy et al.,
    arXiv 2010.11929, as in big_vision). For the backward pass it keeps the input of each norm, the packed queries, keys
    and values, the attention's output and the input of the GELU (with dropout also its output); norms and GELU are
    computed again.

    Args:
        width: channels. mlp_dim: hidden channels of the MLP. num_heads: attention heads, dividing width.
        dropout: probability in [0, 1).

    Raises:
        ValueError: num_heads does not divide width, or dropout outside [0, 1).
    """

    def __init__(self, width: int, mlp_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(
                f"SpatialBlock: width must be a multiple of num_heads = {num_heads}, got {width}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"SpatialBlock: dropout must lie in [0, 1), got {dropout}")
        self.width, self.num_heads, self.dropout = width, num_heads, dropout
        self.norm_1 = nn.LayerNorm(width, eps=EPS)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, eps=EPS)
        self.mlp_in = Linear(width, mlp_dim)
        self.mlp_out = Linear(mlp_dim, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights (q, k, v each on its own); MLP biases N(0, 1e-6), the others 0."""
        width = self.width
        _init.xavier_uniform_(self.qkv.weight, width, width)
        _init.xavier_uniform_(self.out.weight, width, width)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        for linear in (self.mlp_in, self.mlp_out):
            _init.xavier_uniform_(linear.weight, linear.in_features, linear.out_features)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., N, width), in the dtype of the weights (on the CPU also 16 bits on float32 weights) -> the same.

        Raises:
            TypeError, ValueError: x is not a tensor of such a dtype and of this width on the module's device.
        """
        check_tensor("SpatialBlock", "x", x, ndim_at_least=2)
        shape = (*x.shape[:-1], self.width)
        check_like("SpatialBlock", "x", x, shape=shape, dtypes=REAL, device=self.qkv.weight.device)
        check_weights("SpatialBlock", x, self.qkv, layer_norm=True)
        return self.mix(Residual(x)).total()

    def mix(self, stream: Residual) -> Residual:
        """``forward`` without its checks, the last residual addition left to whoever comes next."""
        x, y = stream.normed(self.norm_1)
        branch = self._attend(y, norm_recipe(self.norm_1, x, y))
        x, y = Residual(x, self._drop(branch)).normed(self.norm_2)
        return Residual(x, self._drop(self._mlp(y, norm_recipe(self.norm_2, x, y))))

    def _attend(self, x: Tensor, again: Recipe | None) -> Tensor:
        return self.out(ops.spatial_attention(call_linear(self.qkv, x, again), self.num_heads))

    def _mlp(self, x: Tensor, again: Recipe | None) -> Tensor:
        hidden = call_linear(self.mlp_in, x, again)
        y = gelu_tanh(hidden)
        dropped = self._drop(y)
        if dropped is not y or not worthwhile(y):
            del hidden  # in inference nobody needs it during the product
            return self.mlp_out(dropped)
        make = partial(gelu_tanh, backend=choose(y.device.type))
        return call_linear(self.mlp_out, y, Recipe(y, make, (hidden,)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout and self.training else x
