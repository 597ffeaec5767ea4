"""Sizes and initial weights against the official ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import trecvit_kernels as tk
from trecvit_kernels.models import SIZES, official

# Parameters at 400 classes and 32 x 224^2, LRU width = width (paper) and doubled (released).
COUNTS = {
    "trecvit_tiny": (8_995_984, 11_230_864),
    "trecvit_small": (30_030_736, 37_154_704),
    "trecvit_base": (111_913_360, 136_778_128),
    "trecvit_large": (386_616_720, 471_797_136),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    for factor, expected in zip((1, 2), COUNTS[name], strict=True):
        with torch.device("meta"):
            model = tk.create_model(name, lru_width=factor * SIZES[name].width)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_every_size_is_counted() -> None:
    assert set(SIZES) == set(COUNTS) | {"trecvit_base_k400"}
    released = SIZES["trecvit_base_k400"]
    assert (released.lru_width, released.min_radius, released.frames_per_clip) == (1536, 0.5, 32)
    assert all(
        SIZES[name].lru_width == SIZES[name].width and SIZES[name].min_radius == 0.6 for name in COUNTS
    )


def test_initial_statistics_equal_the_official_ones(golden: Path) -> None:
    """Every key of one official initialisation of TRecViT-B against one of ours.

    Two samples of one distribution: means and standard deviations may differ by 6 standard errors of the
    difference, extremes as ``_check_upper_tail`` says. Over 370 keys a false alarm has a probability
    of about 1e-5.
    """
    expected = json.loads((golden / "trecvit" / "official_B_init_stats.json").read_text())
    torch.manual_seed(2412)
    model = tk.create_model("trecvit_base_k400")
    ours = official.to_official(model.state_dict(), model.config)
    assert set(ours) == set(expected)
    for name, statistics in expected.items():
        values = ours[name]
        assert list(values.shape) == statistics["shape"], name
        if statistics["std"] == 0.0:  # constants: biases, scales, cls
            assert (values == statistics["mean"]).all(), name
        else:
            _check_sample(name, values.double().flatten(), statistics)


def _check_sample(name: str, values: Tensor, expected: dict[str, float]) -> None:
    n, mean, std = values.numel(), values.mean().item(), values.std().item()
    assert n >= 500, name
    assert abs(mean - expected["mean"]) <= 6 * std * math.sqrt(2 / n), name
    # Variance of a sample variance: (fourth central moment - variance^2) / n.
    fourth = (values - mean).pow(4).mean().item()
    error_of_std = math.sqrt((fourth - std**4) / n) / (2 * std)
    assert abs(std - expected["std"]) <= 6 * math.sqrt(2) * error_of_std, name
    _check_upper_tail(name, values, expected["max"])
    _check_upper_tail(name, -values, -expected["min"])


def _check_upper_tail(name: str, values: Tensor, official_maximum: float) -> None:
    """Ours reaches as far as theirs and no further.

    Of two samples of one size and distribution, the 25 largest of both together are all ours with probability
    2^-25. The other way round their maximum is at most ours plus an excess, which for a light tail decays by
    e per mean spacing; our 25 largest spread over about ln 25 spacings (exponential tail).
    """
    largest = values.topk(25).values
    assert largest[-1] <= official_maximum, name
    spread = (largest[0] - largest[-1]).item()
    assert official_maximum <= largest[0].item() + 8 * spread, name


def test_complex_model_starts_with_phases_on_the_ring() -> None:
    torch.manual_seed(0)
    model = tk.create_model("trecvit_tiny", complex_lru=True)
    lru = model.blocks[0].time.rg_lru
    assert lru.a_param.shape == lru.a_imag_param.shape == (96,)
    assert lru.a_imag_param.min() >= 0.0 and lru.a_imag_param.max() <= 0.1 * math.pi
    # Two gates of half width: std 1 / sqrt(full width).
    weight = lru.a_gate.weight
    assert weight.shape == (3, 64, 32)
    assert abs(weight.std().item() * math.sqrt(192) - 1) < 6 / math.sqrt(2 * weight.numel())
