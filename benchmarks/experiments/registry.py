"""The experiments, in the order of the page."""

from __future__ import annotations

from benchmarks.experiments import frame_rates, memorisation, pretraining, temporal_order, tracking
from benchmarks.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (temporal_order, frame_rates, pretraining, memorisation, tracking)
}
