"""docs/experiments.md and its figures, written from the result files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments import experiment as files
from benchmarks.experiments.experiment import Experiment, Record, claims_table
from benchmarks.experiments.registry import EXPERIMENTS
from benchmarks.report.pages import FIGURES, TOP, machine, markdown
from benchmarks.report.plots_style import THEMES, pyplot, save, themed
from benchmarks.report.tables import Table

PAGE = TOP / "docs" / "experiments.md"
_HEAD = """# Experiments on real pixels

Does it learn? Small models, trained for minutes on two CPU cores, on clips whose answers are known exactly:
photographs and handwritten digits that ship inside scikit-image and scikit-learn are moved, zoomed and laid over each
other. Nothing is downloaded. Test clips show photographs and writers that training never saw. What did not come as
expected stays in the table. Sizes, scenes and steps were chosen by trial, so that most questions can be learned in
minutes.

```sh
python -m benchmarks.experiments               # all of them; pip install 'trecvit-kernels[benchmarks]'
python -m benchmarks.experiments memorisation  # one
python -m benchmarks.experiments report        # this page and its figures, from the result files
```

These are models of 0.1 to 0.5 million parameters on pictures of 16 to 24 pixels: they show what the parts do, not how
good they can be. All are trained by the program behind `trecvit train`. Seeds are fixed, and a training runs on one
thread, so that the same machine and versions give the same numbers again; other machines round differently."""


def write() -> dict[Path, bool]:
    """Write the page and the figures; whether each changed.

    Raises:
        FileNotFoundError: an experiment has no result file. ImportError: matplotlib is missing.
    """
    pyplot()
    records = {name: files.read(name) for name in EXPERIMENTS}
    changed = {}
    for name, record in records.items():
        for theme in THEMES:
            with themed(theme) as plt:
                where = figure(name, theme.name)
                changed[where] = save(EXPERIMENTS[name].draw(plt, theme, record.outcomes), where)
    text = page(records)
    changed[PAGE] = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
    PAGE.write_text(text, encoding="utf-8")
    return changed


def figure(name: str, theme: str) -> Path:
    """The figure of an experiment."""
    return FIGURES / f"experiment-{name.replace('_', '-')}-{theme}.png"


def page(records: dict[str, Record]) -> str:
    """The whole page."""
    parts = [_HEAD, "## Summary", markdown(summary(records))]
    for name, record in records.items():
        parts += _section(EXPERIMENTS[name], record)
    return "\n\n".join(parts) + "\n"


def summary(records: dict[str, Record]) -> Table:
    """Every claim; an empty first cell continues the experiment above."""
    rows = []
    for name, record in records.items():
        title = EXPERIMENTS[name].title
        for number, claim in enumerate(EXPERIMENTS[name].claims(record.outcomes)):
            rows.append((f"[{title}](#{_anchor(title)})" if number == 0 else "", claim))
    return claims_table(rows)


def _section(one: Experiment, record: Record) -> Sequence[str]:
    table = one.table(record.outcomes)
    light, dark = (_link(figure(one.name, theme)) for theme in ("light", "dark"))
    about = {"hardware": record.hardware, "date": record.date}
    origin = (
        f"{len(record.outcomes)} trainings, {record.seconds / 60:.1f} minutes. {machine(about)}."
        f" [{files.path(one.name).name}]({_link(files.path(one.name))})"
    )
    notes = ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    return [
        f"## {one.title}",
        one.about,
        f"**{table.title}**",
        markdown(table),
        *notes,
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img src="{light}" alt="{one.caption}"></picture>',
        origin,
    ]


def _link(path: Path) -> str:
    return Path(os.path.relpath(path, PAGE.parent)).as_posix()


def _anchor(title: str) -> str:
    """GitHub's anchor of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")
