"""Results as a table on the terminal, as a JSON file, and as the tables of README.md and docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.rows import Result

ROOT = Path(__file__).resolve().parent
RESULTS, README, PAGE = ROOT / "results", ROOT.parent / "README.md", ROOT.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
HEADINGS = ("what", "ours", "against", "takes", "ratio", "target", "met", "MB", "GB/s", "% of copy")


def cells(result: Result, copy_rate: float) -> tuple[str, ...]:
    """One row of the table, under ``HEADINGS``."""
    ratio = target = mbytes = rate = share = ""
    if result.ratio is not None and result.low is not None and result.high is not None:
        ratio = f"{_three(result.ratio)}× {'of it' if result.floor else 'faster'}"
        if result.rounds > 1:
            ratio += f" ({_three(result.low)}–{_three(result.high)})"
    if result.limit is not None:
        target = f"{'≤' if result.floor else '≥'} {result.limit:g}×"
    if result.nbytes is not None:
        mbytes = f"{result.nbytes / 1e6:.1f}"
        if result.ours:
            rate = f"{result.nbytes / result.ours / 1e9:.1f}"
            share = f"{100 * result.nbytes / result.ours / copy_rate:.0f}"
    met = {True: "yes", False: "no", None: ""}[result.met]
    ours, theirs = (_quantity(value, result.unit) for value in (result.ours, result.theirs))
    return result.what, ours, result.peer or result.note, theirs, ratio, target, met, mbytes, rate, share


def show(console: Console, results: list[Result], run: dict[str, Any]) -> None:
    """Print the table and everything that has to be known to read it."""
    table = Table(title="Medians; ratios are medians over rounds of A B A B (quartiles)", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index in (0, 2) else "right", overflow="fold")
    for result in results:
        style = {True: "green", False: "red", None: ""}[result.met]
        table.add_row(*cells(result, run["rates"]["copy"]), style=style)
    console.print(table)
    for line in (machine(run), speeds(run)):
        console.print(line)
    for result in results:
        if result.note and result.peer:
            console.print(f"- {result.what}: {result.note}")
    missed = [result for result in results if result.met is False]
    judged = [result for result in results if result.met is not None]
    console.print(f"{len(judged) - len(missed)} of {len(judged)} targets met in this run.")


def machine(run: dict[str, Any]) -> str:
    """Hardware and versions in a line."""
    hardware = run["hardware"]
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, instruction set"
        f" {hardware['instruction_set']}, {hardware['system']}, Python {hardware['python']},"
        f" torch {hardware['versions']['torch']}, commit {hardware['commit']}, {run['date']}"
    )


def speeds(run: dict[str, Any]) -> str:
    """Measured ceilings in a line."""
    rates = run["rates"]
    return (
        f"Copy into place {rates['copy'] / 1e9:.1f} GB/s, into fresh memory"
        f" {rates['copy_fresh'] / 1e9:.1f} GB/s (read + write); matrix product"
        f" {rates['matmul_float32'] / 1e9:.0f} GFLOP/s float32, {rates['matmul_bfloat16'] / 1e9:.0f} bfloat16"
    )


def save(path: Path, results: list[Result], run: dict[str, Any]) -> None:
    """Write the JSON file; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**dataclasses.asdict(result), "met": result.met} for result in results]
    path.write_text(json.dumps({**run, "rows": rows}, indent=1) + "\n")


def load(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """The inverse of ``save``."""
    run = json.loads(path.read_text())
    rows = run.pop("rows")
    return [Result(**{key: value for key, value in row.items() if key != "met"}) for row in rows], run


def default_path(run: dict[str, Any]) -> Path:
    """benchmarks/results/<cpu>-<cores>-<date>.json"""
    cpu = re.sub(r"[^a-z0-9]+", "-", run["hardware"]["cpu"].lower()).strip("-")
    return RESULTS / f"{cpu}-{run['hardware']['cores']}-cores-{run['date']}.json"


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def newest() -> Path:
    """The result file of the latest date; FileNotFoundError if there is none."""
    files = sorted(RESULTS.glob("*.json"), key=lambda path: (json.loads(path.read_text())["date"], path.name))
    if not files:
        raise FileNotFoundError("no result file in benchmarks/results: run python -m benchmarks --save")
    return files[-1]


def closest(results: list[Result]) -> list[Result]:
    """Of everything measured, in order, the one row that is nearest to missing its target or misses it most."""
    chosen: dict[str, tuple[float, Result]] = {}
    for result in results:
        if result.ratio is None or result.limit is None:
            continue
        margin = result.limit / result.ratio if result.floor else result.ratio / result.limit
        if result.what not in chosen or margin < chosen[result.what][0]:
            chosen[result.what] = margin, result
    return [result for _, result in chosen.values()]


def markdown(path: Path, page: Path) -> str:
    """The block of a page between its markers: all rows, in README.md the closest to each target."""
    results, run = load(path)
    brief = page == README
    headings = HEADINGS[:7] if brief else HEADINGS
    right = ["---" if index in (0, 2) else "--:" for index in range(len(headings))]
    judged = [result for result in results if result.met is not None]
    missed = [result for result in judged if not result.met]
    where = os.path.relpath(path, page.parent)
    lines = [
        BEGIN,
        f"Measured by `{run['command']}` and put here by `python -m benchmarks report` from [{path.name}]({where}).",
        f"Machine: {machine(run)}.",
        f"{speeds(run)}. {len(judged) - len(missed)} of {len(judged)} targets met.",
        "",
        "Times are medians; a ratio is the median over rounds in which both sides ran directly after each"
        " other, its quartiles in parentheses. `≤`: of a floor, lower is better. `≥`: times faster, higher is"
        " better."
        + (" Of each thing, the peer that comes closest; [all rows](docs/benchmarks.md)." if brief else ""),
        "",
        "| " + " | ".join(headings) + " |",
        "| " + " | ".join(right) + " |",
    ]
    for result in closest(results) if brief else results:
        row = cells(result, run["rates"]["copy"])
        lines.append("| " + " | ".join(row[: len(headings)]) + " |")
    notes = [
        f"- {result.what}: {result.note}" for result in results if result.note and result.peer and not brief
    ]
    return "\n".join([*lines, *(["", *notes] if notes else []), END])


def rewrite(page: Path, path: Path) -> bool:
    """Put the table into a page; whether it changed. ValueError if the markers are missing."""
    text = page.read_text()
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"{page.name} must have the markers {BEGIN} and {END}, in this order")
    new = text[:begin] + markdown(path, page) + text[end + len(END) :]
    page.write_text(new)
    return new != text


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "B":
        return f"{value / 1e9:.2f} GB"
    if value < 1e-3:
        return f"{_three(1e6 * value)} µs"
    return f"{value:.3f} s" if value >= 1 else f"{_three(1e3 * value)} ms"


def _three(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
