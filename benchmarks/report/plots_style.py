"""How figures look: two themes, colours that colour-blind readers can tell apart, labels at the lines themselves."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DPI = 160
_COLOURS = 128
_FONT = 10.0  # points


@dataclass(frozen=True)
class Theme:
    """Colours of one theme; ``lines`` in the same order in all, after Okabe and Ito, darker on white.

    quiet: for grids and bars of lesser importance.
    """

    name: str
    background: str
    text: str
    quiet: str
    lines: Sequence[str]


THEMES = (
    Theme(
        "light",
        "#ffffff",
        "#1f2328",
        "#d0d7de",
        ("#0072b2", "#c24a00", "#9a4a8a", "#00785a", "#80660a", "#57606a"),
    ),
    Theme(
        "dark",
        "#0d1117",
        "#e6edf3",
        "#30363d",
        ("#56b4e9", "#ff8b45", "#e59fd0", "#2ec49b", "#e3cb4c", "#9198a1"),
    ),
)


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files. ImportError with what to install."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the figures need matplotlib: pip install 'trecvit-kernels[benchmarks]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


@contextlib.contextmanager
def themed(theme: Theme) -> Iterator[Any]:
    """pyplot with the theme's colours, nothing taken from the user's own settings."""
    plt = pyplot()
    settings = {
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.quiet,
        "axes.labelcolor": theme.text,
        "axes.titlecolor": theme.text,
        "text.color": theme.text,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text,
        "grid.color": theme.quiet,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": _FONT + 1.5,
        "axes.titleweight": "bold",
        "axes.titlepad": 10.0,
        "font.family": "DejaVu Sans",
        "font.size": _FONT,
        "legend.facecolor": theme.background,
        "legend.edgecolor": "none",
        "legend.framealpha": 1.0,
        "lines.linewidth": 1.8,
        "lines.markersize": 5.0,
        "savefig.dpi": _DPI,
    }
    with plt.style.context("default"), plt.rc_context(settings):
        yield plt
        plt.close("all")


def save(figure: Any, path: Path) -> bool:
    """Write a PNG of few colours, without date or version in it; whether the file changed."""
    from PIL import Image  # matplotlib needs it too

    drawn = io.BytesIO()
    figure.savefig(drawn, metadata={"Software": None})
    small = io.BytesIO()
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        few.save(small, format="png", optimize=True)
    if path.exists() and path.read_bytes() == small.getvalue():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(small.getvalue())
    return True


def label_lines(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (y, text, colour) right of the axes where the lines end, moved apart where texts would overlap.

    The limits of the axes must be final.
    """
    if not ends:
        return
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = (_FONT + 2.0) / height
    right, to_share = axes.get_xlim()[1], axes.transData + axes.transAxes.inverted()
    places = [to_share.transform((right, y))[1] for y, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: places[i])
    spread = apart([min(max(places[i], 0.0), 1.0) for i in order], gap)
    for i, y in zip(order, spread, strict=True):
        axes.annotate(
            ends[i][1], (1.0, y), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points",
            color=ends[i][2], va="center", annotation_clip=False,
        )  # fmt: skip


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Rising places, moved as little as needed to be ``gap`` apart: those too close share their shift."""
    groups: list[tuple[float, int]] = []  # (sum of its members' wishes for the first place, members)
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1:
            (low, few), (high, many) = groups[-2:]
            if low / few + gap * few <= high / many:
                break
            # The upper group's members would rather start ``few`` gaps lower.
            groups[-2:] = [(low + high - many * few * gap, few + many)]
    spread: list[float] = []
    for total, members in groups:
        spread += [total / members + gap * k for k in range(members)]
    return spread
