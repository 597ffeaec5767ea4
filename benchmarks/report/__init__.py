"""Results as tables on the terminal, and in README.md and docs/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.report import pages, record_tables, tables
from benchmarks.report.tables import Table, cells
from benchmarks.rows import Record, Result

__all__ = ["cells", "draw", "show", "update"]


def show(
    console: Console, results: Sequence[Result], run: dict[str, Any], records: Sequence[Record] = ()
) -> None:
    """Print the tables and everything that has to be known to read them."""
    if results:
        title = "Medians; ratios are medians over rounds of A B A B (quartiles)"
        draw(console, tables.comparisons(title, results, run))
    for table in pages.of_records(records):
        draw(console, table)
    for line in (pages.machine(run), pages.speeds(run), pages.CONVENTIONS if records else ""):
        if line:
            console.print(line, highlight=False)
    for line in record_tables.left_out(records):
        console.print(f"- not measured: {line}", highlight=False, markup=False)
    met, judged = tables.judged(results)
    if judged:
        console.print(f"{met} of {judged} targets met in this run.")


def update(file: Path | None = None, stale: bool = False) -> dict[Path, bool]:
    """Rewrite the measured tables and figures of README.md and docs/; whether each file changed.

    Args:
        file: a result file in benchmarks/results; None: the newest. Other machines keep their newest.
        stale: take results of other kernels than this checkout's too; the pages then say that they are.

    Raises:
        pages.StaleResults: results are of other kernels, and ``stale`` is not given.
        ValueError: no result file, or a page without markers.
        OSError: a file cannot be read or written.
        ImportError: matplotlib is missing.
    """
    return pages.write(pages.chosen(file, stale))


def draw(console: Console, table: Table) -> None:
    """Print a table."""
    drawn = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, heading in enumerate(table.headings):
        drawn.add_column(heading, justify="left" if index in table.text else "right", overflow="fold")
    marks = table.marks or [None] * len(table.rows)
    for row, mark in zip(table.rows, marks, strict=True):
        drawn.add_row(*row, style={True: "green", False: "red", None: ""}[mark])
    console.print(drawn)
    for note in table.notes:
        console.print(f"- {note}", highlight=False, markup=False)
