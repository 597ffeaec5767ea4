"""Golden files of TAPNext, and the backends that the task tests run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trecvit_kernels import backends

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every op inside the test prefers this backend; a visible skip where it cannot run."""
    if reason := backends.available()[request.param].reason:
        pytest.skip(f"{request.param}: {reason}")
    with backends.use(request.param):
        yield request.param


@pytest.fixture(scope="session")
def tapnext() -> Path:
    """Folder with the arrays computed by the official TAPNext (10 MB, so not in the checkout)."""
    candidates = [Path(given)] if (given := os.environ.get("TRECVIT_GOLDEN")) else []
    candidates += [_ROOT / "tests" / "golden", _ROOT.parent / "shared" / "golden"]
    for folder in candidates:
        if (folder / "tapnext").is_dir():
            return folder / "tapnext"
    pytest.skip("no golden files: looked for tapnext/ in " + ", ".join(map(str, candidates)))


@pytest.fixture(scope="session")
def small(tapnext: Path) -> dict[str, Tensor]:
    return _load(tapnext / "tapnext_small.npz")


@pytest.fixture(scope="session")
def interp(tapnext: Path) -> dict[str, Tensor]:
    return _load(tapnext / "tapnext_interp.npz")


def _load(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}
