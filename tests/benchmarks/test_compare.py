"""``python -m benchmarks compare``: two result files side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from typer.testing import CliRunner

from benchmarks import compare, results
from benchmarks.__main__ import app
from benchmarks.rows import Record, Result

_RATES = {"copy": 1e10, "copy_fresh": 1e10, "matmul_float32": 1e11, "matmul_bfloat16": 1e11}


def invoke_compare(*words: object) -> tuple[int, str]:
    """Exit status, and everything printed."""
    got = CliRunner().invoke(app, ["compare", *map(str, words)], prog_name="python -m benchmarks")
    if got.exception is not None and not isinstance(got.exception, SystemExit):
        raise got.exception
    return got.exit_code, got.output


def result(what: str, ratio: float, peer: str = "eager", **more: object) -> Result:
    row = Result("ops", what, peer, 1.0, ratio, ratio=ratio, low=0.98 * ratio, high=1.02 * ratio, rounds=9)
    return dataclasses.replace(row, **more)  # type: ignore[arg-type]


def write(path: Path, rows: list[Result], records: list[Record], cpu: str = "a") -> Path:
    about = {"command": "", "date": "2026-01-01", "hardware": {"cpu": cpu}, "rates": dict(_RATES)}
    results.save(path, rows, about, records)
    return path


def test_compare_finds_what_is_slower_beyond_noise(tmp_path: Path) -> None:
    rows = [
        result("steady", 2.0),
        result("slower", 4.0),
        result("faster", 4.0),
        result("floor", 1.0, "copy", floor=True),
        result("noisy", 2.0, low=1.0, high=3.0),
        result("broken", 2.0, peers=["eager"]),
        result("gone", 2.0),
        result("other peer", 2.0, "eager", peers=["eager", "compiled"]),
    ]
    streamed = {"p50": 0.1, "frames_per_second": 10.0, "state_bytes": 64, "latencies": [0.1]}
    records = [
        Record("flops", "TRecViT-B", {"frames": 8}, {"flop": 1000}),
        Record("memory", "TRecViT-B", {"frames": 8}, {"total": 1000}),
        Record("streaming", "TRecViT-B", {"frames": 2000}, streamed),
    ]
    old = write(tmp_path / "old.json", rows, records)
    assert invoke_compare(old, old, "--fail")[0] == 0
    same = compare.compare(old, old)
    assert not any((same.worse, same.faster, same.shrunk, same.open, same.new, same.gone, same.warnings))
    assert same.same == len(rows) + 5  # numbers of the records

    changed = [
        result("steady", 1.95),
        result("slower", 3.0),
        result("faster", 5.0),
        result("floor", 1.5, "copy", floor=True),
        result("noisy", 1.5, low=1.0, high=2.0),
        Result("ops", "broken", "", note="not timed, wrong result: off", peers=["eager"]),
        result("other peer", 2.0, "compiled", peers=["eager", "compiled"]),
        result("new", 1.0),
    ]
    values = {"p50": 0.2, "frames_per_second": 5.0, "state_bytes": 65, "latencies": [0.2]}
    changed_records = [
        Record("flops", "TRecViT-B", {"frames": 8}, {"flop": 1001}),
        Record("memory", "TRecViT-B", {"frames": 8}, {"total": 999.0}),
        Record("streaming", "TRecViT-B", {"frames": 2000}, values),
    ]
    new = write(tmp_path / "new.json", changed, changed_records)
    found = compare.compare(old, new)
    name = "streaming: TRecViT-B, frames 2000"
    slower = ["broken, against eager", f"{name}: frames_per_second", f"{name}: p50", "floor, against copy",
              "slower, against eager"]  # fmt: skip
    assert sorted(change.what for change in found.slower) == sorted(slower)
    assert found.slower[0].what == slower[0]  # the worst first
    assert [change.what for change in found.faster] == ["faster, against eager"]
    assert [change.what for change in found.grown] == [
        f"{name}: state_bytes",
        "flops: TRecViT-B, frames 8: flop",
    ]
    assert [change.what for change in found.shrunk] == ["memory: TRecViT-B, frames 8: total"]
    assert (found.new, found.gone) == (["new, against eager"], ["gone, against eager"])
    assert found.open == ["other peer: against eager before, against compiled now"]
    status, text = invoke_compare(old, new, "--fail")
    assert status == 1 and "5 slower, 1 faster, 2 grown, 1 shrunk" in text
    assert invoke_compare(old, new)[0] == 0


def test_another_fastest_peer_is_compared_by_the_one_that_both_tried(tmp_path: Path) -> None:
    names = ["eager", "compiled"]

    def write_one(name: str, peer: str, ratio: float, tried: dict[str, float]) -> Path:
        row = result("op", ratio, peer, peers=names, tried=tried)
        return write(tmp_path / name, [row], [])

    old = write_one("old.json", "eager", 4.0, {"eager": 4.0, "compiled": 5.0})
    much = write_one("much.json", "compiled", 2.0, {"eager": 2.2, "compiled": 2.0})  # eager: 2.2 now
    found = compare.compare(old, much)
    assert [(change.what, change.new) for change in found.slower] == [("op, against eager", "2.2×")]
    assert not found.open and invoke_compare(old, much, "--fail")[0] == 1
    little = write_one(
        "little.json", "compiled", 3.0, {"eager": 3.2, "compiled": 3.0}
    )  # within what a try says
    assert compare.compare(old, little).same == 1
    untried = write_one("untried.json", "compiled", 2.0, {})  # compiled: 5.0 then, 2.0 now
    assert [change.what for change in compare.compare(old, untried).slower] == ["op, against compiled"]
    floor = result("op", 1.0, "copy", floor=True, peers=["copy", "clone"], tried={"copy": 2.0, "clone": 1.0})
    assert compare._against(floor, "clone").ratio == 2.0  # type: ignore[union-attr]


def test_compare_of_two_machines_takes_no_seconds(tmp_path: Path) -> None:
    def records(seconds: float) -> list[Record]:
        return [Record("scaling", "gated_lru", {"size": 8}, {"seconds": seconds, "bytes": 64})]

    old = write(tmp_path / "old.json", [result("op", 2.0)], records(1.0))
    new = write(tmp_path / "new.json", [result("op", 1.0)], records(9.0), cpu="b")
    found = compare.compare(old, new)
    assert [change.what for change in found.worse] == ["op, against eager"]
    assert found.same == 1  # the bytes
    assert found.warnings == [
        "The machines differ, so the ratios need not agree; seconds are not compared: cpu a and b."
    ]
    assert "Warning: The machines differ" in invoke_compare(old, new)[1]
