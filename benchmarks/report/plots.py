"""Figures of a result file: costs over frames, bandwidth of the ops, latency of streaming, scaling."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import record_tables
from benchmarks.report.plots_style import THEMES, Theme, label_lines, pyplot, save, themed
from benchmarks.report.record_tables import IMAGE, of_suite
from benchmarks.report.tables import name_of, three
from benchmarks.rows import Record, Result

# The paper's figure 3 (arXiv 2412.14294): a training step, (frames, TFLOP, GB), read from the figure by eye.
PAPER = {
    "TRecViT-B": ((32, 4.3, 12), (64, 8.6, 23)),
    "ViViT-L 1x16x16": ((32, 23, 138), (64, 70, 510)),
    "ViViT-B 1x16x16": ((32, 7.6, 53), (64, 24, 198)),
    "ViViT-L factorised self-attention 1x16x16": ((32, 7.4, 16), (64, 14.7, 28)),
}
# Label of the records -> (label at the line, colour, dashes).
_FLOP_LINES = {
    "TRecViT-B": ("TRecViT-B", 0, "-"),
    "ViViT-L 1x16x16": ("ViViT-L 1×16×16", 1, "-"),
    "ViViT-L 2x16x16": ("ViViT-L 2×16×16", 4, "-"),
    "ViViT-B 1x16x16": ("ViViT-B 1×16×16", 2, "-"),
    "ViViT-L factorised self-attention 1x16x16": ("ViViT-L fact. self-att.", 3, "-"),
    "TimeSformer-L": ("TimeSformer-L", 5, "-"),
}
_MEMORY_LINES = {
    "TRecViT-B": ("TRecViT-B", 0, "-"),
    "TRecViT-B, checkpointed blocks": ("TRecViT-B, checkpoints", 0, ":"),
    "ViViT-L 1x16x16, eager attention": ("ViViT-L 1×16×16, eager", 1, "-"),
    "ViViT-L 1x16x16, flash attention": ("ViViT-L 1×16×16, flash", 1, "--"),
    "ViViT-L 2x16x16, eager attention": ("ViViT-L 2×16×16, eager", 4, "-"),
    "ViViT-L 2x16x16, flash attention": ("ViViT-L 2×16×16, flash", 4, "--"),
    "ViViT-B 1x16x16, eager attention": ("ViViT-B 1×16×16, eager", 2, "-"),
    "ViViT-B 1x16x16, flash attention": ("ViViT-B 1×16×16, flash", 2, "--"),
    "ViViT-L factorised self-attention 1x16x16, eager attention": ("ViViT-L fact. self-att.", 3, "-"),
}
_SCALED = (  # value, its slope, unit, title, label
    ("seconds", "slope_time", 1.0, "Time", "time, s"),
    ("bytes", "slope_bytes", 1e9, "Memory", "memory, GB (10⁹ bytes)"),
)
_MOST_BARS, _MOST_STREAMS = 24, 4
_MULTIPLY = ("recurrent_mixer", "spatial_attention")  # bound by their matrix products, not by bytes
_COPY = "copy of the same bytes"
Draw = Callable[[Any, Theme], Any]  # (pyplot, theme) -> figure


def draw(
    results: Sequence[Result], records: Sequence[Record], about: dict[str, Any], folder: Path, machine: str
) -> dict[Path, bool]:
    """Write <figure>-<machine>-<theme>.png for whatever there are values of; whether each file changed.

    Raises:
        ImportError: matplotlib is missing.
    """
    pyplot()
    figures: dict[str, Draw] = {
        "costs": lambda plt, theme: costs(plt, theme, records),
        "streaming": lambda plt, theme: streaming(plt, theme, records),
        "bandwidth": lambda plt, theme: bandwidth(plt, theme, results, about["rates"]["copy"]),
        "scaling": lambda plt, theme: scaling(plt, theme, records),
    }
    changed = {}
    for name in drawable(results, records):
        for theme in THEMES:
            with themed(theme) as plt:
                path = folder / f"{name}-{machine}-{theme.name}.png"
                changed[path] = save(figures[name](plt, theme), path)
    return changed


def drawable(results: Sequence[Result], records: Sequence[Record]) -> list[str]:
    """Names of the figures that there are values for."""
    there = {
        "costs": _over_frames(records, "flops", "flop") or _over_frames(records, "memory", "total"),
        "streaming": any(r.values.get("latencies") for r in of_suite(records, "streaming")),
        "bandwidth": any(map(_is_bound_by_bytes, results)),
        "scaling": any("size" in r.at for r in of_suite(records, "scaling")),
    }
    return [name for name, found in there.items() if found]


def costs(plt: Any, theme: Theme, records: Sequence[Record]) -> Any:
    """The paper's figure 3: FLOPs and peak memory of a training step over frames, the paper's points beside ours."""
    panels = [
        ("flops", "flop", 1e12, _FLOP_LINES, "FLOPs of a training step", "TFLOP", 1),
        ("memory", "total", 1e9, _MEMORY_LINES, "Peak memory of a training step", "GB (10⁹ bytes)", 2),
    ]
    panels = [panel for panel in panels if _over_frames(records, panel[0], panel[1])]
    if not panels:
        raise ValueError("costs: no records of the suites flops or memory for a training step over frames")
    width = 5.6 * len(panels)  # inches
    figure, every = plt.subplots(1, len(panels), figsize=(width, 4.4), squeeze=False)
    # Room for the lines' names on the right of each panel.
    figure.subplots_adjust(left=0.66 / width, right=1 - 2.05 / width, wspace=0.88, top=0.91, bottom=0.19)
    for axes, (suite, name, unit, styles, title, label, column) in zip(every[0], panels, strict=True):
        lines = _over_frames(records, suite, name)
        ends = []
        for what, (short, colour, dashes) in styles.items():
            if what not in lines:
                continue
            frames, values = zip(*sorted(lines[what].items()), strict=True)
            values = tuple(value / unit for value in values)
            ours = what.startswith(record_tables.OURS)
            axes.plot(
                frames, values, dashes, color=theme.lines[colour], marker="o", markersize=3.5,
                linewidth=2.6 if ours and dashes == "-" else 1.5, zorder=4 if ours else 3,
            )  # fmt: skip
            ends.append((values[-1], short, theme.lines[colour]))
        for what, points in PAPER.items():
            key = what if what in styles else f"{what}, eager attention"
            axes.plot(
                [point[0] for point in points], [point[column] for point in points], linestyle="none", marker="D",
                markersize=6.5, markerfacecolor="none", markeredgewidth=1.4, color=theme.lines[styles[key][1]],
                zorder=5,
            )  # fmt: skip
        sizes = sorted({size for line in lines.values() for size in line})
        axes.set(xscale="log", yscale="log", title=title, xlabel=f"frames of {IMAGE}²", ylabel=label)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        _plain_log_ticks(axes.yaxis)
        label_lines(axes, ends)
    marker = plt.Line2D(
        [], [], linestyle="none", marker="D", markersize=6.5, markerfacecolor="none", color=theme.text
    )
    figure.legend(
        [marker], ["paper, read from its figure 3 by eye (ViViT with 1×16×16 patches)"], loc="lower left",
        bbox_to_anchor=(0.02, 0.0), handletextpad=0.4,
    )  # fmt: skip
    return figure


def bandwidth(plt: Any, theme: Theme, results: Sequence[Result], copy_rate: float) -> Any:
    """Bytes per second of ops without matrix products, as a share of the copy's, beside copies of the same bytes."""
    bars = _bars(results, copy_rate)
    if not bars:
        raise ValueError("bandwidth: no result of an op without matrix products has bytes and a time")
    names = list(dict.fromkeys(bar[0] for bar in bars))
    figure, axes = plt.subplots(
        figsize=(9.6, 1.5 + 0.22 * len(bars) + 0.3 * len(names)), layout="constrained"
    )
    across, y, ticks, labels = axes.get_yaxis_transform(), 0.0, [], []
    for name in names:
        ticks.append(y)
        labels.append(name)
        for _, label, share, floor in (bar for bar in bars if bar[0] == name):
            y += 1.0
            axes.barh(y, share, height=0.72, color=theme.lines[0], zorder=3)
            axes.text(1.01, y, f"{share:.0f} %", va="center", transform=across)
            if floor is not None:
                axes.plot([floor, floor], [y - 0.42, y + 0.42], color=theme.lines[1], linewidth=2.4, zorder=5)
            ticks.append(y)
            labels.append(label)
        y += 1.35
    axes.set_ylim(y - 0.6, -0.9)
    axes.set_xlim(0, 1.04 * max(100.0, *(max(bar[2], bar[3] or 0) for bar in bars)))
    axes.set_yticks(ticks, labels)
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in names else "normal")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_title("Bytes moved per second, of the machine's copy")
    axes.set_xlabel("least bytes / time, as a share of the copy bandwidth (%)")
    rate = f"{copy_rate / 1e9:.1f} GB/s" if copy_rate < 1e12 else f"{copy_rate / 1e12:.2f} TB/s"
    marks = [axes.axvline(100, color=theme.text, linewidth=1.2, linestyle="--", zorder=4)]
    words = [f"floor: copy into existing memory, {rate}"]
    if any(bar[3] is not None for bar in bars):
        marks.append(
            plt.Line2D(
                [], [], color=theme.lines[1], linestyle="none", marker="|", markersize=11, markeredgewidth=2.4
            )
        )
        words.append("copy of the row's own bytes")
    figure.legend(marks, words, loc="outside lower center", ncols=2)
    return figure


def streaming(plt: Any, theme: Theme, records: Sequence[Record]) -> Any:
    """Histogram of the latency per frame with p50 and p99, and resident memory over the stream."""
    streams = [r for r in of_suite(records, "streaming") if r.values.get("latencies")][:_MOST_STREAMS]
    if not streams:
        raise ValueError("streaming: no record of the suite streaming has latencies")
    sampled = [r for r in streams if len(r.values.get("resident") or []) > 1]
    figure = plt.figure(figsize=(10.4, 0.7 + 2.4 * max(len(streams), 1.35)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)
    grid = figure.add_gridspec(len(streams), 2 if sampled else 1, width_ratios=[1.25, 1] if sampled else [1])
    for row, record in enumerate(streams):
        axes = figure.add_subplot(grid[row, 0])
        values = record.values
        latencies = [1e3 * latency for latency in values["latencies"]]
        p50, p99 = 1e3 * values["p50"], 1e3 * values["p99"]
        low = min(latencies)
        high = max(p99 + 0.25 * (p99 - low), 1.02 * p99, low * 1.001)
        axes.hist(
            [x for x in latencies if x <= high], bins=70, range=(low, high), color=theme.lines[0], zorder=3
        )
        top = 1.28 * axes.get_ylim()[1]
        axes.set_ylim(0, top)
        for name, value, side in (("p50", p50, "right"), ("p99", p99, "left")):
            axes.axvline(value, color=theme.lines[1], linewidth=1.6, zorder=4)
            right = side == "left"
            axes.annotate(
                f"{name} {three(value)} ms", (value, 0.97 * top), xytext=(4 if right else -4, 0), va="top",
                textcoords="offset points", ha=side, color=theme.lines[1], fontweight="bold",
            )  # fmt: skip
        axes.set_xlim(low - 0.12 * (high - low), high + 0.12 * (high - low))
        axes.set(title=record.what, ylabel="frames")
        beyond = sum(x > high for x in latencies)
        more = f"; {beyond} slower, up to {three(max(latencies))} ms, not shown" if beyond else ""
        axes.set_xlabel(f"latency of a frame, ms ({len(latencies)} frames{more})")
        axes.grid(False, axis="x")
    if sampled:
        _resident(figure.add_subplot(grid[:, 1]), theme, sampled)
    return figure


def _resident(axes: Any, theme: Theme, sampled: Sequence[Record]) -> None:
    top = 0.0
    for colour, record in enumerate(sampled):
        held = [value / 1e9 for value in record.values["resident"]]
        at = record.values.get("resident_at") or list(range(len(held)))
        text = f"{record.what}:\n{record_tables.growth(record.values)}"
        axes.plot(
            at, held, color=theme.lines[colour], linestyle=("-", "--")[colour % 2], label=text, zorder=3
        )
        top = max(top, *held)
    axes.set_ylim(0, 1.25 * top)
    axes.legend(loc="lower left")
    axes.set(title="Memory over the stream", xlabel="frame", ylabel="GB (10⁹ bytes)")


def scaling(plt: Any, theme: Theme, records: Sequence[Record]) -> Any:
    """Time and memory over frames, tokens and batch in log-log, the fitted slopes in the legend."""
    points = [r for r in of_suite(records, "scaling") if "size" in r.at and "axis" in r.at]
    if not points:
        raise ValueError("scaling: no record of the suite scaling has a size")
    fits = {_line_of(r): r.values for r in records if r.suite == "scaling" and r.what.endswith(" slope")}
    dtypes = len({r.at.get("dtype") for r in points}) > 1
    grown = list(dict.fromkeys(str(r.at["axis"]) for r in points))
    lines = {axis: list(dict.fromkeys(_line_of(r) for r in points if r.at["axis"] == axis)) for axis in grown}
    styles = {key: index for index, key in enumerate(dict.fromkeys(_style_of(_line_of(r)) for r in points))}
    heights = [max(2.7, 0.6 * len(lines[axis])) for axis in grown]  # inches; a line takes three in the legend
    figure, every = plt.subplots(
        len(grown), 3, figsize=(10.8, 0.2 + sum(heights)), height_ratios=heights, width_ratios=(1.2, 1.2, 1),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    for (*panels, key), axis in zip(every, grown, strict=True):
        marks: dict[str, Any] = {}
        for line in lines[axis]:
            index = styles[_style_of(line)]
            text = _slopes(
                f"{line[0]}, {line[2]}" if dtypes else line[0], fits.get(line, fits.get((*line[:2], ""), {}))
            )
            for axes, (name, _, unit, _, _) in zip(panels, _SCALED, strict=True):
                at = sorted(
                    (int(r.at["size"]), r.values[name] / unit)
                    for r in points
                    if _line_of(r) == line and r.values.get(name)
                )
                if at:
                    style = {"marker": "os^DvP"[index % 6], "color": theme.lines[index % len(theme.lines)]}
                    (marks[text],) = axes.plot(*zip(*at, strict=True), **style, zorder=3)
        for axes, (_, _, _, title, label) in zip(panels, _SCALED, strict=True):
            axes.set_visible(bool(axes.lines))
            axes.set(xscale="log", yscale="log", title=f"{title} over {axis}", xlabel=axis, ylabel=label)
            sizes = sorted({int(r.at["size"]) for r in points if r.at["axis"] == axis})
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45 if len(sizes) > 5 else 0)
            axes.minorticks_off()
            _plain_log_ticks(axes.yaxis)
        key.axis("off")
        key.legend(
            marks.values(), marks.keys(), loc="center left", borderaxespad=0.0, handlelength=1.6,
            title="slopes fitted to the upper half", alignment="left",
        )  # fmt: skip
    return figure


def _slopes(what: str, fitted: dict[str, Any]) -> str:
    """A line's name in the legend, with the slopes fitted to it."""
    found = [
        f"{fitted[slope]:.2f} {title.lower()}"
        for _, slope, _, title, _ in _SCALED
        if isinstance(fitted.get(slope), int | float)
    ]
    return "\n".join([*textwrap.wrap(what, 36), *([f"slope {', '.join(found)}"] if found else [])])


def _line_of(record: Record) -> tuple[str, str, str]:
    """What, axis and dtype of a scaling record, of a point or of the slope through them."""
    return record.what.removesuffix(" slope"), str(record.at.get("axis")), str(record.at.get("dtype", ""))


def _style_of(line: tuple[str, str, str]) -> tuple[str, str]:
    """What looks the same over every axis: the name without sizes, and the dtype."""
    return name_of(line[0]), line[2]


def _over_frames(records: Sequence[Record], suite: str, name: str) -> dict[str, dict[int, float]]:
    """Label -> frames -> value of a training step at the paper's image size; of the dtypes float32, or the first."""
    found = [
        r
        for r in of_suite(records, suite)
        if r.at.get("mode") == "training"
        and r.at.get("image", IMAGE) == IMAGE
        and name in r.values
        and "frames" in r.at
    ]
    dtypes = [str(r.at.get("dtype", "")) for r in found]
    dtype = "float32" if "float32" in dtypes else next(iter(dtypes), "")
    lines: dict[str, dict[int, float]] = {}
    for r in found:
        if str(r.at.get("dtype", "")) == dtype:
            lines.setdefault(r.what, {})[int(r.at["frames"])] = r.values[name]
    styles = _FLOP_LINES if suite == "flops" else _MEMORY_LINES
    return {what: line for what, line in lines.items() if what in styles and len(line) > 1}


def _bars(results: Sequence[Result], copy_rate: float) -> list[tuple[str, str, float, float | None]]:
    """(op and direction, dtype and shape, % of the copy bandwidth, that of a copy of the row's bytes).

    Of too many, those in 32 bits, and of these the largest; the tables have all.
    """
    rows: dict[str, list[Result]] = {}
    for r in filter(_is_bound_by_bytes, results):
        rows.setdefault(r.what, []).append(r)
    if len(rows) > _MOST_BARS:
        usual = [what for what in rows if ", float32" in what or ", complex64" in what]
        rows = {what: rows[what] for what in usual} or rows
    names = sorted({name_of(what) for what in rows}, key=_by_op)
    each = max(1, _MOST_BARS // len(names)) if names else 0
    bars = []
    for name in names:
        whats = [what for what in rows if name_of(what) == name]
        largest = sorted(whats, key=lambda what: -(rows[what][0].nbytes or 0))[:each]
        for what in (what for what in whats if what in largest):
            same = rows[what]
            share = statistics.median(
                100 * r.nbytes / r.ours / copy_rate for r in same if r.nbytes and r.ours
            )
            floors = [
                100 * r.nbytes / r.theirs / copy_rate
                for r in same
                if r.peer == _COPY and r.nbytes and r.theirs
            ]
            bars.append((name, what.removeprefix(name).lstrip(", "), share, floors[0] if floors else None))
    return bars


def _by_op(name: str) -> tuple[str, bool, str]:
    """Place of "complex scan forward": op, then real before complex, then the direction."""
    op, _, direction = name.removeprefix("complex ").partition(" ")
    return op, name.startswith("complex "), direction


def _is_bound_by_bytes(result: Result) -> bool:
    moves = bool(result.nbytes and result.ours and result.unit == "s")
    return moves and _by_op(name_of(result.what))[0] not in _MULTIPLY


def _plain_log_ticks(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten where few decades are shown, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(
        LogLocator(base=10, subs=(1.0, 2.0, 5.0) if high / low < 2e3 else (1.0,), numticks=20)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"$10^{{{math.log10(value):.0f}}}$" if value > 0 else ""
