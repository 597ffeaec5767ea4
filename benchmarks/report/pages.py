"""The measured parts of README.md, docs/benchmarks.md and docs/results/, written from result files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results as files
from benchmarks.report import plots, record_tables, tables
from benchmarks.report.tables import Table
from benchmarks.rows import Record, Result
from benchmarks.suites import SUITES
from benchmarks.suites.model import PRODUCTS

TOP = files.ROOT.parent
README, PAGE = TOP / "README.md", TOP / "docs" / "benchmarks.md"
DETAILS, FIGURES = TOP / "docs" / "results", TOP / "docs" / "figures"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
THEMES = ("light", "dark")
_COMMAND = "python -m benchmarks"
STALE = "**These numbers are not of this checkout's kernels"
_GROUPS = ("ops", "layer", "model", "streaming", "memory", "integrations")
_FIGURES = {  # file name -> what it shows, in words
    "costs": "FLOPs and peak memory of a training step over frames, TRecViT against ViViT",
    "streaming": "Latency of streamed frames, and memory over a long stream",
    "bandwidth": "Bytes moved per second, of the machine's copy, by ops without matrix products",
    "scaling": "Time and memory over frames, tokens and batch, with fitted slopes",
}
CONVENTIONS = (
    "2 FLOPs per multiply-add. GB are 10⁹ bytes; in GiB (2³⁰ bytes) numbers are 7 % smaller. FLOPs are those of matrix"
    " products, convolutions, attention and of this package's ops; a training step is forward and backward. Analytic:"
    " computed by hand, because no library has the model."
)
_HOW_TIMED = (
    "Times are medians; a ratio is the median over rounds in which both sides ran directly after each other, which need"
    " not be the ratio of the medians where the machine's speed changed between rounds. Quartiles are in parentheses."
    " `≤`: of a floor, lower is better. `≥`: times faster, higher is better."
)


_FASTER_PRODUCTS = (
    f'A ratio below 1 of "{PRODUCTS}": in float32 our linear layers call oneDNN, whose products are the faster ones'
    " there; the floor's are MKL's."
)
_BY_BYTES = "Ops with matrix products are not in the figure: the tables measure them against these products."
_INSTRUCTION_SETS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "baseline": "SSE2"}


class StaleResults(ValueError):
    """Results were measured on other kernels than those of this checkout."""


@dataclass(frozen=True)
class Run:
    """A result file, read.

    stale: the pages have to say that its kernels are not those of this checkout.
    """

    path: Path
    results: list[Result]
    records: list[Record]
    about: dict[str, Any]
    stale: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU did the work."""
        if "settings" in self.about:
            return files.on_gpu(self.about)
        return self.about["hardware"].get("gpu") not in (None, "none")

    @property
    def machine(self) -> str:
        """The GPU that did the work, or the kind of CPU: results of one machine never replace another's."""
        hardware = self.about["hardware"]
        if self.on_gpu:
            return hardware["gpu"]
        found = hardware["instruction_set"]
        return f"CPU with {_INSTRUCTION_SETS[found]}" if found in _INSTRUCTION_SETS else "CPU"

    @property
    def slug(self) -> str:
        """The machine as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.machine.lower()).strip("-")

    @property
    def of_these_kernels(self) -> bool:
        """Whether the kernels measured are those of this checkout; a file that does not name its kernels: no."""
        return self.about.get("kernels") == files.kernels_digest()

    def figures(self) -> list[str]:
        """Names of the figures for which the file has values."""
        return plots.drawable(self.results, self.records)


def read(path: Path, stale: bool = False) -> Run:
    """A result file. OSError or ValueError if it is none."""
    results, records, about = files.load(path)
    return Run(path, results, records, about, stale)


def newest() -> list[Run]:
    """Of every machine its latest result file; FileNotFoundError if there is none."""
    runs: dict[str, Run] = {}
    every = [read(path) for path in files.RESULTS.glob("*.json")]
    for run in sorted(every, key=lambda run: (run.about["date"], run.path.name)):
        runs[run.machine] = run
    if not runs:
        raise FileNotFoundError("no result file in benchmarks/results: run python -m benchmarks --save")
    return list(runs.values())


def ordered(runs: Sequence[Run]) -> list[Run]:
    """As the pages show them: CPUs first, those of this checkout's kernels before others, then the newest."""
    newest_first = sorted(runs, key=lambda run: (run.about["date"], run.machine), reverse=True)
    return sorted(newest_first, key=lambda run: (run.on_gpu, run.stale))


def chosen(file: Path | None, allow_stale: bool = False) -> list[Run]:
    """The runs that the pages show: ``file`` for its machine, the newest for the others.

    Raises:
        StaleResults: a run's kernels are not those of this checkout; with ``allow_stale`` the pages say it instead.
        ValueError: ``file`` is not in benchmarks/results, where the pages could link to it.
    """
    if file is None:
        runs = newest()
    else:
        if file.resolve().parent != files.RESULTS:
            raise ValueError(
                f"{file} must be in benchmarks/results, so that the pages can link to it: copy it there"
            )
        run = read(file.resolve())
        runs = [run, *(other for other in newest() if other.machine != run.machine)]
    stale = [run for run in runs if not run.of_these_kernels]
    if stale and not allow_stale:
        names = ", ".join(f"{run.path.name} (commit {run.about['hardware']['commit']})" for run in stale)
        raise StaleResults(
            f"measured on other kernels than those of this checkout: {names}. Measure again with python -m benchmarks"
            " --save, or let the pages say it with --stale"
        )
    return ordered([Run(r.path, r.results, r.records, r.about, stale=r in stale) for r in runs])


def write(runs: Sequence[Run]) -> dict[Path, bool]:
    """Write pages and figures; whether each changed. ImportError without matplotlib, ValueError without markers."""
    texts = {page: put(page, block(page, runs)) for page in (README, PAGE)}
    texts |= {DETAILS / f"{run.slug}.md": details(run) for run in runs}
    changed: dict[Path, bool] = {}
    for run in runs:
        changed |= plots.draw(run.results, run.records, run.about, FIGURES, run.slug)
    for page, text in texts.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        changed[page] = not page.exists() or page.read_text(encoding="utf-8") != text
        page.write_text(text, encoding="utf-8")
    return changed


def put(page: Path, new: str) -> str:
    """The page's text with another block between its markers; ValueError if they are missing."""
    text = page.read_text(encoding="utf-8")
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"{page.name} must have the markers {BEGIN} and {END}, in this order")
    return text[:begin] + new + text[end + len(END) :]


def named(page: Path) -> dict[Path, bool]:
    """The result files that a page says it was written from, and whether it calls them stale."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"\]\([^)\s]*benchmarks/results/([^)\s/]+\.json)\)([^\n]*)", text)
    return {files.RESULTS / name: STALE in rest for name, rest in found}


def block(page: Path, runs: Sequence[Run]) -> str:
    """What stands between the markers of README.md (one CPU, the closest to each target) or docs/benchmarks.md."""
    parts = list(_glance(page, runs))
    cpus = [run for run in runs if not run.on_gpu]
    left_out = cpus[1:] if page == README else []
    for run in runs:
        if run not in left_out:
            parts += _on_machine(page, run)
    for run in left_out:
        other = os.path.relpath(PAGE, page.parent)
        parts.append(f"Measured on a {run.machine} too ([{PAGE.name}]({other})): {source(run, page)}")
    return "\n\n".join([BEGIN, *parts, END])


def details(run: Run) -> str:
    """docs/results/<machine>.md: every table of a run."""
    page = DETAILS / f"{run.slug}.md"
    parts = [
        f"# Results: {run.machine}",
        "Written by `python -m benchmarks report`; what the columns mean is in [benchmarks.md](../benchmarks.md).",
        origin(run, page),
        f"{speeds(run.about)} {_HOW_TIMED}",
        CONVENTIONS,
    ]
    for title, rows in _grouped(run.results).items():
        parts += _section(tables.comparisons(title, rows, run.about))
    for table in of_records(run.records):
        parts += _section(table)
    if missing := record_tables.left_out(run.records):
        parts += ["## Not measured", "\n".join(f"- {line}" for line in missing)]
    return "\n\n".join(parts) + "\n"


def _grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results under their titles: the ops by operation and direction, the others by group."""
    place = {group: index for index, group in enumerate(_GROUPS)}
    titled: dict[str, list[Result]] = {}
    for r in sorted(results, key=lambda r: place.get(r.group, len(place))):
        title = f"Ops: {tables.name_of(r.what)}" if r.group == "ops" else r.group.capitalize()
        titled.setdefault(title, []).append(r)
    return titled


def of_records(records: Sequence[Record]) -> list[Table]:
    """Every table of values that are no ratio, in the order of the pages."""
    made = (
        record_tables.flops,
        record_tables.memory,
        record_tables.model,
        record_tables.streaming,
        record_tables.scaling,
        record_tables.others,
    )
    return [table for make in made for table in make(records)]


def markdown(table: Table) -> str:
    """The table's rows, without its title."""
    rule = ["---" if index in table.text else "--:" for index in range(len(table.headings))]
    rows = [table.headings, rule, *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def machine(about: dict[str, Any]) -> str:
    """Hardware and versions in a line."""
    hardware = about["hardware"]
    gpu = hardware.get("gpu")
    parts = [gpu] if gpu and gpu != "none" else []
    parts += [f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads"]
    parts += [
        f"instruction set {hardware['instruction_set']}",
        hardware["system"],
        f"Python {hardware['python']}",
    ]
    parts += [f"torch {hardware['versions']['torch']}", f"commit {hardware['commit']}", about["date"]]
    return ", ".join(parts)


def speeds(about: dict[str, Any]) -> str:
    """Measured ceilings in a sentence."""
    rates = about.get("rates", {})
    parts = []
    if "copy" in rates:
        fresh = f", into fresh memory {_rate(rates['copy_fresh'])}" if "copy_fresh" in rates else ""
        parts.append(f"Copy into place {_rate(rates['copy'])}{fresh} (read + write)")
    widened = about.get("multiplied_in_float32", ())
    products = [
        f"{rates[name] / 1e9:.0f} GFLOP/s {dtype}"
        for dtype in ("float32", "bfloat16")
        if dtype not in widened and (name := f"matmul_{dtype}") in rates
    ]
    if products:
        parts.append(f"matrix product {', '.join(products)}")
    if "bfloat16" in widened:
        parts.append("bfloat16: multiplied in float32")
    return "; ".join(parts) + "." if parts else ""


def origin(run: Run, page: Path) -> str:
    """Where the numbers come from, and whether they still hold."""
    about = run.about
    lines = f"Measured by `{command(about['command'])}`: {source(run, page)}"
    if about.get("settings", {}).get("quick"):
        lines += " A quick run: few rounds, so that quartiles are wide."
    kernels = f", kernels `{about['kernels']}`" if "kernels" in about else ""
    return f"{lines}\nMachine: {machine(about)}{kernels}."


def command(given: str) -> str:
    """Commands that went on with one file, as the one that measures the same; others as they are."""
    chosen: list[str] = []
    for part in given.split(" && "):
        _, start, rest = part.partition(_COMMAND)
        words = rest.split()
        names = [word for word in words if word in SUITES]
        if not start or set(words) - {*names, "--save"}:
            return given
        chosen += names or SUITES
    names = [name for name in SUITES if name in chosen]
    return " ".join([_COMMAND, *(names if len(names) < len(SUITES) else [])])


def source(run: Run, page: Path) -> str:
    """Link to the result file, and on the same line that it is stale if so: ``named`` reads it back."""
    link = f"[{run.path.name}]({os.path.relpath(run.path, page.parent)})."
    return (
        f"{link} {STALE}, but of those at commit {run.about['hardware']['commit']}.**" if run.stale else link
    )


def _glance(page: Path, runs: Sequence[Run]) -> Iterator[str]:
    """What does not depend on the machine: operations, parameters and memory under fake tensors."""
    for run in runs:
        table = record_tables.versus_vivit(run.records)
        if table is None:
            continue
        yield "### Against ViViT-L"
        yield (
            f"{table.title}, batch 1. The ratio says how many times more ViViT-L needs. The paper gives it a token per"
            " patch of every frame (1×16×16); it is usually run with tubelets of two frames (2×16×16)."
        )
        yield markdown(table)
        if page != README:
            for more in record_tables.flops(run.records)[:1]:
                yield f"**{more.title}**"
                yield markdown(more)
        yield f"{CONVENTIONS} Numbers: {source(run, page)}"
        if "costs" in run.figures():
            yield picture(page, "costs", run)
        return


def _on_machine(page: Path, run: Run) -> Iterator[str]:
    """What was timed on one machine."""
    if not (run.results or any(r.suite in ("model", "streaming", "scaling") for r in run.records)):
        return
    link = f"[all tables]({os.path.relpath(DETAILS / f'{run.slug}.md', page.parent)})"
    met, judged = tables.judged(run.results)
    yield f"### Measured on {'' if run.on_gpu else 'a '}{run.machine}"
    targets = f"{met} of {judged} targets met; " if judged else ""
    yield f"{origin(run, page)}\n{speeds(run.about)} {targets}{link}."
    figures = [name for name in run.figures() if name != "costs"]
    for table in record_tables.streaming(run.records):
        yield f"**{table.title}**"
        yield markdown(table)
    if "streaming" in figures:
        yield picture(page, "streaming", run)
    brief = page == README
    more = [] if brief else [*record_tables.model(run.records), *record_tables.scaling(run.records)[:1]]
    for table in more:
        yield f"**{table.title}**"
        yield markdown(table)
    if "scaling" in figures:
        yield picture(page, "scaling", run)
    if held := [r for r in run.results if r.group == "memory" and r.limit is not None]:
        yield "**Memory targets, of training**"
        yield markdown(tables.comparisons("", held, run.about, brief=True))
    if timed := [r for r in run.results if r.group != "memory"]:
        rows = (tables.closest_by_name if brief else tables.closest)(timed)
        each = "operation, the shape, dtype and peer" if brief else "operation, shape and dtype, the peer"
        yield f"**Speed.** {_HOW_TIMED} Of each {each} nearest to missing the target, or missing it most."
        yield markdown(tables.comparisons("", rows, run.about, brief=True))
        if any(r.peer == PRODUCTS and r.ratio is not None and r.ratio < 1 for r in rows):
            yield _FASTER_PRODUCTS
    if "bandwidth" in figures:
        yield f"{picture(page, 'bandwidth', run)}\n\n{_BY_BYTES}"


def picture(page: Path, name: str, run: Run) -> str:
    """A figure that follows the reader's theme."""
    light, dark = (
        os.path.relpath(FIGURES / f"{name}-{run.slug}-{theme}.png", page.parent) for theme in THEMES
    )
    text = f"{_FIGURES[name]} ({run.machine})"
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img src="{light}" alt="{text}"></picture>'
    )


def _section(table: Table) -> Iterator[str]:
    yield f"## {table.title}"
    yield markdown(table)
    if table.notes:
        yield "\n".join(f"- {note}" for note in table.notes)


def _rate(rate: float) -> str:
    return f"{rate / 1e12:.2f} TB/s" if rate >= 1e12 else f"{rate / 1e9:.1f} GB/s"
