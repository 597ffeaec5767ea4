"""What all tests share: the golden files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder that holds ``trecvit/`` with the arrays computed by DeepMind's code."""
    candidates = [Path(given)] if (given := os.environ.get("TRECVIT_GOLDEN")) else []
    candidates += [_ROOT / "tests" / "golden", _ROOT.parent / "shared" / "golden"]
    for folder in candidates:
        if (folder / "trecvit").is_dir():
            return folder
    pytest.skip("no golden files: looked for trecvit/ in " + ", ".join(map(str, candidates)))
