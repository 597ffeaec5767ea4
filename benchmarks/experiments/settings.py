"""The small models and schedules that the experiments have in common."""

from __future__ import annotations

from typing import Any

# Names of the temporal modules in the tables, and their fields of TRecViTConfig.
MODULES: dict[str, dict[str, Any]] = {
    "gated LRU": {"temporal": "gated_lru"},
    "complex gated LRU": {"temporal": "gated_lru", "complex_lru": True},
    "LSTM": {"temporal": "lstm"},
    "Conv1D": {"temporal": "conv1d"},
    "factorised attention": {"temporal": "attention"},
    "none": {"temporal": "none"},
}
TRAINING_CLIPS = 4096
_CURVE = 8  # points


def model(size: int, patch: int, *, head: bool, width: int = 96, **fields: Any) -> dict[str, Any]:
    """Fields of a TRecViTConfig of two blocks for frames of ``size`` x ``size``."""
    return {
        "width": width,
        "depth": 2,
        "mlp_dim": 2 * width,
        "num_heads": 4,
        "lru_width": width,
        "patch_size": patch,
        "image_size": size,
        "pool": "mean",
        "head_width": width if head else 0,
        **({} if head else {"num_classes": 0}),
        **fields,
    }


def classifier(classes: int, size: int, patch: int, module: str = "gated LRU") -> dict[str, Any]:
    """A task section: classification by a model with one of ``MODULES``."""
    overrides = model(size, patch, head=True, **MODULES[module])
    return {"name": "classification", "num_classes": classes, "overrides": overrides, "label_smoothing": 0.0}


def tables(
    task: dict[str, Any],
    steps: int,
    *,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.03,
    seed: int = 0,
) -> dict[str, Any]:
    """A configuration of ``trecvit train`` without data: AdamW, a tenth of the steps warm-up, then a cosine."""
    every = max(steps // _CURVE, 1)
    return {
        "task": task,
        "data": {"batch_size": batch_size},
        "optimiser": {"learning_rate": learning_rate, "weight_decay": weight_decay},
        "schedule": {"steps": steps, "warmup_steps": steps // 10},
        "run": {"seed": seed, "device": "cpu", "log_every": every, "evaluate_every": every},
    }
