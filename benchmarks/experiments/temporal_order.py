"""Direction, order, identity after occlusion: what cannot be known without time, with and without a temporal module."""

from __future__ import annotations

from typing import Any

from benchmarks.experiments import plots
from benchmarks.experiments.clips import Clips
from benchmarks.experiments.experiment import Claim, Experiment, Outcomes, evaluations
from benchmarks.experiments.jobs import Job
from benchmarks.experiments.settings import MODULES, TRAINING_CLIPS, classifier, tables
from benchmarks.report.tables import Table

CHANCE = 0.5  # of each question: played backwards, a clip of one class is a clip of the other
_TESTED, _FRAMES = 500, 12
# kind of clips -> (size, patch, steps, modules)
_QUESTIONS: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "direction": (24, 8, 400, tuple(MODULES)),
    "order": (16, 4, 700, ("gated LRU", "LSTM", "Conv1D", "factorised attention", "none")),
    "identity": (16, 4, 700, ("gated LRU", "none")),
    "turn": (24, 8, 700, ("gated LRU", "none")),
}
_WORDS = {
    "direction": "direction of the camera",
    "order": "order of two digits",
    "identity": "identity after occlusion",
    "turn": "axis of the first half",
}


def jobs() -> list[Job]:
    """One training per question and module."""
    made = []
    for kind, (size, patch, steps, modules) in _QUESTIONS.items():
        for module in modules:
            task = classifier(2, size, patch, module)
            train = Clips(kind, "train", TRAINING_CLIPS, _FRAMES, (size, size))
            test = Clips(kind, "test", _TESTED, _FRAMES, (size, size))
            made.append(Job(f"{kind}: {module}", tables(task, steps), train, test))
    return made


def claims(outcomes: Outcomes) -> list[Claim]:
    """With gated LRUs well above chance, without a temporal module at chance."""
    three_sigma = 3 * (CHANCE * (1 - CHANCE) / _TESTED) ** 0.5
    made = []
    for kind, words in _WORDS.items():
        learned, blind = (_accuracy(outcomes, kind, module) for module in ("gated LRU", "none"))
        made += [
            Claim(f"{words}: 90 % or more with gated LRUs", f"{100 * learned:.1f} %", learned >= 0.9),
            Claim(
                f"{words}: chance without a temporal module, 50 ± {100 * three_sigma:.1f} % (3σ)",
                f"{100 * blind:.1f} %",
                abs(blind - CHANCE) <= three_sigma,
            ),
        ]
    return made


def table(outcomes: Outcomes) -> Table:
    """Accuracy per module and question."""
    rows = []
    for module in MODULES:
        cells = [
            f"{100 * _accuracy(outcomes, kind, module):.1f} %" if f"{kind}: {module}" in outcomes else "–"
            for kind in _QUESTIONS
        ]
        rows.append((module, f"{outcomes[f'direction: {module}'].parameters / 1e3:.0f} k", *cells))
    headings = ("temporal module", "parameters", *_WORDS.values())
    steps = "; ".join(f"{words} {_QUESTIONS[kind][2]}" for kind, words in _WORDS.items())
    notes = [
        f"Steps of 16 clips: {steps}. A model at chance may only need more: where frames have to be compared, the loss"
        " stays on a plateau for hundreds of steps.",
        "–: not trained, for want of time.",
    ]
    return Table("Accuracy on test clips", headings, rows, notes=notes)


def draw(plt: Any, theme: Any, outcomes: Outcomes) -> Any:
    """Test accuracy over training, a panel per question."""
    panels = []
    for kind, words in _WORDS.items():
        lines = {}
        for module in reversed(_QUESTIONS[kind][3]):  # our module last, so that no other hides it
            steps, accuracies = evaluations(outcomes[f"{kind}: {module}"], "top1")
            lines[module] = steps, [100 * accuracy for accuracy in accuracies]
        panels.append(
            plots.Panel(
                words.capitalize(),
                lines,
                "training step",
                "test accuracy, %",
                (100 * CHANCE, "chance"),
                limits=(45, 102),
            )
        )
    return plots.curves(plt, theme, panels, order=list(MODULES), dashed=("none",))


def _accuracy(outcomes: Outcomes, kind: str, module: str) -> float:
    return outcomes[f"{kind}: {module}"].measures["top1"]


EXPERIMENT = Experiment(
    name="temporal_order",
    title="Direction, order, identity after occlusion",
    about=(
        f"Clips of {_FRAMES} frames in two classes. *Direction*: a camera drifts over a photograph to the left or to"
        " the right (24 × 24 pixels, patches of 8). *Order*: a handwritten 0 and a 1 drift over a darkened, drifting"
        " photograph, one after the other (16 × 16, patches of 4). *Identity*: the same, and between the two another"
        " photograph covers everything; which digit was there before? *Axis*: a camera goes along one axis, then along"
        " the other (24 × 24). Played backwards, a clip of one class is one of the other, so that a model that does"
        " not know time cannot be better than 50 %."
    ),
    jobs=jobs,
    claims=claims,
    table=table,
    draw=draw,
    caption="Test accuracy over training, for every temporal module",
)
