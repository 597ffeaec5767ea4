"""Backends that the model tests run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trecvit_kernels import backends


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every op inside the test prefers this backend; a visible skip where it cannot run."""
    if reason := backends.available()[request.param].reason:
        pytest.skip(f"{request.param}: {reason}")
    with backends.use(request.param):
        yield request.param
