"""What an experiment consists of, and how its outcome is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiments.jobs import Job, Outcome
from benchmarks.report.plots_style import Theme
from benchmarks.report.tables import Table
from benchmarks.results import RESULTS

FOLDER = RESULTS / "experiments"
Outcomes = Mapping[str, Outcome]


@dataclass(frozen=True)
class Claim:
    """What is expected, what came, and whether that holds."""

    expected: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Experiment:
    """One question to small models.

    Attributes:
        name: on the command line, of the result file and of the figure. title: of its section.
        about: the clips and the models, in a paragraph of markdown.
        jobs: its trainings.
        claims: what was expected, judged. table: all numbers. draw: the curves, (pyplot, theme, outcomes) -> figure.
        caption: of the figure.
    """

    name: str
    title: str
    about: str
    jobs: Callable[[], list[Job]]
    claims: Callable[[Outcomes], list[Claim]]
    table: Callable[[Outcomes], Table]
    draw: Callable[[Any, Theme, Outcomes], Any]
    caption: str


@dataclass(frozen=True)
class Record:
    """An experiment's outcome with where it came from."""

    outcomes: dict[str, Outcome]
    seconds: float
    date: str
    hardware: dict[str, Any]


def path(name: str) -> Path:
    """benchmarks/results/experiments/<name>.json."""
    return FOLDER / f"{name}.json"


def write(name: str, record: Record, file: Path | None = None) -> Path:
    """Into ``path(name)``, or into another file."""
    file = file or path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"experiment": name, **dataclasses.asdict(record)}
    content["outcomes"] = list(content["outcomes"].values())
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(_rounded(content), indent=1) + "\n", encoding="utf-8")
    partial.replace(file)
    return file


def read(name: str, file: Path | None = None) -> Record:
    """FileNotFoundError if the experiment has no result file."""
    content = json.loads((file or path(name)).read_text(encoding="utf-8"))
    outcomes = {found["name"]: Outcome(**found) for found in content["outcomes"]}
    return Record(outcomes, content["seconds"], content["date"], content["hardware"])


def evaluations(outcome: Outcome, measure: str) -> tuple[list[int], list[float]]:
    """Steps and values of a measure on test clips during training."""
    lines = [line for line in outcome.curve if line["kind"] == "validation"]
    return [line["step"] for line in lines], [line[measure] for line in lines]


def claims_table(rows: Sequence[tuple[str, Claim]]) -> Table:
    """(experiment, claim) as a table."""
    return Table(
        "Summary",
        ("experiment", "expected", "found", "holds"),
        [(name, claim.expected, claim.found, "yes" if claim.holds else "**no**") for name, claim in rows],
        text=(0, 1, 2, 3),
        marks=[claim.holds for _, claim in rows],
    )


def _rounded(value: Any) -> Any:
    """Six significant digits are enough for curves."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, (list, tuple)) else value
