"""Memory of large outputs on the CPU: kept, handed out again, bounded, given back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
import torch

from trecvit_kernels import backends

if not backends.available()["native"].available:
    pytest.skip(backends.available()["native"].reason, allow_module_level=True)

from trecvit_kernels import _native
from trecvit_kernels.ops import _memory

pytestmark = pytest.mark.skipif(
    bool(_native.sanitizers), reason="the sanitizers watch the C library's memory"
)
MB = 2**20


@pytest.fixture(autouse=True)
def _nothing_kept():
    gc.collect()
    _memory.release_cpu_memory()
    yield
    _memory.release_cpu_memory()


@pytest.mark.parametrize("dtype", list(_memory._DLPACK_TYPES), ids=str)
def test_is_an_ordinary_contiguous_tensor(dtype):
    x = _memory.empty((3, 500, 1000), dtype)
    assert x.shape == (3, 500, 1000)
    assert x.is_contiguous()
    assert x.dtype == dtype
    assert x.data_ptr() % 64 == 0
    y = x.fill_(2).clone()
    assert torch.equal(x * 3, y * 3)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((x * x).sum().abs(), x)
    assert gradient.shape == x.shape


def test_freed_memory_is_used_again_by_outputs_of_about_that_size():
    used, kept = _native.memory_use()
    assert kept == 0
    x = _memory.empty((10, MB), torch.float32)
    address = x.data_ptr()
    assert _native.memory_use() == (used + 40 * MB, 0)
    view = x[3:]
    del x
    assert _native.memory_use()[1] == 0  # the view holds it
    del view
    assert _native.memory_use() == (used, 40 * MB)
    too_small = _memory.empty((17, MB), torch.float16)  # 34 of 40 MB: more than an eighth would lie idle
    too_large = _memory.empty((21, MB), torch.float16)
    assert address not in (too_small.data_ptr(), too_large.data_ptr())
    same = _memory.empty((5, 2, MB), torch.float32)
    assert same.data_ptr() == address


def test_no_more_than_the_limit_is_kept():
    try:
        _native.limit_kept_memory(50 * MB)
        outputs = [_memory.empty((size, MB // 4), torch.float32) for size in (30, 10, 20, 60)]
        del outputs
        assert 0 < _native.memory_use()[1] <= 50 * MB
        _native.limit_kept_memory(5 * MB)
        assert _native.memory_use()[1] <= 5 * MB
    finally:
        _memory.release_cpu_memory()
    assert _native.memory_use()[1] == 0


def test_a_capsule_that_nobody_takes_is_freed():
    used, _ = _native.memory_use()
    capsule = _native.empty([MB], 2, 32)
    assert _native.memory_use()[0] == used + 4 * MB
    del capsule
    assert _native.memory_use()[0] == used


def test_deterministic_mode_fills_it():
    torch.use_deterministic_algorithms(True)
    try:
        assert _memory.empty((MB,), torch.float32).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


_OTHER_PROCESS = """
import os, threading, torch
from trecvit_kernels.ops import _memory
stop = False
def work():
    while not stop:
        _memory.empty((2**20,), torch.float32)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
for _ in range(20):
    child = os.fork()
    if child == 0:
        _memory.empty((2**20,), torch.float32)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop = True
[t.join() for t in threads]
kept = _memory.empty((2**20,), torch.float32)  # outlives the interpreter
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_many_threads_forks_and_the_end_of_the_process():
    subprocess.run([sys.executable, "-W", "ignore", "-c", _OTHER_PROCESS], check=True, timeout=120)


@pytest.mark.parametrize(("value", "kept"), [("0", False), ("8", True)])
def test_the_environment_sets_the_limit(value, kept):
    code = (
        "import torch; from trecvit_kernels import _native; from trecvit_kernels.ops import _memory\n"
        "_memory.empty((2**20,), torch.float32)\n"
        "print(_native.memory_use()[1])"
    )
    env = os.environ | {"TRECVIT_KEEP_MB": value}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert (int(out.stdout) > 0) == kept


def test_a_wrong_limit_is_refused():
    env = os.environ | {"TRECVIT_KEEP_MB": "much"}
    out = subprocess.run(
        [sys.executable, "-c", "import trecvit_kernels.ops._memory"], env=env, capture_output=True, text=True
    )
    assert "TRECVIT_KEEP_MB must be a whole number of megabytes, got 'much'" in out.stderr
