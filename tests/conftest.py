"""What all tests share: golden files, parameters op and backend, the rule that no backend goes untested."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trecvit_kernels import backends

from .ops._suite import OPS, device_of, untested

if backends.interpreted():
    from .ops import _interpreter

    _interpreter.patch()

_ROOT = Path(__file__).resolve().parents[1]
_SUITE = _ROOT / "tests" / "ops"
_SPREAD = "test_triton_aot.py"  # its tests share nothing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        metavar="NAME",
        help="run only what tests this backend: its part of the tests over op and backend, and those marked so",
    )


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "ops(*names): the ops that a test parametrised over op and backend is about (default: all)",
        "about(backend): a test of this backend alone, for --backend",
        "kernels_only: parametrise over every backend but the reference",
        "reference_only: parametrise over the reference backend alone",
        "large: offsets beyond 2^31 elements (address space rather than memory)",
        "sanitize: hostile inputs that also run under AddressSanitizer and UBSan (make sanitize)",
        "early: takes so long that it should start first",
        "same_for_kernels: about the code around the kernels; left out where they are interpreted or simulated",
        "slow: takes more than a few seconds",
    ):
        config.addinivalue_line("markers", line)
    config.pluginmanager.register(_EveryBackendRuns(config), "every_backend_runs")


def _params(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Narrow down to ``--backend``; what takes longest comes first, so that no process is left alone with it."""
    if (backend := config.option.backend) is not None:
        chosen = [item for item in items if backend in (_params(item).get("backend"), _about(item))]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    items.sort(key=lambda item: item.get_closest_marker("early") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With pytest-xdist, what shares something expensive shares a process.

    That is the truth of a case, which is computed once per process, and the fixtures of a file. Other tests over op and
    backend run anywhere. (xdist's own ``loadgroup`` does the same by markers, but not under pytest 9.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            found = re.search(rf"\[({'|'.join(OPS)})-[^-]+(-.+)?\]", test)
            if found is None and not file.endswith(_SPREAD):
                return file
            return f"{found[1]}{found[2]}" if found and found[2] else nodeid

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def _about(item: pytest.Item) -> str | None:
    marker = item.get_closest_marker("about")
    return marker.args[0] if marker else None


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder that holds ``trecvit/`` with the arrays computed by DeepMind's code."""
    candidates = [Path(given)] if (given := os.environ.get("TRECVIT_GOLDEN")) else []
    candidates += [_ROOT / "tests" / "golden", _ROOT.parent / "shared" / "golden"]
    for folder in candidates:
        if (folder / "trecvit").is_dir():
            return folder
    pytest.skip("no golden files: looked for trecvit/ in " + ", ".join(map(str, candidates)))


@pytest.fixture(autouse=True)
def _same_start_for_every_test() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _order_of_simulated_threads(request: pytest.FixtureRequest) -> None:
    """In tests/simt every test runs the threads of a GPU in one of four orders, always the same one."""
    if backends.simulated():
        from trecvit_kernels.ops import _cuda

        _cuda.load_simulator(_cuda.SIMULATOR).set_order(zlib.crc32(request.node.nodeid.encode()) % 4)


@pytest.fixture
def device(op, backend) -> str:  # type: ignore[no-untyped-def]
    """Device type that ``backend`` runs ``op`` on."""
    found, reason = device_of(op, backend)
    assert found is not None, reason
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Arguments ``op``, ``backend`` (and ``case``): every backend that every op offers, on every case.

    A backend that cannot run here is a skip with its reason.
    """
    if not {"op", "backend"} <= set(metafunc.fixturenames):
        return
    narrowed = metafunc.definition.get_closest_marker
    ops = marker.args if (marker := narrowed("ops")) else tuple(OPS)
    with_cases = "case" in metafunc.fixturenames
    params = []
    for op in (OPS[name] for name in ops):
        for backend in op.backends:
            if backend != (metafunc.config.option.backend or backend):
                continue
            if narrowed("kernels_only" if backend == "reference" else "reference_only"):
                continue
            where, reason = device_of(op, backend)
            marks = [] if where else [pytest.mark.skip(reason=f"not available: {reason}")]
            for case in op.cases if with_cases else (None,):
                values = (op, backend, case) if with_cases else (op, backend)
                name = f"{op.name}-{backend}" + (f"-{case.name}" if with_cases else "")
                params.append(pytest.param(*values, marks=marks, id=name))
    metafunc.parametrize(("op", "backend", "case") if with_cases else ("op", "backend"), params)


class _EveryBackendRuns:
    """Fails a session that collected the whole op suite if a backend that can run here ran no case.

    Under pytest-xdist the session that counts is the controller's, which gets the reports of all workers. With
    ``--backend`` only that backend counts, and it must be able to run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.ran: set[tuple[str, str]] = set()
        self.complaints: list[str] = []

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        params = _params(item)
        if {"op", "backend", "case"} <= params.keys():
            item.user_properties.append(("op_backend", (params["op"].name, params["backend"])))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        pair = dict(report.user_properties).get("op_backend")
        if report.when == "call" and not report.skipped and pair is not None:
            self.ran.add(tuple(pair))

    def _whole_suite(self) -> bool:
        option = self.config.option
        narrowed = option.keyword or option.markexpr or option.deselect or option.collectonly
        narrowed = narrowed or option.ignore_glob or getattr(option, "lf", False)
        ignored = [Path(path).resolve() for path in option.ignore or ()]
        narrowed = narrowed or any(
            path == _SUITE or path in _SUITE.parents or _SUITE in path.parents for path in ignored
        )
        paths = [Path(argument).resolve() for argument in self.config.args if "::" not in argument]
        return not narrowed and any(path == _SUITE or path in _SUITE.parents for path in paths)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        stopped_early = session.shouldstop or session.shouldfail
        if hasattr(self.config, "workerinput") or stopped_early or not self._whole_suite():
            return
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            self.complaints = untested(self.ran, self.config.option.backend)
            if self.complaints:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for complaint in self.complaints:
            terminalreporter.write_line(f"FAILED {complaint}", red=True)
