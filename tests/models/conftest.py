"""Backends that the model tests run on, and threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trecvit_kernels import backends


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every op inside the test prefers this backend; a visible skip where it cannot run."""
    if reason := backends.available()[request.param].reason:
        pytest.skip(f"{request.param}: {reason}")
    with backends.use(request.param):
        yield request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads; waiting for them costs milliseconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
