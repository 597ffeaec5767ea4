"""The measured tables: what is shown of a result file, and that the committed pages show the committed files."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from benchmarks import report, results
from benchmarks.report import pages, record_tables, tables
from benchmarks.rows import Record, Result

PAGES = (pages.README, pages.PAGE)
DIGEST = "0123456789abcdef"


def _result(what: str, peer: str, ratio: float | None, limit: float | None, floor: bool = False) -> Result:
    return Result("ops", what, peer, 1.0, 2.0, ratio=ratio, low=ratio, high=ratio, limit=limit, floor=floor)


def _flops(what: str, frames: int, mode: str, flop: float, note: str = "") -> Record:
    at = {"frames": frames, "image": 224, "mode": mode}
    return Record("flops", what, at, {"flop": flop, "parameters": 1e8}, note)


def _memory(what: str, total: float, frames: int = 32, saved: float = 1e9) -> Record:
    at = {"frames": frames, "image": 224, "mode": "training", "dtype": "float32"}
    return Record("memory", what, at, {"total": total, "saved": saved, "parameters": 4e8, "optimizer": 0})


RECORDS = [
    _flops("TRecViT-B", 32, "forward", 1.4e12),
    _flops("ViViT-L 1x16x16", 32, "forward", 7.7e12),
    _flops("TRecViT-B", 64, "forward", 2.8e12),
    _flops("X3D-L", 32, "forward", 0.7e12, "analytic"),
    _memory("TRecViT-B", 6e9, saved=4e9),
    _memory("TRecViT-B", 9e9, frames=64),
    _memory("ViViT-L 1x16x16, eager attention", 71e9),
    _memory("ViViT-L 1x16x16, flash attention", 19e9),
    Record(
        "streaming",
        "TRecViT-B, bfloat16, native",
        {"frames": 8, "batch": 1},
        {"p50": 0.2, "p99": 0.3, "mean": 0.21, "frames_per_second": 4.8, "state_bytes": 2e7}
        | {"latencies": [0.2] * 8, "resident": [10**9] * 4 + [10**9 + 3 * 10**6] * 4},
    ),
    Record("scaling", "scan", {"axis": "frames", "size": 64}, {"seconds": 0.1, "bytes": 1e6, "size": 64}),
    Record("scaling", "scan slope", {"axis": "frames"}, {"slope_time": 1.02, "slope_bytes": 1.0}),
    Record(
        "model", "TRecViT-B", {"frames": 8, "mode": "inference"}, {"seconds": 2.0, "frames_per_second": 4.0}
    ),
    Record("memory", "VideoMAE-L", {"frames": 32}, {}, "not measured: no transformers"),
]


@pytest.fixture
def about():
    """A run of kernels that are not these."""
    hardware = {
        "cpu": "Some CPU",
        "cores": 2,
        "threads": 2,
        "instruction_set": "avx2",
        "system": "Linux x86_64",
    }
    hardware |= {"python": "3.11", "versions": {"torch": "2.13"}, "commit": "abc"}
    rates = {"copy": 1e10, "copy_fresh": 5e9, "matmul_float32": 1e11}
    about = {
        "command": "python -m benchmarks --save",
        "date": "2026-01-02",
        "hardware": hardware,
        "rates": rates,
    }
    return about | {"kernels": "another", "settings": {"device": "cpu"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty benchmarks/results."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "kernels_digest", lambda: DIGEST)
    return tmp_path


def _rows(made: list[tables.Table], title: str) -> list[tuple[str, ...]]:
    (table,) = (table for table in made if table.title.startswith(title))
    return list(table.rows)


def test_the_closest_row_is_the_one_that_misses_most() -> None:
    easy, hard = _result("scan", "eager", 9.0, 3.0), _result("scan", "compiled", 2.0, 3.0)
    floor, unjudged = (
        _result("scan", "copy", 1.4, 1.5, floor=True),
        _result("scan", "associative_scan", 0.5, None),
    )
    other, failed = _result("model", "products", 1.2, 1.1, floor=True), _result("broken", "", None, 2.0)
    assert tables.closest([easy, floor, hard, other, unjudged, failed]) == [hard, other]
    assert tables.closest([easy, floor]) == [floor]


def test_the_closest_of_an_operation_is_over_shapes_and_dtypes() -> None:
    small, large = (
        _result("scan, float32, (1, 2)", "eager", 9.0, 3.0),
        _result("scan, float32, (8, 9)", "eager", 4.0, 3.0),
    )
    assert tables.closest_by_name([small, large]) == [large]
    assert tables.judged([small, large, _result("scan", "copy", 2.0, 1.5, floor=True)]) == (2, 3)


def test_flops_are_compared_with_ours_at_the_papers_point() -> None:
    made = record_tables.flops(RECORDS)
    rows = _rows(made, "FLOPs and parameters, 32 frames")
    assert rows[1] == ("ViViT-L 1x16x16", "100.0 M", "7.700", "5.50×", "–", "–", "counted")
    assert rows[2][-1] == "analytic"
    assert _rows(made, "TFLOP, forward")[0] == ("TRecViT-B", "1.400", "2.800")


def test_times_have_their_quartiles() -> None:
    row = Result(
        "ops", "scan", "copy", 2.5e-3, 1e-3, ratio=2.5, low=2.4, high=2.6, rounds=5, floor=True, nbytes=10**7
    )
    row = dataclasses.replace(row, ours_low=2.44e-3, ours_high=2.6e-3, theirs_low=9e-4, theirs_high=1.1e-3)
    cells = tables.cells(row, 1e10)
    assert cells[1] == "2.50 ms (2.44–2.60)"
    assert cells[3] == "1.00 ms (0.90–1.10)"
    assert cells[4] == "2.50× of it (2.40–2.60)"
    assert cells[7:] == ("10.0", "4.0", "40")
    assert tables.cells(dataclasses.replace(row, rounds=1), None)[1::8] == ("2.50 ms", "")


def test_shares_of_bytes_are_decimals_in_both_columns() -> None:
    row = Result(
        "memory",
        "peak",
        "ViViT-L",
        6e9,
        71e9,
        "B",
        6 / 71,
        6 / 71,
        6 / 71,
        floor=True,
        limit=1 / 12,
        rounds=1,
    )
    assert tables.cells(row, 1e10)[1:7] == (
        "6.00 GB",
        "ViViT-L",
        "71.00 GB",
        "0.085× of it",
        "≤ 0.0833×",
        "no",
    )


def test_memory_is_broken_down_and_shown_over_frames() -> None:
    held = {"blocks.*.mlp": 3e9, "blocks.*.attention": 1e9}
    at = {"frames": 32, "image": 224, "mode": "saved by layer", "dtype": "float32"}
    made = record_tables.memory([*RECORDS, Record("memory", "TRecViT-B", at, held)])
    rows = _rows(made, "Peak memory and what holds it, 32 frames")
    assert rows[0] == ("TRecViT-B", "training", "float32", "6.00 GB", "1.00×", "0.40 GB", "4.00 GB")
    assert rows[1][3:5] == ("71.00 GB", "11.8×")
    assert _rows(made, "Kept for the backward pass")[0][2:] == ("blocks.*.mlp", "3.00 GB", "75 %")
    assert _rows(made, "Peak memory, training step, over frames")[0] == ("TRecViT-B", "6.00 GB", "9.00 GB")


def test_streaming_and_scaling_are_shown() -> None:
    (table,) = record_tables.streaming(RECORDS)
    assert table.rows[0][1:] == ("8", "4.80", "200 ms", "300 ms", "210 ms", "20.00 MB", "1.00 GB, +3.00 MB")
    slopes, points = record_tables.scaling(RECORDS)
    assert slopes.rows == [("scan", "", "frames", "64–64", "1.02", "1.00")]
    assert points.rows == [("scan", "", "frames", "64", "100 ms", "1.00 MB")]


def test_vivit_at_a_glance() -> None:
    table = record_tables.versus_vivit(RECORDS)
    assert table is not None
    assert [row[0].split(",")[0] for row in table.rows] == ["parameters", "forward"] + 2 * [
        "peak memory of training"
    ]
    assert table.rows[1][1:4] == ("1.400 TFLOP", "7.700 TFLOP", "5.50×")
    assert table.rows[1][4:] == ("–", "–")


@pytest.mark.parametrize("suite", ("", "flops", "memory", "streaming", "scaling", "model", "ops"))
def test_any_suite_alone_makes_pages(suite, about, folder) -> None:
    records = [record for record in RECORDS if record.suite == suite]
    rows = [_result("scan", "eager", 9.0, 3.0)] if suite == "ops" else []
    run = pages.Run(folder / "x.json", rows, records, about)
    for text in (*(pages.block(page, [run]) for page in PAGES), pages.details(run)):
        for line in (line for line in text.splitlines() if line.startswith("|")):
            assert line.count("|") > 2
    if suite:
        assert len(pages.of_records(records)) > 0 or rows
    report.show(Console(file=io.StringIO(), width=180), rows, about, records)


def test_what_could_not_be_measured_is_named(about, folder) -> None:
    text = pages.details(pages.Run(folder / "x.json", [], RECORDS, about))
    assert "- memory: VideoMAE-L, frames 32: not measured: no transformers" in text


def test_results_of_other_kernels_are_refused_or_called_so(about, folder) -> None:
    file = folder / "cpu.json"
    results.save(file, [_result("scan", "eager", 9.0, 3.0)], about, RECORDS)
    with pytest.raises(pages.StaleResults, match=r"other kernels .*cpu\.json \(commit abc\).*--stale"):
        pages.chosen(file)
    (run,) = pages.chosen(file, allow_stale=True)
    for text in (*(pages.block(page, [run]) for page in PAGES), pages.details(run)):
        assert f"{pages.STALE}, but of those at commit abc.**" in text
    results.save(file, [], about | {"kernels": DIGEST}, RECORDS)
    (run,) = pages.chosen(file, allow_stale=True)
    assert pages.STALE not in pages.block(pages.PAGE, [run])
    results.save(file, [], {name: value for name, value in about.items() if name != "kernels"}, [])
    with pytest.raises(pages.StaleResults):
        pages.chosen(file)


def test_machines_keep_their_own_results(about, folder) -> None:
    about["kernels"] = DIGEST
    gpu = about | {"date": "2026-03-01", "settings": {"device": "cuda"}}
    gpu["hardware"] = about["hardware"] | {"gpu": "NVIDIA H200"}
    other = about | {"hardware": about["hardware"] | {"instruction_set": "avx512"}, "date": "2026-01-20"}
    written = {"old": about, "new": about | {"date": "2026-02-01"}, "other": other, "gpu": gpu}
    for name, run in written.items():
        results.save(folder / f"{name}.json", [], run, [])
    assert [run.path.stem for run in pages.chosen(None)] == ["new", "other", "gpu"]
    assert [run.path.stem for run in pages.chosen(folder / "old.json")] == ["other", "old", "gpu"]
    assert [run.slug for run in pages.chosen(None)] == ["cpu-with-avx2", "cpu-with-avx-512", "nvidia-h200"]
    results.save(folder / "new.json", [], written["new"] | {"kernels": "another"}, [])
    assert [run.path.stem for run in pages.chosen(None, allow_stale=True)] == ["other", "new", "gpu"]


def test_the_readme_shows_one_cpu(about, folder) -> None:
    """The other page shows all, and the README says so."""
    other = about | {"hardware": about["hardware"] | {"instruction_set": "avx512"}}
    runs = [
        pages.Run(folder / f"{n}.json", [_result("scan", "eager", 9.0, 3.0)], RECORDS, run)
        for n, run in enumerate((about, other))
    ]
    brief, whole = (pages.block(page, pages.ordered(runs)) for page in PAGES)
    assert "### Measured on a CPU with AVX2" in brief
    assert "### Measured on a CPU with AVX-512" not in brief
    assert "Measured on a CPU with AVX-512 too ([benchmarks.md](docs/benchmarks.md)): [1.json](" in brief
    assert "### Measured on a CPU with AVX-512" in whole
    assert " too (" not in whole


def test_a_rate_that_is_float32s_is_not_called_bfloat16(about) -> None:
    about = about | {"multiplied_in_float32": ["bfloat16", "float16"]}
    assert pages.speeds(about).endswith(
        "matrix product 100 GFLOP/s float32; bfloat16: multiplied in float32."
    )
    about["rates"] = about["rates"] | {"matmul_bfloat16": 1e11}
    assert "GFLOP/s bfloat16" not in pages.speeds(about)


def test_commands_that_measure_everything_are_one() -> None:
    every = "python -m benchmarks"
    assert pages.command(f"{every} --save") == every
    parts = [f"{every} {words} --save" for words in ("ops model", "flops memory streaming", "scaling")]
    assert pages.command(" && ".join(parts)) == f"{every} flops memory ops model streaming scaling"
    assert pages.command(" && ".join([*parts, f"{every} integrations"])) == every
    for other in (f"{every} --device cuda --save", "python -m other"):
        assert pages.command(f"{every} && {other}") == f"{every} && {other}"


def test_products_that_beat_the_floor_are_explained(about, folder) -> None:
    for ratio in (0.9, 1.1):
        row = _result("TRecViT-B forward", "its matrix products and attention alone", ratio, 1.08, floor=True)
        text = pages.block(pages.PAGE, [pages.Run(folder / "cpu.json", [row], [], about)])
        assert ("A ratio below 1 of" in text) == (ratio < 1)


def test_only_committed_files_make_pages(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"must be in benchmarks/results"):
        pages.chosen(tmp_path / "results.json")


def test_without_results_the_error_says_what_to_do(folder) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks --save"):
        pages.chosen(None)


def test_a_page_without_markers_is_refused(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match=r"page\.md must have the markers"):
        pages.put(page, "new")
    assert page.read_text() == "no markers\n"


def _as_shown(page) -> list[pages.Run]:
    """The runs that a page names, stale where the page says so."""
    return pages.ordered([pages.read(path, stale) for path, stale in pages.named(page).items()])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_the_files_that_they_name(page) -> None:
    runs = _as_shown(page)
    assert runs, f"{page.name} names no result file"
    assert pages.block(page, runs) in page.read_text(), "run python -m benchmarks report"
    for name in re.findall(r'(?:src|srcset)="([^"]+\.png)"', page.read_text()):
        assert (page.parent / name).is_file(), f"{page.name}: {name} is missing"


def test_all_tables_show_the_files_that_they_name() -> None:
    for run in _as_shown(pages.PAGE):
        page = pages.DETAILS / f"{run.slug}.md"
        assert page.read_text() == pages.details(run), "run python -m benchmarks report"


def test_pages_tell_when_kernels_have_changed() -> None:
    """Whoever changes a kernel need not measure again at once: a visible skip, no failure."""
    old = [run.path.name for run in _as_shown(pages.PAGE) if not run.of_these_kernels and not run.stale]
    if old:
        pytest.skip(f"kernels have changed since {', '.join(old)}: python -m benchmarks --save, then report")
