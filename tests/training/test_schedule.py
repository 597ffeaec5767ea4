"""The learning rate over a run, and what weight decay acts on."""

from __future__ import annotations

import pytest

import trecvit_kernels as tk
from trecvit_kernels.tasks.point_tracking import PointTracker, PointTrackerConfig
from trecvit_kernels.training.config import OptimiserConfig, ScheduleConfig
from trecvit_kernels.training.schedule import learning_rate, make_optimiser


def test_learning_rate() -> None:
    schedule = ScheduleConfig(steps=14, warmup_steps=4, final_share=0.1)
    rates = [learning_rate(step, 5.0, schedule) for step in range(14)]
    assert rates[:5] == pytest.approx([1, 2, 3, 4, 5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[9] == pytest.approx(5 * 0.55)  # half-way between the peak and its tenth
    assert 0.5 < rates[-1] < 0.7
    assert learning_rate(14, 5.0, schedule) == pytest.approx(0.5)


def test_weight_decay() -> None:
    config = tk.TRecViTConfig(
        width=32, depth=1, mlp_dim=32, num_heads=2, patch_size=8, image_size=16, num_classes=2
    )
    tracker = PointTrackerConfig(width=32, depth=1, num_heads=2, patch_size=8, image_size=16)
    for model in (tk.TRecViT(config), PointTracker(tracker)):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decayed, spared = make_optimiser(model, OptimiserConfig(weight_decay=0.5)).param_groups
        assert decayed["weight_decay"] == 0.5 and spared["weight_decay"] == 0
        assert len(decayed["params"]) + len(spared["params"]) == len(names)
        ends = {names[id(parameter)].rsplit(".", 1)[-1] for parameter in decayed["params"]}
        assert ends == {"weight"}
        kept = {names[id(parameter)] for parameter in spared["params"]}
        assert {"pos_embedding", "blocks.0.time.rg_lru.a_param", "blocks.0.time.rg_lru.a_gate.bias"} <= kept
        assert {"blocks.0.time.norm.scale", "encoder_norm.weight"} <= kept
        assert {"cls", "mask_token", "unknown_token", "point_query_token"} & {*names.values()} <= kept
