"""The suite ``integrations`` times both recipes in every direction, and times nothing that is wrong."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator

import pytest
import torch

from benchmarks.rows import measure
from benchmarks.setting import Setting
from benchmarks.suites import integrations
from trecvit_kernels.ops import _products

pytest.importorskip("transformers")


@pytest.fixture(autouse=True, scope="module")
def _collect_fast() -> Iterator[None]:
    """Every timing begins with a garbage collection, which need not look at all of PyTorch each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_every_tiny_row_is_measured_against_peers_that_agree() -> None:
    pytest.importorskip("accelerated_scan")
    results = [measure(row) for row in integrations.rows(Setting(tiny=True))]
    assert all(result.ratio is not None and not result.note for result in results), results
    assert all(result.limit is None and not result.floor for result in results)
    assert len({result.what for result in results}) == len(results)
    for dtype in ("float32", "bfloat16"):
        for what in (
            "RG-LRU, forward,",
            "RG-LRU, forward + backward,",
            "cached decoding step",
            "cached steps",
        ):
            assert any(what in result.what and dtype in result.what for result in results)
    assert any("bare scan, forward + backward" in result.what for result in results)


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = integrations._patched

    def wrong(module: torch.nn.Module) -> torch.nn.Module:
        patched = original(module)
        with torch.no_grad():
            next(patched.parameters()).mul_(1.1)
        return patched

    monkeypatch.setattr(integrations, "_patched", wrong)
    rows = integrations.rows(Setting(tiny=True, dtypes=(torch.float32,)))
    results = [measure(row) for row in rows if "RG-LRU, forward" in row.what]
    assert results and all(result.note.startswith("not timed, wrong result") for result in results)


def test_peers_multiply_as_ours_where_products_have_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_products, "WIDENED", frozenset([torch.bfloat16]))
    at = Setting(tiny=True, dtypes=(torch.bfloat16,))
    results = [measure(row) for row in integrations.rows(at) if "RG-LRU, f" in row.what]
    assert [list(result.peers) for result in results] == [
        ["transformers' own", "transformers' own, in float32"]
    ] * 2
    assert all(result.ratio is not None and len(result.tried) == 2 for result in results), results
    monkeypatch.setattr(integrations, "_rg_lru_case", lambda *_: None)
    monkeypatch.setattr(integrations, "_decoding_case", lambda *_: None)
    monkeypatch.setattr(integrations, "_rows_of", lambda at, case: iter([case]))
    monkeypatch.setattr(integrations, "_model_cases", lambda *_: iter(["model"]))
    for dtype, there in ((torch.bfloat16, False), (torch.float32, True)):
        assert ("model" in list(integrations.rows(Setting(dtypes=(dtype,))))) == there


def test_settings_are_kept_to() -> None:
    assert not list(integrations.rows(Setting(tiny=True, floors_only=True)))
    whats = [row.what for row in integrations.rows(Setting(tiny=True, dtypes=(torch.bfloat16,)))]
    assert whats and all("bfloat16" in what for what in whats)


def test_tiny_is_smaller_in_everything() -> None:
    sizes = (integrations.Sizes(), integrations._TINY)
    for large, small in zip(*(dataclasses.astuple(size) for size in sizes), strict=True):
        assert small < large
