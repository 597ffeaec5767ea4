"""Point tracking against points that never move."""

from __future__ import annotations

from typing import Any

from benchmarks.experiments import plots
from benchmarks.experiments.clips import Clips
from benchmarks.experiments.experiment import Claim, Experiment, Outcomes, evaluations
from benchmarks.experiments.jobs import Job
from benchmarks.experiments.settings import TRAINING_CLIPS, tables
from benchmarks.report.tables import Table

_SIZE, _PATCH, _FRAMES, _STEPS, _TESTED, _POINTS = (16, 16), 4, 8, 2600, 200, 16
_TO_PIXELS = _SIZE[0] / 256  # of the raster that errors are measured in
_SCENES: dict[str, dict[str, Any]] = {
    "moving camera": {"cuttings": 0, "speed": 2.0},
    "cutting over it": {"cuttings": 1, "speed": 1.5, "brightness": 0.3},
}


def jobs() -> list[Job]:
    """One training per kind of scene."""
    model = {"width": 96, "depth": 2, "num_heads": 4, "mlp_dim": 192, "head_width": 128}
    model |= {"patch_size": _PATCH, "image_size": _SIZE[0]}
    made = []
    for name, scene in _SCENES.items():
        options = {"points": _POINTS, **scene}
        made.append(
            Job(
                name,
                tables({"name": "point_tracking", "model": model}, _STEPS, weight_decay=0.01),
                Clips("tracks", "train", TRAINING_CLIPS, _FRAMES, _SIZE, options=options),
                Clips("tracks", "test", _TESTED, _FRAMES, _SIZE, options=options),
            )
        )
    return made


def _pixels(outcomes: Outcomes, name: str, measure: str) -> float:
    return outcomes[name].measures[measure] * _TO_PIXELS


def claims(outcomes: Outcomes) -> list[Claim]:
    """Well below the static baseline, on photographs that were never seen."""
    made = []
    for name in _SCENES:
        error, still = (_pixels(outcomes, name, measure) for measure in ("mean_error", "static_error"))
        made.append(
            Claim(
                f"{name}: mean error at most half of that of points that never move",
                f"{error:.2f} against {still:.2f} pixels",
                error <= still / 2,
            )
        )
    return made


def table(outcomes: Outcomes) -> Table:
    """Mean errors and TAP-Vid's metrics."""
    shares = ("average_jaccard", "average_points_within", "occlusion_accuracy")
    rows = [
        (
            name,
            *(f"{_pixels(outcomes, name, measure):.2f}" for measure in ("mean_error", "static_error")),
            *(f"{100 * outcomes[name].measures[measure]:.1f} %" for measure in shares),
        )
        for name in _SCENES
    ]
    headings = (
        "scene",
        f"mean error, pixels of {_SIZE[0]}",
        "of points that never move",
        "average Jaccard",
        "δ-average",
        "occlusion accuracy",
    )
    parameters = next(iter(outcomes.values())).parameters
    notes = [
        f"{parameters / 1e3:.0f} k parameters. Jaccard and δ count distances of 1 to 16 pixels of a raster of 256,"
        f" which are 1/{1 / _TO_PIXELS:.0f} to {16 * _TO_PIXELS:g} pixel here."
    ]
    return Table("Test clips", headings, rows, notes=notes)


def draw(plt: Any, theme: Any, outcomes: Outcomes) -> Any:
    """Mean error over training."""
    panels = []
    for name in _SCENES:
        steps, errors = evaluations(outcomes[name], "mean_error")
        lines = {"tracker": (steps, [error * _TO_PIXELS for error in errors])}
        still = _pixels(outcomes, name, "static_error")
        panels.append(
            plots.Panel(
                name.capitalize(),
                lines,
                "training step",
                f"mean error, pixels of {_SIZE[0]}",
                (still, "static points"),
                limits=(0, 1.1 * max(still, *lines["tracker"][1])),
            )
        )
    return plots.curves(plt, theme, panels, order=["tracker"])


EXPERIMENT = Experiment(
    name="tracking",
    title="Point tracking",
    about=(
        f"*Moving camera*: a camera goes over a photograph, up to {_SCENES['moving camera']['speed'] / 2:g} pixel a"
        f" frame ({_SIZE[0]} × {_SIZE[1]} pixels, {_FRAMES} frames, patches of {_PATCH}). *Cutting over it*: a round"
        f" cutting of another photograph moves by up to {_SCENES['cutting over it']['speed']:g} pixels a frame over a"
        " darkened photograph that moves too, and hides it. A point tracker of two blocks, whose loss is TAPNext's,"
        f" follows {_POINTS} points, each from the first frame in which it is seen."
    ),
    jobs=jobs,
    claims=claims,
    table=table,
    draw=draw,
    caption="Mean error over training, against points that stay where they were asked for",
)
