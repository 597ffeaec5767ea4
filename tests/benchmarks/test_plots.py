"""Figures of a small made-up result: they are written, say what they show, and refuse to show nothing."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest

from benchmarks.report import plots, plots_style
from benchmarks.rows import Record, Result

ABOUT = {"rates": {"copy": 1e10}}
COSTS = [
    Record(suite, label, {"frames": frames, "image": 224, "mode": "training"}, {value: size * frames})
    for suite, value, size, labels in (
        ("flops", "flop", 1e11, ("TRecViT-B", "ViViT-L 1x16x16")),
        (
            "memory",
            "total",
            3e8,
            ("TRecViT-B", "ViViT-L 1x16x16, eager attention", "ViViT-L 1x16x16, flash attention"),
        ),
    )
    for label in labels
    for frames in (8, 16, 32)
]
STREAM = Record(
    "streaming",
    "TRecViT-B, bfloat16, native",
    {"frames": 50, "batch": 1},
    {"p50": 0.0125, "p99": 0.0148, "latencies": [0.01 + 0.0001 * i for i in range(49)] + [0.5]}
    | {"resident": [10**9] * 8, "resident_at": list(range(0, 48, 6))},
)
SCALING = [
    *(
        Record("scaling", "scan", {"axis": axis, "size": size}, {"seconds": 0.01 * size, "bytes": 1e6 * size})
        for axis in ("frames", "batch")
        for size in (1, 2, 4)
    ),
    Record("scaling", "scan slope", {"axis": "frames"}, {"slope_time": 1.04, "slope_bytes": 0.99}),
]
RECORDS = [*COSTS, STREAM, *SCALING]
RESULTS = [
    Result(
        "ops",
        "scan forward, float32, (2, 3)",
        "copy of the same bytes",
        1e-3,
        5e-4,
        floor=True,
        nbytes=5_000_000,
    ),
    Result("ops", "scan forward, float32, (2, 3)", "eager", 1e-3, 5e-3, nbytes=5_000_000),
    Result("ops", "scan forward + backward, float32, (2, 3)", "eager", 4e-3, 5e-2, nbytes=10_000_000),
]


@pytest.fixture(autouse=True)
def coarse(monkeypatch) -> None:
    """Few pixels: the tests look at what is there, not at how."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots_style, "_DPI", 30)


@pytest.fixture
def drawn():
    """Draws a figure; it is closed afterwards."""
    theme = plots_style.THEMES[0]
    with plots_style.themed(theme) as plt:
        yield lambda make, *arguments: make(plt, theme, *arguments)


def _words(figure: Any) -> str:
    """Every text in a figure."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def test_every_figure_is_written_for_both_themes(tmp_path) -> None:
    changed = plots.draw(RESULTS, RECORDS, ABOUT, tmp_path / "figures", "cpu")
    names = [
        f"{name}-cpu-{theme}.png"
        for name in ("costs", "streaming", "bandwidth", "scaling")
        for theme in ("light", "dark")
    ]
    assert [path.name for path in changed] == names
    assert all(changed.values())
    for path in changed:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_same_values_give_the_same_file(tmp_path) -> None:
    assert list(plots.draw(RESULTS, [], ABOUT, tmp_path, "cpu").values()) == [True, True]
    assert list(plots.draw(RESULTS, [], ABOUT, tmp_path, "cpu").values()) == [False, False]


def test_backgrounds_suit_the_theme(tmp_path) -> None:
    from PIL import Image

    for path, colour in zip(
        plots.draw(RESULTS, [], ABOUT, tmp_path, "cpu"), ((255, 255, 255), (13, 17, 23)), strict=True
    ):
        with Image.open(path) as image:
            assert (
                max(abs(a - b) for a, b in zip(image.convert("RGB").getpixel((0, 0)), colour, strict=True))
                <= 3
            )


def test_costs_name_lines_units_and_the_paper(drawn) -> None:
    figure = drawn(plots.costs, COSTS)
    words = _words(figure)
    for word in (
        "FLOPs of a training step",
        "Peak memory of a training step",
        "TFLOP",
        "GB (10⁹ bytes)",
        "frames of 224²",
    ):
        assert word in words
    for line in ("TRecViT-B", "ViViT-L 1×16×16", "ViViT-L 1×16×16, eager", "ViViT-L 1×16×16, flash"):
        assert line in words
    assert "paper, read from its figure 3 by eye" in words
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in figure.axes)


def test_costs_of_one_suite_are_one_panel(drawn) -> None:
    assert len(drawn(plots.costs, [r for r in COSTS if r.suite == "flops"]).axes) == 1


def test_bandwidth_shows_shares_and_the_floor(drawn) -> None:
    words = _words(drawn(plots.bandwidth, RESULTS, 1e10))
    title = "Bytes moved per second, of the machine's copy"
    for word in (title, "scan forward", "scan forward + backward", "float32, (2, 3)", "50 %", "25 %"):
        assert word in words.split("\n")
    assert "floor: copy into existing memory, 10.0 GB/s" in words
    assert "share of the copy bandwidth (%)" in words


def test_bandwidth_is_of_ops_that_bytes_bind() -> None:
    """No op with matrix products; ticks of one kind of floor; an op's rows together, real before complex."""
    rows = [
        Result("ops", f"{op} {direction}, float32, (2,)", peer, 1e-3, 1e-3, nbytes=10**6, floor=True)
        for op in ("scan", "recurrent_mixer", "complex lru", "spatial_attention", "lru")
        for direction in ("forward + backward", "forward")
        for peer in ("copy of the same bytes, same allocations", "copy of the same bytes")
    ]
    names = [
        f"{op} {way}" for op in ("lru", "complex lru", "scan") for way in ("forward", "forward + backward")
    ]
    bars = plots._bars(rows, 1e10)
    assert [bar[0] for bar in bars] == names
    assert all(bar[3] is not None for bar in bars)
    assert all(bar[3] is None for bar in plots._bars(rows[::2], 1e10))
    assert plots.drawable([row for row in rows if row.what.startswith("recurrent_mixer")], []) == []


def test_of_many_rows_the_largest_in_the_usual_dtype_are_drawn() -> None:
    rows = [
        Result("ops", f"op{op} forward, {dtype}, ({size},)", "copy", 1e-3, nbytes=size)
        for op in range(4)
        for dtype in ("float32", "bfloat16")
        for size in range(1, 30)
    ]
    bars = plots._bars(rows, 1e10)
    assert len(bars) == plots._MOST_BARS
    assert {bar[1] for bar in bars} == {f"float32, ({size},)" for size in range(24, 30)}


def test_streaming_shows_percentiles_and_what_it_leaves_out(drawn) -> None:
    words = _words(drawn(plots.streaming, [STREAM]))
    for word in (
        "p50 12.5 ms",
        "p99 14.8 ms",
        "latency of a frame, ms (50 frames; 1 slower, up to 500 ms, not shown)",
    ):
        assert word in words
    assert "Memory over the stream" in words
    assert "1.00 GB, +0" in words


def test_scaling_shows_the_slopes(drawn) -> None:
    words = _words(drawn(plots.scaling, SCALING))
    for word in (
        "slope 1.04 time, 0.99 memory",
        "Time over frames",
        "Memory over batch",
        "time, s",
        "memory, GB (10⁹ bytes)",
    ):
        assert word in words


def test_a_line_looks_the_same_over_every_axis(drawn) -> None:
    records = [
        Record("scaling", what, {"axis": axis, "size": size}, {"seconds": float(size), "bytes": 1e6 * size})
        for axis, names in (("frames", ("other", "scan, 8 frames")), ("batch", ("scan, 4 frames", "other")))
        for what in names
        for size in (1, 2, 4)
    ]
    figure = drawn(plots.scaling, records)
    looks: dict[str, set[tuple[str, str]]] = {}
    for axes in figure.axes:
        if legend := axes.get_legend():
            assert legend.get_title().get_text() == "slopes fitted to the upper half"
            for line, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
                name = text.get_text().partition(",")[0]
                looks.setdefault(name, set()).add((line.get_color(), line.get_marker()))
    assert {name: len(found) for name, found in looks.items()} == {"other": 1, "scan": 1}
    assert looks["other"] != looks["scan"]


@pytest.mark.parametrize(
    "make, arguments, message",
    (
        (plots.costs, ([],), "costs: no records of the suites flops or memory"),
        (plots.bandwidth, ([], 1e10), "bandwidth: no result of an op .* has bytes and a time"),
        (plots.streaming, ([],), "streaming: no record .* has latencies"),
        (plots.scaling, ([],), "scaling: no record .* has a size"),
    ),
)
def test_nothing_to_show_is_refused(make, arguments, message) -> None:
    theme = plots_style.THEMES[0]
    with plots_style.themed(theme) as plt, pytest.raises(ValueError, match=message):
        make(plt, theme, *arguments)
    assert plots.drawable([], []) == []


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'trecvit-kernels\[benchmarks\]'"):
        plots.draw(RESULTS, RECORDS, ABOUT, tmp_path, "cpu")
    assert not list(tmp_path.iterdir())


def test_labels_move_apart_as_little_as_needed() -> None:
    assert plots_style.apart([0.1, 0.5], 0.2) == [0.1, 0.5]
    assert plots_style.apart([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert plots_style.apart([0.1, 0.12, 0.5], 0.2) == pytest.approx([0.01, 0.21, 0.5])
    spread = plots_style.apart([0.3, 0.31, 0.45, 0.46], 0.1)
    assert all(high - low >= 0.1 - 1e-12 for low, high in itertools.pairwise(spread))
