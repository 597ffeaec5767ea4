"""The CUDA kernels as they were compiled: registers, machine code, exports. Nothing here needs a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="its cuobjdump reads the binaries")

from benchmarks import cuda_kernels
from trecvit_kernels import _native

pytestmark = pytest.mark.skipif(not hasattr(_native, "cuda"), reason="the extension was built without nvcc")


@pytest.fixture(scope="module")
def module() -> Path:
    return Path(_native.__file__)


@pytest.fixture(scope="module")
def machine_code(module) -> dict[str, str]:
    if len(_native.cuda.architectures.split()) > 1:
        pytest.skip("built for several architectures")
    return cuda_kernels.instructions(module)


def _of(machine_code: dict[str, str], name: str) -> dict[str, str]:
    found = {kernel: text for kernel, text in machine_code.items() if name in kernel}
    assert found, f"no kernel named like {name} in {sorted(machine_code)}"
    return found


def test_nothing_spills(module):
    found = cuda_kernels.resources(module)
    assert len(found) > 50
    assert not {
        name: local for name, (_, local, _) in found.items() if local > cuda_kernels.allowed_local(name)
    }


def test_attention_multiplies_on_tensor_cores(machine_code):
    for name, text in _of(machine_code, "attention").items():
        assert "HMMA" in text, name


def test_scans_load_and_store_16_bytes(machine_code):
    for kernel in ("linear_scan_forward", "linear_scan_backward", "gated_lru_forward"):
        for name, text in _of(machine_code, kernel).items():
            assert re.search(r"(LDG|LDGSTS)\.E\.\S*128", text), name


def test_needs_no_driver_and_no_cuda_libraries(module):
    needed = subprocess.run(["readelf", "-d", module], check=True, capture_output=True, text=True).stdout
    assert not re.search(r"NEEDED.*(libcuda|libcudart|libtorch)", needed)
    defined = subprocess.run(
        ["nm", "-D", "--defined-only", module], check=True, capture_output=True, text=True
    ).stdout
    assert [line.split()[-1] for line in defined.splitlines() if line.split()[-2] == "T"] == [
        "PyInit__native"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_what_cuda_refuses_becomes_an_exception():
    x = torch.zeros(4)
    arguments = (0, 0, 1, 4, False, 1e-6, *[x.data_ptr()] * 6)
    with pytest.raises(RuntimeError, match=r"cudaGetDevice: .*CUDA"):
        _native.cuda.residual_norm(0, 1, 0, None, *arguments)
    with pytest.raises(ValueError, match="a launcher got a wrong number of arguments"):
        _native.cuda.residual_norm(0, 1, 0, None, *arguments, 0)


def test_page_was_made_from_these_sources():
    """docs/cuda_kernels.md was written after the last change of the kernels."""
    page = cuda_kernels.PAGE.read_text()
    assert f"from sources {cuda_kernels.sources()}." in page, (
        "run python -m benchmarks.cuda_kernels --write docs/cuda_kernels.md"
    )
    assert "spilled" not in page.partition("<!-- kernels: begin -->")[2]
