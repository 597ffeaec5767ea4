"""The learning rate at a step, and the optimiser."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trecvit_kernels.training.config import OptimiserConfig, ScheduleConfig

# Positions and learned tokens are added to or stand among the features: like biases, they are no linear map.
_NOT_MAPS = ("pos_embedding", "position", "token", "cls")


def learning_rate(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """At the ``step``-th step, counted from 0: linear up to the peak, then a cosine that ends one step after the last.

    So neither the first nor the last step has a rate of 0.

    A pure function, so that a resumed run needs the step alone.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / (schedule.warmup_steps + 1)
    share = (step - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
    cosine = (1 + math.cos(math.pi * share)) / 2
    return peak * (schedule.final_share + (1 - schedule.final_share) * cosine)


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter: on the weights of linear maps and convolutions alone.

    Not on biases, on scales of norms and ``a_param``, ``a_imag`` (which have one dimension), and not on position
    embeddings, the cls token and other learned tokens.
    """
    last = name.rsplit(".", 1)[-1]
    if parameter.ndim < 2 or last.endswith("bias") or last in ("a_param", "a_imag"):
        return False
    return not any(word in last for word in _NOT_MAPS)


def make_optimiser(model: nn.Module, options: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient, in two groups."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if is_decayed(name, p)], "weight_decay": options.weight_decay},
        {"params": [p for name, p in trained if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=options.betas,
        eps=options.eps,
    )
