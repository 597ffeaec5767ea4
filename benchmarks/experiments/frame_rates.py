"""Accuracy against frame rate and number of frames: a slow drift of a shaking camera."""

from __future__ import annotations

from typing import Any

from benchmarks.experiments import plots
from benchmarks.experiments.clips import Clips
from benchmarks.experiments.experiment import Claim, Experiment, Outcomes
from benchmarks.experiments.jobs import Job
from benchmarks.experiments.settings import MODULES, TRAINING_CLIPS, model, tables
from benchmarks.report.tables import Table

_TRAINED = (4, 8, 16)  # frames
_FRAMES, _EVERY = (2, 4, 8, 16, 32), (1, 2, 4)  # of test clips
_SIZE, _PATCH, _STEPS, _TESTED = (24, 24), 8, 1000, 400
_CAMERA = {"speed": 0.6, "shake": 0.8}


def jobs(tiny: bool) -> list[Job]:
    """One training per number of frames, each tested on every number of frames and frame rate."""
    made = []
    for frames in _TRAINED:
        overrides = model(_SIZE[0], _PATCH, head=True, **MODULES["gated LRU"])
        task = {"name": "classification", "num_classes": 2, "overrides": overrides, "label_smoothing": 0.0}
        grid = {
            _cell(seen, every): (_test(seen, every, tiny), {})
            for seen in (_FRAMES[:1] if tiny else _FRAMES)
            for every in (_EVERY[:1] if tiny else _EVERY)
        }
        train = Clips("direction", "train", 8 if tiny else TRAINING_CLIPS, frames, _SIZE, options=_CAMERA)
        made.append(Job(_job(frames), tables(task, _STEPS, tiny=tiny), train, _test(frames, 1, tiny), grid))
    return made


def _test(frames: int, every: int, tiny: bool) -> Clips:
    return Clips(
        "direction", "test", 8 if tiny else _TESTED, frames, _SIZE, options={**_CAMERA, "every": every}
    )


def _job(frames: int) -> str:
    return f"trained on {frames} frames"


def _cell(frames: int, every: int) -> str:
    return f"{frames} frames, every {every}"


def _accuracy(outcomes: Outcomes, trained: int, frames: int, every: int) -> float:
    return outcomes[_job(trained)].more[_cell(frames, every)]["top1"]


def claims(outcomes: Outcomes) -> list[Claim]:
    """More frames help; at the same duration too."""
    few, many = _accuracy(outcomes, 4, 4, 1), _accuracy(outcomes, 16, 16, 1)
    sparse, dense = _accuracy(outcomes, 4, 4, 4), many
    longer = _accuracy(outcomes, 16, 32, 1)
    return [
        Claim(
            "same frame rate: trained and tested on 16 frames is better than on 4",
            f"{many:.1%} against {few:.1%}",
            many > few,
        ),
        Claim(
            "same duration: 16 frames are better than 4 at a quarter of the frame rate",
            f"{dense:.1%} against {sparse:.1%}",
            dense > sparse,
        ),
        Claim(
            "longer than in training: trained on 16, 32 frames are no worse than 16",
            f"{longer:.1%} against {many:.1%}",
            longer >= many,
        ),
    ]


def table(outcomes: Outcomes) -> Table:
    """Accuracy over frames, a row per training and frame rate."""
    rows = [
        (
            str(trained),
            "all" if every == 1 else f"one of {every}",
            *(f"{_accuracy(outcomes, trained, frames, every):.1%}" for frames in _FRAMES),
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
            plots.Panel(title, lines, "frames of a test clip", "accuracy", (0.5, "chance"), _FRAMES)
        )
    return plots.curves(plt, theme, panels, order=list(names.values()))


EXPERIMENT = Experiment(
    name="frame_rates",
    title="Frame rate and number of frames",
    about=(
        "A camera drifts to the left or to the right by 0.3 to 0.9 pixels a frame and is shaken in every frame"
        f" (standard deviation {_CAMERA['shake']} pixels per axis), so that two frames are not enough. Models with"
        " gated LRUs, each trained on one number of frames at the full rate, are tested on others, with all frames"
        " kept or one of 2 or 4, which sees more time in as many frames."
    ),
    jobs=jobs,
    claims=claims,
    table=table,
    draw=draw,
    caption="Test accuracy over the number of frames, for three frame rates",
)
