"""Masked autoencoding: its loss, and what it is worth where labels are few."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.experiments import plots
from benchmarks.experiments.clips import Clips
from benchmarks.experiments.experiment import Claim, Experiment, Outcomes, evaluations
from benchmarks.experiments.jobs import Job
from benchmarks.experiments.settings import TRAINING_CLIPS, classifier, model, tables
from benchmarks.report.tables import Table

_SIZE, _PATCH, _FRAMES, _TESTED = (16, 16), 4, 8, 500
_STEPS, _FINE_TUNING = 3000, 300
_LABELS, _SEEDS = (100, 200, 400), (0, 1)
_STARTS = {"from scratch": "", "pre-trained": "pre-training"}


def jobs() -> list[Job]:
    """One pre-training; then classifiers of few labelled clips, with its encoder and without."""
    test = Clips("moving_digit", "test", _TESTED, _FRAMES, _SIZE)
    task = {
        "name": "masked_autoencoding",
        "mask_ratio": 0.5,
        "decoder_width": 48,
        "decoder_depth": 1,
        "decoder_heads": 4,
        "overrides": model(_SIZE[0], _PATCH, head=False),
    }
    clips = Clips("moving_digit", "train", TRAINING_CLIPS, _FRAMES, _SIZE)
    made = [Job("pre-training", tables(task, _STEPS, weight_decay=0.05), clips, test)]
    classify = classifier(10, _SIZE[0], _PATCH)
    for labels in _LABELS:
        for seed in _SEEDS:
            labelled = Clips("moving_digit", "train", labels, _FRAMES, _SIZE, 100 + seed)
            for start, name in _STARTS.items():
                settings = tables(classify, _FINE_TUNING, learning_rate=1e-3, seed=seed)
                made.append(Job(_job(start, labels, seed), settings, labelled, test, start=name))
    return made


def _job(start: str, labels: int, seed: int) -> str:
    return f"{start}, {labels} labels, seed {seed}"


def _accuracy(outcomes: Outcomes, start: str, labels: int) -> float:
    return statistics.mean(outcomes[_job(start, labels, seed)].measures["top1"] for seed in _SEEDS)


def claims(outcomes: Outcomes) -> list[Claim]:
    """Far below the patch mean; better with few labels."""
    measures = outcomes["pre-training"].measures
    loss, mean = measures["loss"], measures["baseline"]
    made = [
        Claim(
            "loss at most 0.6 of that of predicting every patch's mean",
            f"{loss:.3f} against {mean:.3f}",
            loss <= 0.6 * mean,
        )
    ]
    for labels in _LABELS:
        with_it, without = (_accuracy(outcomes, start, labels) for start in ("pre-trained", "from scratch"))
        made.append(
            Claim(
                f"{labels} labelled clips: better after pre-training than from scratch",
                f"{100 * with_it:.1f} % against {100 * without:.1f} %",
                with_it > without,
            )
        )
    return made


def table(outcomes: Outcomes) -> Table:
    """Accuracy per number of labels."""
    rows = []
    for start in _STARTS:
        for seed in _SEEDS:
            shares = (outcomes[_job(start, labels, seed)].measures["top1"] for labels in _LABELS)
            rows.append((start, str(seed), *(f"{100 * share:.1f} %" for share in shares)))
    headings = ("encoder", "seed", *(f"{labels} labels" for labels in _LABELS))
    return Table("Accuracy on test clips, 10 digits", headings, rows, text=(0,))


def draw(plt: Any, theme: Any, outcomes: Outcomes) -> Any:
    """Loss over pre-training, accuracy over labels."""
    measures = outcomes["pre-training"].measures
    loss = plots.Panel(
        "Pre-training: loss on test clips",
        {"masked autoencoder": evaluations(outcomes["pre-training"], "loss")},
        xlabel="training step",
        ylabel="normalised squared error",
        level=(measures["baseline"], "patch mean"),
    )
    lines = {start: (_LABELS, [_accuracy(outcomes, start, n) for n in _LABELS]) for start in _STARTS}
    few = plots.Panel(
        "Few labels: test accuracy, mean of seeds",
        lines,
        xlabel="labelled clips",
        ylabel="accuracy",
        level=(0.1, "chance"),
        ticks=_LABELS,
    )
    return plots.curves(plt, theme, [loss, few], order=("masked autoencoder", *_STARTS))


EXPERIMENT = Experiment(
    name="pretraining",
    title="Masked autoencoding and few labels",
    about=(
        f"A handwritten digit drifts over a drifting photograph ({_SIZE[0]} × {_SIZE[1]} pixels, patches of {_PATCH},"
        f" {_FRAMES} frames). A masked autoencoder sees half of the tubes of {TRAINING_CLIPS} clips, without labels;"
        f" then its encoder, or one with random weights, learns which of ten digits it is from 100 to 400 other clips,"
        f" in {_FINE_TUNING} steps. Test clips have other photographs and digits of other writers."
    ),
    jobs=jobs,
    claims=claims,
    table=table,
    draw=draw,
    caption="Loss of the masked autoencoder, and accuracy with few labels after it and without it",
)
