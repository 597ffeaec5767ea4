"""Every instruction set that is compiled in can be asked for, is what runs, and computes the same."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

_native = pytest.importorskip("trecvit_kernels._native", exc_type=ImportError)

# The module alone, without the package and without torch.
LOAD_NATIVE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_native", {_native.__file__!r})
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
assert "torch" not in sys.modules
"""

COMPARE_WITH_REFERENCE = """
import json, sys
import torch
import trecvit_kernels as tk

torch.manual_seed(0)
largest = 0.0
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for channels in (1, 37, 256):
        inputs = [torch.randn(2, 19, 3, channels).to(dtype).requires_grad_() for _ in range(3)]
        a_param = torch.randn(channels, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_()
        weight = torch.randn(2, 19, 3, channels, dtype=a_param.dtype)
        results = []
        for backend in ("native", "reference"):
            y, h_last = tk.ops.gated_lru(*inputs, a_param, backend=backend)
            loss = (y * weight).sum() + h_last.sum()
            results.append([y, h_last, *torch.autograd.grad(loss, [*inputs, a_param])])
        eps = torch.finfo(dtype).eps
        for got, expected in zip(*results):
            error = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
            largest = max(largest, error.item() / eps)
print(json.dumps({"isa": tk._native.isa(), "error_in_eps": largest}))
"""


def run(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRECVIT_ISA": isa}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:trecvit_kernels", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def skip_unless_supported(isa: str) -> None:
    if isa not in _native.supported_isas():
        pytest.skip(f"this machine cannot run {isa}")


def test_the_sets_of_this_architecture_are_compiled_in() -> None:
    expected = {"x86_64": ("baseline", "avx2", "avx512"), "aarch64": ("neon",)}
    machine = platform.machine()
    if machine not in expected:
        pytest.skip(f"no vector code is written for {machine}")
    assert _native.compiled_isas() == expected[machine]


def test_the_highest_supported_set_is_the_default() -> None:
    done = run(LOAD_NATIVE + "print(native.isa())", "")
    assert done.stdout.strip() == _native.supported_isas()[-1], done.stderr


@pytest.mark.parametrize("isa", _native.compiled_isas())
def test_a_set_can_be_asked_for(isa: str) -> None:
    done = run(LOAD_NATIVE + "print(native.isa())", isa)
    if isa in _native.supported_isas():
        assert done.stdout.strip() == isa, done.stderr
    else:
        assert done.returncode != 0
        assert f"TRECVIT_ISA: this machine cannot run '{isa}'" in done.stderr


def test_an_unknown_set_is_an_error_that_lists_the_known() -> None:
    done = run(LOAD_NATIVE + "native.isa()", "sse9")
    assert done.returncode != 0
    known = ", ".join(_native.compiled_isas())
    assert f"ValueError: TRECVIT_ISA: expected one of {known}, got 'sse9'" in done.stderr


@pytest.mark.parametrize("isa", _native.compiled_isas())
def test_the_kernels_of_every_set_agree_with_the_reference(isa: str) -> None:
    skip_unless_supported(isa)
    done = run(COMPARE_WITH_REFERENCE, isa)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["isa"] == isa
    # Relative to the largest element and in units of the I/O type's spacing. Sums over 19 steps of float32
    # arithmetic on both sides; the suite in tests/ops derives sharper bounds for the set that is the default.
    assert report["error_in_eps"] < 64
