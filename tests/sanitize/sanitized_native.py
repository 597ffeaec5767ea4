"""pytest plugin of `make sanitize`: ``trecvit_kernels._native`` from the file TRECVIT_NATIVE_FILE names.

Used as ``pytest -p sanitized_native`` with this folder on PYTHONPATH. Plugins load before any test imports
the package, and the run stops unless the module that was loaded really is one built with sanitizers.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

NAME = "trecvit_kernels._native"
FILE = os.environ["TRECVIT_NATIVE_FILE"]


class SanitizedFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, FILE) if name == NAME else None


sys.meta_path.insert(0, SanitizedFinder())


def pytest_sessionstart() -> None:
    """Also in every worker of pytest-xdist: stop unless the extension is the sanitized one."""
    from trecvit_kernels import _native

    if not _native.sanitizers or os.path.realpath(_native.__file__) != os.path.realpath(FILE):
        raise pytest.UsageError(f"{_native.__file__} is not the extension built with sanitizers")


def pytest_report_header() -> str:
    from trecvit_kernels import _native

    return f"trecvit_kernels._native: {FILE}, built with -fsanitize={_native.sanitizers}"
