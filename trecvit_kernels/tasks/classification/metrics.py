"""Labels that are checked, and top-k accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from trecvit_kernels._checks import check_dtype, check_shape, check_tensor

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SHOWN = 5


def check_labels(where: str, labels: object, num_classes: int, name: str = "labels") -> None:
    """TypeError unless ``labels`` is an integer tensor; ValueError naming those outside [0, num_classes)."""
    check_tensor(where, name, labels)
    assert isinstance(labels, Tensor)
    check_dtype(where, name, labels, INTEGERS)
    wrong = ((labels < 0) | (labels >= num_classes)).flatten()
    if wrong.any():
        places = wrong.nonzero().flatten().tolist()
        found = ", ".join(f"{labels.flatten()[i].item()} at {i}" for i in places[:_SHOWN])
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        raise ValueError(f"{where}: {name} must lie in 0 to {num_classes - 1}, got {found}{more}")


def top_k_correct(scores: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """How far each label is among the k best classes: 1 or 0, between them where a tie decides.

    Tied classes share the places that they take: with g classes scored above the label's and m (itself included) like
    it, the label counts clamp((k - g) / m, 0, 1), the expectation if ties were broken at random. So a model that scores
    all classes alike is at chance, k / C, whatever the order of the classes. Without ties this is membership in the
    k largest.

    Args:
        scores: (B, C), floating; logits or probabilities, not NaN.
        labels: (B,), integer, in [0, C).
        k: at least 1; with k >= C every label counts 1.

    Returns:
        (B,) float64.

    Raises:
        TypeError, ValueError: an argument of a wrong type, shape or value (labels out of range are named).
    """
    where = "top_k_correct"
    check_tensor(where, "scores", scores)
    if not scores.is_floating_point():
        raise TypeError(f"{where}: scores must be floating, got {scores.dtype}")
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"{where}: scores must have shape (B, C), neither of them 0, got {tuple(scores.shape)}"
        )
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"{where}: k must be an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"{where}: k must be at least 1, got {k}")
    check_labels(where, labels, scores.shape[1])
    check_shape(where, "labels", labels, scores.shape[:1])
    if scores.isnan().any():
        rows = scores.isnan().any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"{where}: scores must not be NaN, got NaN in rows {rows[:_SHOWN]}")
    own = scores.gather(1, labels.to(scores.device, torch.int64)[:, None])
    above = (scores > own).sum(dim=1)
    alike = (scores == own).sum(dim=1)
    return ((k - above).double() / alike).clamp_(0.0, 1.0)


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Mean of ``top_k_correct`` over the batch, from 0 to 1; arguments and errors as there."""
    return top_k_correct(scores, labels, k).mean().item()
