"""The suite itself: it covers the public ops, and a backend that ran nothing does not pass unnoticed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import trecvit_kernels as tk

from ._suite import OPS, device_of, untested

_ROOT = Path(__file__).resolve().parents[2]
_AVAILABLE = {
    (op.name, backend) for op in OPS.values() for backend in op.backends if device_of(op, backend)[0]
}


def test_every_public_op_is_in_the_suite():
    assert set(OPS) == set(tk.ops.__all__)


def test_case_names_are_unique():
    for op in OPS.values():
        names = [case.name for case in op.cases]
        assert len(names) == len(set(names)), op.name


def test_untested_backends_are_named():
    assert untested(_AVAILABLE) == []
    assert untested(_AVAILABLE - {("gated_lru", "reference")}) == [
        "gated_lru: backend reference is available but ran no case"
    ]
    assert len(untested(set())) == len(_AVAILABLE)
    assert untested(set(), "sdpa") == ["spatial_attention: backend sdpa is available but ran no case"]
    assert untested({("spatial_attention", "sdpa")}, "sdpa") == []
    assert untested(set(), "nothing") == ["no op has a backend nothing"]


def test_a_backend_that_was_asked_for_must_run(monkeypatch):
    monkeypatch.setattr("trecvit_kernels.backends._native_error", "it is gone")
    complaints = untested(set(), "native")
    assert {complaint.split(":")[0] for complaint in complaints} == set(OPS) - {"spatial_attention"}
    assert all("native was asked for and ran no case" in c and "it is gone" in c for c in complaints)


_PLUGIN = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    def kept(item):
        params = getattr(getattr(item, "callspec", None), "params", {})
        return "case" in params and params["case"].name == "one-frame" and params["backend"] != MISSING
    items[:] = [item for item in items if kept(item)]
"""


def _xdist():
    return find_spec("xdist") is not None


@pytest.mark.parametrize(
    "missing,options",
    (
        (None, ()),
        ("sdpa", ("--ignore=tests/models",)),
        pytest.param(
            "sdpa",
            ("-n", "2"),
            marks=pytest.mark.skipif(not _xdist(), reason="pytest-xdist is not installed"),
        ),
    ),
    ids=("none", "one", "two-processes"),
)
def test_session_fails_when_an_available_backend_ran_no_case(tmp_path, missing, options):
    """A session over the cases named one-frame: complaints about ops without one, and about ``missing``."""
    (tmp_path / "only_some.py").write_text(f"MISSING = {missing!r}\n{_PLUGIN}")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "only_some",
            "-p",
            "no:cacheprovider",
            *options,
            "tests/ops",
        ],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr
    assert "FAILED gated_lru: backend reference is available but ran no case" in result.stdout
    assert ("FAILED spatial_attention: backend sdpa" in result.stdout) == (missing == "sdpa")
    assert "FAILED spatial_attention: backend reference" not in result.stdout


def test_one_backend_alone():
    """--backend: only its tests, and it is judged alone."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "--backend", "sdpa", "tests/ops"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr
    collected = [line for line in result.stdout.splitlines() if "::" in line]
    cases = OPS["spatial_attention"].cases
    assert len(collected) >= 2 * len(cases)
    assert all("[spatial_attention-sdpa" in line for line in collected), collected
