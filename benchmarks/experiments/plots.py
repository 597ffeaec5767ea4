"""Figures of the experiments: lines over steps or sizes, one panel per question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.plots_style import Theme, label_lines

Line = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        lines: by name; (x, y). level: a value to compare with, and what it is. ticks: of a logarithmic x axis.
        limits: of the y axis.
    """

    title: str
    lines: Mapping[str, Line]
    xlabel: str
    ylabel: str
    level: tuple[float, str] | None = None
    ticks: Sequence[float] | None = None
    limits: tuple[float, float] | None = None


def curves(
    plt: Any, theme: Theme, panels: Sequence[Panel], order: Sequence[str], dashed: Sequence[str] = ()
) -> Any:
    """Panels, two in a row, lines named at their ends; a name has the same colour in every panel.

    Args:
        order: all names, in the order of the colours. dashed: names of what is only there to compare with.
    """
    colours = {name: theme.lines[i % len(theme.lines)] for i, name in enumerate(order)}
    columns, rows = min(len(panels), 2), -(-len(panels) // 2)
    width, height = 5.2 * columns, 3.6 * rows  # inches
    figure, every = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    # Room for the lines' names on the right of each panel.
    figure.subplots_adjust(
        left=0.7 / width,
        right=1 - 1.75 / width,
        top=1 - 0.4 / height,
        bottom=0.55 / height,
        wspace=0.85,
        hspace=0.42,
    )
    for axes in every.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(every.flat, panels):
        ends = []
        for name, (x, y) in panel.lines.items():
            style = "--" if name in dashed else "-"
            axes.plot(x, y, style, color=colours[name], marker="o", markersize=3.5)
            ends.append((y[-1], name, colours[name]))
        if panel.level is not None:
            axes.axhline(panel.level[0], color=theme.lines[-1], linestyle=":", linewidth=1.4)
            ends.append((*panel.level, theme.lines[-1]))
        axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
        if panel.limits is not None:
            axes.set_ylim(*panel.limits)
        if panel.ticks is not None:
            axes.set_xscale("log", base=2)
            axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
            axes.minorticks_off()
        label_lines(axes, ends)
    return figure
