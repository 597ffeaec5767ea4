"""The measured tables: what is shown of a result file, and that the committed pages show the committed file."""

from __future__ import annotations

import pytest

from benchmarks import report
from benchmarks.rows import Result


def _result(what: str, peer: str, ratio: float | None, limit: float | None, floor: bool = False) -> Result:
    return Result("ops", what, peer, 1.0, 2.0, ratio=ratio, low=ratio, high=ratio, limit=limit, floor=floor)


def test_the_closest_row_is_the_one_that_misses_most() -> None:
    easy, hard = _result("scan", "eager", 9.0, 3.0), _result("scan", "compiled", 2.0, 3.0)
    floor, unjudged = (
        _result("scan", "copy", 1.4, 1.5, floor=True),
        _result("scan", "associative_scan", 0.5, None),
    )
    other, failed = _result("model", "products", 1.2, 1.1, floor=True), _result("broken", "", None, 2.0)
    assert report.closest([easy, floor, hard, other, unjudged, failed]) == [hard, other]
    assert report.closest([easy, floor]) == [floor]


@pytest.mark.parametrize("page", (report.README, report.PAGE), ids=lambda page: page.name)
def test_pages_show_the_newest_results(page) -> None:
    assert report.markdown(report.newest(), page) in page.read_text(), "run python -m benchmarks report"


def test_a_page_without_markers_is_refused(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match=r"page\.md must have the markers"):
        report.rewrite(page, report.newest())
    assert page.read_text() == "no markers\n"
