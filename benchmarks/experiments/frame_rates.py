"""Accuracy against frame rate and number of frames: a slow drift of a shaking camera."""

from __future__ import annotations

from typing import Any

from benchmarks.experiments import plots
from benchmarks.experiments.clips import Clips
from benchmarks.experiments.experiment import Claim, Experiment, Outcomes
from benchmarks.experiments.jobs import Job
from benchmarks.experiments.settings import TRAINING_CLIPS, classifier, tables
from benchmarks.report.tables import Table

_TRAINED = (4, 8, 16)  # frames
_FRAMES, _EVERY = (2, 4, 8, 16, 32), (1, 2, 4)  # of test clips
_SIZE, _PATCH, _STEPS, _TESTED = (24, 24), 8, 500, 400
_CAMERA = {"speed": 0.6, "shake": 0.8}
_FIRST = "steady camera, 8 frames"  # without it, some of the trainings do not leave chance within 1,000 steps
_MARGIN = 0.05


def jobs() -> list[Job]:
    """One training on a steady camera; then one per number of frames, each tested on every number and frame rate."""
    task = classifier(2, _SIZE[0], _PATCH)
    steady = Clips("direction", "train", TRAINING_CLIPS, 8, _SIZE)
    made = [Job(_FIRST, tables(task, _STEPS), steady, Clips("direction", "test", _TESTED, 8, _SIZE))]
    for frames in _TRAINED:
        grid = {_cell(seen, every): (_test(seen, every), {}) for seen in _FRAMES for every in _EVERY}
        train = Clips("direction", "train", TRAINING_CLIPS, frames, _SIZE, options=_CAMERA)
        settings = tables(task, _STEPS, learning_rate=1e-3)
        made.append(Job(_job(frames), settings, train, _test(frames, 1), grid, start=_FIRST))
    return made


def _test(frames: int, every: int) -> Clips:
    return Clips("direction", "test", _TESTED, frames, _SIZE, options={**_CAMERA, "every": every})


def _job(frames: int) -> str:
    return f"trained on {frames} frames"


def _cell(frames: int, every: int) -> str:
    return f"{frames} frames, every {every}"


def _accuracy(outcomes: Outcomes, trained: int, frames: int, every: int) -> float:
    return outcomes[_job(trained)].more[_cell(frames, every)]["top1"]


def claims(outcomes: Outcomes) -> list[Claim]:
    """More frames help; at the same duration too."""
    few, many = _accuracy(outcomes, 4, 4, 1), _accuracy(outcomes, 16, 16, 1)
    short, sparse = _accuracy(outcomes, 8, 4, 1), _accuracy(outcomes, 8, 4, 4)
    longer = _accuracy(outcomes, 16, 32, 1)
    points = f"{100 * _MARGIN:.0f} points"
    return [
        Claim(
            f"trained and tested on 16 frames: {points} or more better than on 4",
            f"{100 * many:.1f} % against {100 * few:.1f} %",
            many >= few + _MARGIN,
        ),
        Claim(
            f"4 frames, trained on 8: one frame of 4 kept is {points} or more better than all, for it sees more time",
            f"{100 * sparse:.1f} % against {100 * short:.1f} %",
            sparse >= short + _MARGIN,
        ),
        Claim(
            "longer than in training: trained on 16, 32 frames lose no more than 2 points",
            f"{100 * longer:.1f} % against {100 * many:.1f} %",
            longer >= many - 0.02 and many >= 0.5 + 2 * _MARGIN,
        ),
    ]


def table(outcomes: Outcomes) -> Table:
    """Accuracy over frames, a row per training and frame rate."""
    rows = [
        (
            str(trained),
            "all" if every == 1 else f"one of {every}",
            *(f"{100 * _accuracy(outcomes, trained, frames, every):.1f} %" for frames in _FRAMES),
        )
        for trained in _TRAINED
        for every in _EVERY
    ]
    headings = ("trained on", "frames kept", *(f"{frames} frames" for frames in _FRAMES))
    return Table("Accuracy on test clips", headings, rows, text=(0, 1))


def draw(plt: Any, theme: Any, outcomes: Outcomes) -> Any:
    """Accuracy over the number of frames, a panel per training and a line per frame rate."""
    names = {every: "all frames" if every == 1 else f"one of {every}" for every in _EVERY}
    panels = []
    for trained in _TRAINED:
        lines = {
            names[every]: (_FRAMES, [_accuracy(outcomes, trained, frames, every) for frames in _FRAMES])
            for every in _EVERY
        }
        title = f"Trained on {trained} frames"
        panels.append(
            plots.Panel(
                title, lines, "frames of a test clip", "accuracy", (0.5, "chance"), _FRAMES, (0.45, 1.02)
            )
        )
    return plots.curves(plt, theme, panels, order=list(names.values()))


EXPERIMENT = Experiment(
    name="frame_rates",
    title="Frame rate and number of frames",
    about=(
        "A camera drifts to the left or to the right by 0.3 to 0.9 pixels a frame and is shaken in every frame"
        f" (standard deviation {_CAMERA['shake']} pixels per axis), so that two frames are not enough. A model with"
        " gated LRUs learns the direction of a steady camera first; from there one model each is trained on 4, 8 or 16"
        " frames of the shaken one at the full rate, and tested on other numbers, with all frames kept or one of 2 or"
        " 4, which sees more time in as many frames."
    ),
    jobs=jobs,
    claims=claims,
    table=table,
    draw=draw,
    caption="Test accuracy over the number of frames, for three frame rates",
)
