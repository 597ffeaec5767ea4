"""``python -m benchmarks``: all suites at sizes without meaning, and what becomes of runs that stop, fail or differ."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import hardware, report, results, run, suites
from benchmarks.__main__ import app
from benchmarks.rows import Comparison, Measurement, Peer, Record, Result
from benchmarks.setting import Setting
from benchmarks.timing import Budget

_ROOT = Path(__file__).resolve().parents[2]
_RATES = {"copy": 1e10, "copy_fresh": 1e10, "matmul_float32": 1e11, "matmul_bfloat16": 1e11}
_ONCE = Budget(0.0, 1, 1)


@pytest.mark.slow
def test_all_suites_in_one_run_and_nothing_twice(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers (extra 'benchmarks') is not installed")
    out = tmp_path / "results.json"

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "benchmarks", "--tiny", "--quick", "--out", str(out), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(words, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=300)

    done = command()
    assert done.returncode == 0, done.stderr[-4000:]
    rows, records, about = results.load(out)
    found = [*rows, *records]
    assert {row.suite for row in found} == set(suites.SUITES)
    assert about["command"] == "python -m benchmarks --quick --tiny"
    assert about["kernels"] == results.kernels_digest()
    assert not [row for row in found if row.failed]
    optional = [row.what for row in found if row.note.startswith("not measured")]
    assert optional in ([], ["official JAX model"])
    assert len({row.key for row in found}) == len(found)
    fast = (
        "flops",
        "memory",
    )  # whose rows take no time to be made, so that a second call shows all it has to
    before = out.read_text()
    again = command(*fast)
    assert again.returncode == 0
    for name in fast:
        count = sum(row.suite == name for row in found)
        assert f"{name}: {count} rows kept" in again.stderr
    assert out.read_text() == before


# Made-up suites, in this process.


class Suite:
    """Three rows; ``before`` is called at the start of each row's work."""

    def __init__(self) -> None:
        self.worked: list[str] = []
        self.built: list[str] = []
        self.before: Callable[[str], None] = lambda what: None
        self.wrong = ""

    def _work(self, what: str) -> torch.Tensor:
        self.before(what)
        self.worked.append(what)
        return torch.ones(3)

    def _row(self, what: str) -> Comparison:
        self.built.append(what)
        wrong = self.wrong if what == "second" else ""
        peers = [Peer("eager", lambda: torch.ones(3)), Peer("other", lambda: torch.zeros(3))]
        return Comparison(
            "ops", what, lambda: self._work(what), peers, lambda: wrong, limit=1e-9, budget=_ONCE
        )

    def rows(self, at: Setting) -> Iterator[Comparison | Measurement]:
        yield self._row("first")
        yield self._row("second")
        count = {"flop": 7, "seconds": 0.5, "latencies": [0.1, 0.2], "note": "by hand"}
        yield Measurement("ops", "third", {"frames": 8}, lambda: (self._work("third"), count)[1])


@functools.cache
def machine() -> dict[str, Any]:
    return hardware.describe()


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Iterator[Suite]:
    made, described = Suite(), machine()
    monkeypatch.setattr(suites, "rows", lambda name: made.rows)
    monkeypatch.setattr(hardware, "describe", lambda device: dict(described))
    monkeypatch.setattr(hardware, "rates", lambda at: dict(_RATES))
    gc.freeze()  # every timed pair begins with a collection, which pytest's and PyTorch's objects make slow
    yield made
    gc.unfreeze()


def invoke(*words: object) -> tuple[int, str]:
    """Exit status, and everything printed."""
    got = CliRunner().invoke(app, [str(word) for word in words], prog_name="python -m benchmarks")
    if got.exception is not None and not isinstance(got.exception, SystemExit):
        raise got.exception
    return got.exit_code, got.output


def whats(path: Path) -> list[str]:
    rows, records, _ = results.load(path)
    return [found.what for found in (*rows, *records)]


def test_a_stopped_run_goes_on(suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "results.json"

    def stop(what: str) -> None:
        if what == "second":
            raise KeyboardInterrupt

    suite.before = stop
    status, text = invoke("ops", "--out", out)
    assert status == 130
    assert "the same command goes on" in text
    assert whats(out) == ["first"]
    suite.before = lambda what: None
    suite.worked.clear()
    status, text = invoke("run", "ops", "--out", out)
    assert status == 0
    assert set(suite.worked) == {"second", "third"}
    assert "ops: 1 rows kept" in text
    assert whats(out) == ["first", "second", "third"]
    rows, (record,), about = results.load(out)
    assert record.note == "by hand" and record.values["latencies"] == [0.1, 0.2]
    assert all(row.suite == "ops" and list(row.peers) == ["eager", "other"] for row in rows)
    assert "other: left out, its result is off" in rows[0].note
    assert about["command"] == "python -m benchmarks ops"
    suite.worked.clear()
    assert invoke("--out", out, "ops")[0] == 0
    assert suite.worked == []
    assert [path.name for path in out.parent.iterdir()] == ["results.json"]  # no draft left behind


def test_rows_of_other_kernels_or_settings_are_measured_anew(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"
    invoke("ops", "--out", out)
    for different, words in (("settings", ["--quick"]), ("kernels", ["--quick"])):
        if different == "kernels":
            monkeypatch.setattr(results, "kernels_digest", lambda: "of other sources")
        before = out.read_text()
        suite.worked.clear()
        status, text = invoke("ops", "--out", out, *words)
        assert status == 0 and f"has other {different}: all rows are measured anew" in text
        assert set(suite.worked) == {"first", "second", "third"}
        assert out.with_name("results.json.old").read_text() == before
    suite.worked.clear()
    assert invoke("ops", "--quick", "--fresh", "--out", out)[0] == 0
    assert set(suite.worked) == {"first", "second", "third"}


def test_no_speed_up_of_a_wrong_result(suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    suite.wrong = "result 0 is off by 1e-1"
    status, text = invoke("ops", "--out", out)
    assert status == 1 and "1 rows failed" in text
    assert "second" not in suite.worked
    (told,) = {line.strip() for line in text.splitlines() if line.startswith("second")}
    assert "faster" not in told and "not timed" in told
    first, second = results.load(out)[0]
    assert second.note == "not timed, wrong result: result 0 is off by 1e-1"
    assert (second.ratio, second.ours, second.theirs, second.met) == (None, None, None, None)
    assert first.ratio is not None
    suite.wrong = ""
    suite.worked.clear()
    assert invoke("ops", "--out", out)[0] == 0
    assert set(suite.worked) == {"second"}  # what failed is not kept


def test_a_failing_row_does_not_end_the_run(suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "results.json"

    def fail(what: str) -> None:
        if what == "first":
            raise RuntimeError("no\nluck")
        if what == "third":
            raise ImportError("no such thing", name="another_package.part")

    suite.before = fail
    assert invoke("ops", "--out", out)[0] == 1
    (first, second), (third,), _ = results.load(out)
    assert first.note == "failed: RuntimeError: no" and second.ratio is not None
    assert third.note == "not measured: another_package is not installed" and third.values == {}


def test_suites_that_break_off_or_lack_a_package(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"

    def rows(name: str) -> Callable[[Setting], Iterator[Comparison | Measurement]]:
        if name == "memory":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

        def broken(at: Setting) -> Iterator[Comparison | Measurement]:
            yield next(iter(suite.rows(at)))
            raise ValueError("cannot be built")

        return broken

    monkeypatch.setattr(suites, "rows", rows)
    status, text = invoke("memory", "--out", out)
    assert status == 0 and "not measured: transformers is not installed" in text
    status, text = invoke("ops", "--out", out)
    assert status == 1 and "ops: suite ops: failed: ValueError: cannot be built" in text
    assert whats(out) == ["suite memory", "first", "suite ops"]
    monkeypatch.setattr(suites, "rows", lambda name: suite.rows)
    assert invoke("ops", "--out", out)[0] == 0
    assert whats(out) == ["suite memory", "first", "second", "third"]


def test_two_rows_of_one_key_are_an_error(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "rows", lambda name: lambda at: iter([*suite.rows(at), *suite.rows(at)]))
    status, text = invoke("ops", "--out", tmp_path / "results.json")
    assert status == 1 and "ops: third: failed: another row of the suite has the same key" in text
    assert "3 rows failed" in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["opps"], "opps: known are flops, memory, ops"),
        (["ops", "--device", "tpu"], "tpu: known are cpu, cuda"),
        (["--dtype", "float32,fp16"], "fp16: known are float32, bfloat16"),
        (["--out", "x.json", "--save"], "--save names the file itself"),
        (["--save", "--tiny"], "say nothing about speed"),
        (["compare", "missing.json", "missing.json"], "does not exist"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    status, text = invoke(*words)
    assert status == 2
    assert message in " ".join(text.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    status, text = invoke("ops", "--device", "cuda")
    assert status == 2 and "PyTorch sees no GPU here" in text


def test_a_file_that_is_no_result_is_left_alone(suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "notes.json"
    out.write_text('{"mine": 1}')
    status, text = invoke("ops", "--out", out)
    assert status == 2 and "is no result file" in " ".join(text.split())
    assert out.read_text() == '{"mine": 1}'
    status, text = invoke("ops", "--out", out / "results.json")
    assert status == 2 and suite.worked == []


def test_help_names_suites_and_options() -> None:
    status, text = invoke("--help")
    assert status == 0
    for word in (*suites.SUITES, "--device", "--dtype", "--quick", "--out", "--save", "compare", "report"):
        assert word in text
    assert "--tiny" not in text


def test_files_are_written_whole(tmp_path: Path) -> None:
    """Whatever goes wrong while writing, the old file stays."""
    path, about = tmp_path / "results.json", {"command": "", "date": "", "hardware": {}, "rates": {}}
    results.save(path, [], about, [Record("flops", "model", {"frames": 8}, {"flop": 1})])
    before = path.read_text()
    with pytest.raises(TypeError):
        results.save(path, [], about, [Record("flops", "model", {}, {"flop": object()})])
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_committed_files_can_be_read() -> None:
    for path in results.RESULTS.glob("*.json"):
        rows, records, run = results.load(path)
        assert rows or records
        assert run["hardware"]["cpu"]


def test_every_line_says_what_was_found() -> None:
    about = {"rates": _RATES}
    assert run.line(Record("flops", "ViViT-L", {"frames": 8}, {"flop": 2e12}, "analytic"), about) == (
        "flops  ViViT-L  frames 8  flop 2e+12  analytic"
    )
    row = Result("ops", "scan", "eager", 1.0, 2.0, ratio=2.0, low=1.9, high=2.1, rounds=9)
    assert run.line(row, about) == "  ".join(filter(None, report.cells(row, 1e10)))


def test_the_digest_changes_with_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(results.kernels_digest()) == 16
    unmeasured = [f"trecvit_kernels/{name}.py" for name in ("cli", "_inference", "_training_commands")]
    for name in ("csrc/op/cpu.cpp", "trecvit_kernels/ops/op.py", "CMakeLists.txt", *unmeasured):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(results, "ROOT", tmp_path / "benchmarks")
    digest = results.kernels_digest.__wrapped__
    first = digest()
    for name in unmeasured:
        assert (Path(__file__).parents[2] / name).exists()
        (tmp_path / name).write_text("two")
    (tmp_path / "trecvit_kernels/ops/op.py").write_text('"""Words."""\n\none  # more of them')
    assert digest() == first
    (tmp_path / "csrc/op/cpu.cpp").write_text("two")
    second = digest()
    (tmp_path / "trecvit_kernels/ops/op.py").rename(tmp_path / "trecvit_kernels/ops/other.py")
    assert len({first, second, digest()}) == 3


def test_the_files_name_says_machine_and_day() -> None:
    cpu = {"hardware": {"cpu": "AMD EPYC (x)", "cores": 2, "instruction_set": "avx2"}, "date": "2026-01-02"}
    gpu = {"hardware": {"gpu": "NVIDIA H200"}, "date": "2026-01-02", "settings": {"device": "cuda"}}
    assert results.default_path(cpu).name == "amd-epyc-x-2-cores-avx2-2026-01-02.json"
    assert results.default_path(gpu) == results.RESULTS / "nvidia-h200-2026-01-02.json"
    assert json.loads(json.dumps(cpu)) == cpu


def test_midnight_does_not_split_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    at = Setting("cpu", (), quick=True, tiny=True, floors_only=False)
    about = {**run.describe(at, "command"), "date": results.today(-1), "rates": {}}
    before = results.default_path(about)
    assert before != run.file_to_save(at, fresh=False) == results.default_path(run.describe(at, ""))
    results.save(before, [], about)
    assert run.file_to_save(at, fresh=False) == before
    assert run.file_to_save(at, fresh=True) != before
    assert run.file_to_save(dataclasses.replace(at, quick=False), fresh=False) != before
    results.save(run.file_to_save(at, fresh=True), [], about)  # one of today is there
    assert run.file_to_save(at, fresh=False) != before


def test_a_continued_file_keeps_the_highest_ceilings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may have been busy when the file was begun."""
    at, path = Setting("cpu", (), quick=True, tiny=True, floors_only=False), tmp_path / "results.json"
    for measured, kept in (
        ({"copy": 2.0, "matmul": 5.0},) * 2,
        ({"copy": 3.0, "matmul": 4.0}, {"copy": 3.0, "matmul": 5.0}),
    ):
        monkeypatch.setattr(hardware, "rates", lambda at, measured=measured: dict(measured))
        ledger = run.open_ledger(path, at, "command", fresh=False, say=print)
        ledger.write()
        assert results.load(path)[-1]["rates"] == ledger.about["rates"] == kept


@pytest.mark.slow
def test_micro_benchmarks_run_under_pytest_benchmark() -> None:
    words = [
        "benchmarks",
        "--benchmark-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "gated_lru-T16-768-native-forward",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=_ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "benchmark: 1 tests" in done.stdout and "1 passed" in done.stdout
