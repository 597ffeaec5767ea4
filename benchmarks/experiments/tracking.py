"""Point tracking against points that never move."""

from __future__ import annotations

from typing import Any

from benchmarks.experiments import plots
from benchmarks.experiments.clips import Clips
from benchmarks.experiments.experiment import Claim, Experiment, Outcomes, evaluations
from benchmarks.experiments.jobs import Job
from benchmarks.experiments.settings import TRAINING_CLIPS, tables
from benchmarks.report.tables import Table

_SIZE, _PATCH, _FRAMES, _STEPS, _TESTED = (16, 16), 4, 8, 3500, 200
_TO_PIXELS = _SIZE[0] / 256
_OPTIONS = {"points": 8, "speed": 1.5}
_SEEDS = (0, 1)


def jobs(tiny: bool) -> list[Job]:
    """The same training from two seeds."""
    model = {
        "width": 96,
        "depth": 2,
        "num_heads": 4,
        "mlp_dim": 192,
        "patch_size": _PATCH,
        "image_size": _SIZE[0],
    }
    task = {"name": "point_tracking", "model": {**model, "head_width": 128}}
    return [
        Job(
            f"seed {seed}",
            tables(task, _STEPS, tiny=tiny, batch_size=8, weight_decay=0.01, seed=seed),
            Clips("tracks", "train", 8 if tiny else TRAINING_CLIPS, _FRAMES, _SIZE, seed, _OPTIONS),
            Clips("tracks", "test", 8 if tiny else _TESTED, _FRAMES, _SIZE, 0, _OPTIONS),
        )
        for seed in _SEEDS
    ]


def _pixels(outcomes: Outcomes, seed: int, measure: str) -> float:
    return outcomes[f"seed {seed}"].measures[measure] * _TO_PIXELS


def claims(outcomes: Outcomes) -> list[Claim]:
    """Well below the static baseline, on photographs that were never seen."""
    errors = [_pixels(outcomes, seed, "mean_error") for seed in _SEEDS]
    still = _pixels(outcomes, 0, "static_error")
    found = " and ".join(f"{error:.2f}" for error in errors) + f" against {still:.2f} pixels"
    return [
        Claim("mean error at most half of the static points', both seeds", found, max(errors) <= still / 2)
    ]


def table(outcomes: Outcomes) -> Table:
    """TAP-Vid's metrics and mean errors."""
    rows = []
    for seed in _SEEDS:
        measures = outcomes[f"seed {seed}"].measures
        shares = ("average_jaccard", "average_points_within", "occlusion_accuracy")
        rows.append(
            (
                f"seed {seed}",
                f"{_pixels(outcomes, seed, 'mean_error'):.2f}",
                f"{_pixels(outcomes, seed, 'static_error'):.2f}",
                *(f"{measures[name]:.1%}" for name in shares),
            )
        )
    headings = (
        "training",
        f"mean error, pixels of {_SIZE[0]}",
        "static points",
        "average Jaccard",
        "δ-average",
        "occlusion accuracy",
    )
    notes = [
        f"{outcomes['seed 0'].parameters / 1e3:.0f} k parameters. Jaccard and δ count distances of 1 to 16 pixels of a"
        f" raster of 256, which are 1/{1 / _TO_PIXELS:.0f} to {16 * _TO_PIXELS:g} pixels here."
    ]
    return Table("Test clips", headings, rows, notes=notes)


def draw(plt: Any, theme: Any, outcomes: Outcomes) -> Any:
    """Mean error over training."""
    lines = {}
    for seed in _SEEDS:
        steps, errors = evaluations(outcomes[f"seed {seed}"], "mean_error")
        lines[f"seed {seed}"] = (steps, [error * _TO_PIXELS for error in errors])
    still = (_pixels(outcomes, 0, "static_error"), "static points")
    panel = plots.Panel("Mean error on test clips", lines, "training step", f"pixels of {_SIZE[0]}", still)
    return plots.curves(plt, theme, [panel], order=list(lines))


EXPERIMENT = Experiment(
    name="tracking",
    title="Point tracking",
    about=(
        f"Two round cuttings of photographs move over a moving photograph, up to {_OPTIONS['speed']:g} pixels a frame,"
        f" and hide each other and what is behind them ({_SIZE[0]} × {_SIZE[1]} pixels, {_FRAMES} frames, patches of"
        f" {_PATCH}). A point tracker of two blocks follows {_OPTIONS['points']} points, each from the first frame in"
        " which it is seen."
    ),
    jobs=jobs,
    claims=claims,
    table=table,
    draw=draw,
    caption="Mean error over training, against points that stay where they were asked for",
)
