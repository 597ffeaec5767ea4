"""What is available, who is chosen, and that nothing falls back in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

import trecvit_kernels as tk
from trecvit_kernels import backends

OFFERED = ("reference", "native")


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setattr(backends, "_native_error", "the compiled extension cannot be imported (gone)")
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setattr(backends, "_environment", None)


@pytest.fixture
def with_native(monkeypatch):
    monkeypatch.setattr(backends, "_native_error", None)
    monkeypatch.setattr(backends, "_environment", None)


def _python(code, **environment):
    """Run code in a fresh interpreter; the environment of this one without a choice of backend."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRECVIT_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
    )


def test_available_names_every_backend_and_why_not():
    status = backends.available()
    assert tuple(status) == backends.NAMES
    assert status["reference"].available
    assert status["sdpa"].available
    for name, entry in status.items():
        assert entry.available != bool(entry.reason), name


def test_default_order_prefers_kernels(with_native):
    assert backends.select("gated_lru", None, "cpu", OFFERED) == "native"
    assert backends.select("spatial_attention", None, "cpu", ("reference", "sdpa")) == "sdpa"


def test_argument_beats_override(with_native):
    with backends.use("reference"):
        assert backends.select("gated_lru", None, "cpu", OFFERED) == "reference"
        assert backends.select("gated_lru", "native", "cpu", OFFERED) == "native"
    assert backends.select("gated_lru", None, "cpu", OFFERED) == "native"


def test_override_beats_environment(with_native, monkeypatch):
    monkeypatch.setattr(backends, "_environment", "native")
    with backends.use("reference"):
        assert backends.select("gated_lru", None, "cpu", OFFERED) == "reference"


def test_override_nests_and_ends_after_an_exception(with_native):
    with backends.use("native"):
        with pytest.raises(KeyError), backends.use("reference"):
            raise KeyError
        assert backends.select("gated_lru", None, "cpu", OFFERED) == "native"


def test_override_leaves_ops_that_lack_the_backend_alone(with_native):
    with backends.use("native"):
        assert backends.select("spatial_attention", None, "cpu", ("reference", "sdpa")) == "sdpa"


def test_unknown_names():
    with (
        pytest.raises(ValueError, match=r"backends\.use: unknown backend 'cpp'; known are reference, "),
        backends.use("cpp"),
    ):
        pass
    with pytest.raises(ValueError, match="gated_lru: unknown backend 'cpp'"):
        backends.select("gated_lru", "cpp", "cpu", OFFERED)


def test_argument_must_be_offered_by_the_op():
    with pytest.raises(ValueError, match="gated_lru: backend must be one of reference, native, got 'sdpa'"):
        backends.select("gated_lru", "sdpa", "cpu", OFFERED)


def test_explicit_choice_that_cannot_run_raises_with_the_reason(without_native):
    reason = "the compiled extension cannot be imported"
    with pytest.raises(RuntimeError, match=f"gated_lru: backend 'native' cannot run here: {reason}"):
        backends.select("gated_lru", "native", "cpu", OFFERED)
    with (
        pytest.raises(RuntimeError, match=f"backend 'native' is not available: {reason}"),
        backends.use("native"),
    ):
        pass
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match=reason):
        tk.ops.gated_lru(x, x, x, torch.zeros(4), backend="native")


def test_choice_on_a_device_it_does_not_know(with_native):
    with pytest.raises(RuntimeError, match="it runs on cpu tensors, these are on cuda"):
        backends.select("gated_lru", "native", "cuda", OFFERED)


def test_cuda_without_its_kernels(with_native, monkeypatch):
    monkeypatch.setattr(backends, "_SIMULATOR", "")
    monkeypatch.setattr(backends, "_has_cuda", False)
    with (
        pytest.raises(
            RuntimeError, match="'cuda' is not available: the compiled extension was built without nvcc"
        ),
        backends.use("cuda"),
    ):
        pass


def test_cuda_with_a_simulator_that_is_not_there():
    done = _python(
        "import trecvit_kernels as tk; print(tk.backends.available()['cuda'].reason)",
        TRECVIT_SIMT="/no/where.so",
    )
    assert done.stdout.strip() == "TRECVIT_SIMT names no file: '/no/where.so'"


@pytest.mark.parametrize("name", [n for n, status in backends.available().items() if not status.available])
def test_unavailable_backend_says_why(name):
    with pytest.raises(RuntimeError, match=f"'{name}' is not available: "), backends.use(name):
        pass


def test_fallback_warns_once_per_op(without_native):
    with pytest.warns(
        UserWarning, match="gated_lru: falling back to the slow reference backend on cpu .native: the"
    ):
        assert backends.select("gated_lru", None, "cpu", OFFERED) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select("gated_lru", None, "cpu", OFFERED) == "reference"
    with pytest.warns(UserWarning, match="linear_scan: falling back"):
        backends.select("linear_scan", None, "cpu", OFFERED)


def test_asking_for_the_reference_does_not_warn(without_native):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select("gated_lru", "reference", "cpu", OFFERED) == "reference"
        with backends.use("reference"):
            backends.select("gated_lru", None, "cpu", OFFERED)


def test_warning_points_at_the_caller(without_native):
    x = torch.randn(1, 2, 3, 4)
    with pytest.warns(UserWarning, match="falling back") as caught:
        tk.ops.gated_lru(x, x, x, torch.zeros(4))
    assert caught[0].filename == __file__


_CALL = """
import torch, trecvit_kernels as tk
a = torch.rand(1, 3, 4)
print(tk.backends.select("linear_scan", None, "cpu", ("reference", "native")))
print(tk.ops.linear_scan(a, a)[0].shape)
"""


def test_environment_variable_chooses():
    result = _python(_CALL, TRECVIT_BACKEND="reference")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "reference"


def test_environment_variable_with_an_unknown_name():
    result = _python(_CALL, TRECVIT_BACKEND="nativ")
    assert result.returncode != 0
    assert "ValueError: TRECVIT_BACKEND: unknown backend 'nativ'" in result.stderr


def test_environment_variable_with_a_backend_that_cannot_run():
    code = "import sys; sys.modules['trecvit_kernels._native'] = None\n" + _CALL
    result = _python(code, TRECVIT_BACKEND="native")
    assert result.returncode != 0
    assert (
        "RuntimeError: linear_scan: backend 'native' cannot run here: the compiled extension" in result.stderr
    )


def test_package_works_without_the_extension():
    code = "import sys; sys.modules['trecvit_kernels._native'] = None\n" + _CALL
    result = _python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "reference"
    assert result.stderr.count("falling back to the slow reference backend") == 1
