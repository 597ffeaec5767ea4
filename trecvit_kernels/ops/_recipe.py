"""How to make a tensor again in the backward pass, from what autograd keeps anyway.

A norm and the linear layer behind it both need something of the norm's for their gradients: the one its input, the
other its output. Keeping both is twice the memory for what one pass over the input brings back. So the layer gets a
recipe with its input, and keeps what goes into the recipe, which the norm keeps anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trecvit_kernels import backends


class Recipe(NamedTuple):
    """``value`` is ``make(*tensors)``, bit for bit and as often as asked.

    ``make`` holds no tensor itself, can be differentiated as often as what made the value, and costs far less than a
    matrix product.
    """

    value: Tensor
    make: Callable[..., Tensor]
    tensors: tuple[Tensor | None, ...]


def worthwhile(value: Tensor) -> bool:
    """Whether a recipe for ``value`` saves anything.

    It does not without gradients; nor in compiled code, where PyTorch's partitioner decides what is kept; nor if the
    reference backend was asked for, which stays plain PyTorch.
    """
    return value.requires_grad and not torch.compiler.is_compiling() and not backends.prefers("reference")
