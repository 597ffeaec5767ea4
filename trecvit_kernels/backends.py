"""Which implementation of an op runs: what is available here, why the others are not, and the choice.

Backends: ``reference`` (plain PyTorch, any device), ``sdpa`` (PyTorch's scaled_dot_product_attention, for
``spatial_attention``), ``native`` (C++ on the CPU), ``triton`` (3.6 or newer; GPUs, and CPU tensors in Triton's
interpreter if the environment has TRITON_INTERPRET=1 at import) and ``cuda`` (CUDA C++ on NVIDIA GPUs from compute
capability 8.0; CPU tensors in the tests' simulator if TRECVIT_SIMT names it at import).

Order of choice: the op's ``backend=`` argument, then ``with backends.use(name)``, then the environment
variable ``TRECVIT_BACKEND``, then the default of the tensor's device. A backend asked for by argument must be
offered by that op; an override or the environment variable speaks for the ops that offer the backend and
leaves the others at their default. Whatever was asked for and cannot run raises ``RuntimeError`` with the reason.
A default that has to fall back to ``reference`` warns once per op.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

NAMES = ("reference", "sdpa", "native", "triton", "cuda")
_DEFAULT_ORDER = {"cpu": ("native", "sdpa", "reference"), "cuda": ("triton", "cuda", "sdpa", "reference")}
# Triton's own reading of the variable; the kernels are made interpreted or compiled when they are imported.
_INTERPRET = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
# Module of tests/simt that runs the CUDA kernels on CPU tensors (ops/_cuda.py).
_SIMULATOR = os.environ.get("TRECVIT_SIMT", "")
_simulator_error = f"TRECVIT_SIMT names no file: {_SIMULATOR!r}" if not os.path.isfile(_SIMULATOR) else ""
_DEVICES = {
    "native": ("cpu",),
    "triton": ("cpu", "cuda") if _INTERPRET else ("cuda",),
    "cuda": ("cpu",) if _SIMULATOR else ("cuda",),
}
_TRITON_AT_LEAST = (3, 6)
_CAPABILITY_AT_LEAST = (8, 0)

_override: str | None = None
_environment: str | None = os.environ.get("TRECVIT_BACKEND") or None
_warned: set[str] = set()

_native_error: str | None = None
_has_cuda = False
try:
    _has_cuda = hasattr(importlib.import_module("trecvit_kernels._native"), "cuda")
except ImportError as error:  # the package still works, on the reference backend
    _native_error = f"the compiled extension cannot be imported ({error})"


def _triton_problem() -> str:
    """Empty if a Triton that is new enough can be found, else the reason. Looks at metadata: importing takes long."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    version = ""
    for distribution in ("triton", "pytorch-triton-rocm", "pytorch-triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(distribution)
            break
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < _TRITON_AT_LEAST:
        wanted = ".".join(map(str, _TRITON_AT_LEAST))
        return f"Triton {wanted} or newer is needed, found {version or 'one of unknown version'}"
    return ""


_triton_error = _triton_problem()


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter in this process."""
    return _INTERPRET and not _triton_error


@dataclass(frozen=True)
class Status:
    """Whether a backend can run in this process and, if not, why."""

    available: bool
    reason: str = ""


def available() -> dict[str, Status]:
    """Status of every backend in this process, in the order of ``NAMES``."""
    return {name: Status(not (why := _why_not(name)), why) for name in NAMES}


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Prefer backend ``name`` for every op called inside the ``with`` block (for the whole process).

    Raises ValueError for an unknown name and RuntimeError if the backend cannot run here.
    """
    global _override
    _check_known(name, "backends.use")
    if reason := _why_not(name):
        raise RuntimeError(f"backends.use: backend {name!r} is not available: {reason}")
    previous, _override = _override, name
    try:
        yield
    finally:
        _override = previous


def select(op: str, requested: str | None, device: str, offered: tuple[str, ...]) -> str:
    """Name of the backend that runs ``op`` on tensors of device type ``device``.

    ``offered`` are the backends that the op has. Raises ValueError for a name that is unknown or not offered,
    RuntimeError for one that cannot run.
    """
    if requested is not None:
        _check_known(requested, op)
        if requested not in offered:
            raise ValueError(f"{op}: backend must be one of {', '.join(offered)}, got {requested!r}")
    else:
        preferred = _override if _override is not None else _environment
        if preferred is not None:
            _check_known(preferred, "TRECVIT_BACKEND")
        requested = preferred if preferred in offered else None
    if requested is not None:
        if reason := _why_not(requested, device):
            raise RuntimeError(f"{op}: backend {requested!r} cannot run here: {reason}")
        return requested
    return _default(op, device, offered)


def prefers(name: str) -> bool:
    """Whether ``use`` or the environment asks for backend ``name``, for the ops that have it."""
    return name == (_override if _override is not None else _environment)


def _default(op: str, device: str, offered: tuple[str, ...]) -> str:
    candidates = [name for name in _DEFAULT_ORDER.get(device, ()) if name in offered and name != "reference"]
    for name in candidates:
        if not _why_not(name, device):
            return name
    if op not in _warned and device in _DEFAULT_ORDER:
        _warned.add(op)
        why = "; ".join(f"{name}: {_why_not(name, device)}" for name in candidates)
        warnings.warn(f"{op}: falling back to the slow reference backend on {device} ({why})", stacklevel=4)
    return "reference"


def _check_known(name: str, where: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{where}: unknown backend {name!r}; known are {', '.join(NAMES)}")


def _why_not(name: str, device: str | None = None) -> str:
    """Empty if the backend can run (on ``device``, where given), else the reason."""
    if name in ("native", "cuda") and _native_error is not None:
        return _native_error
    if name == "triton" and _triton_error:
        return _triton_error
    if device is not None and device not in _DEVICES.get(name, (device,)):
        return f"it runs on {' or '.join(_DEVICES[name])} tensors, these are on {device}"
    if name == "cuda" and _SIMULATOR:
        return _simulator_error
    if name == "cuda" and not _has_cuda:
        return "the compiled extension was built without nvcc"
    if name in ("triton", "cuda") and not torch.cuda.is_available() and not (name == "triton" and _INTERPRET):
        return "PyTorch sees no GPU"
    if name == "cuda":
        return _cuda_problem()
    return ""


@functools.cache
def _cuda_problem() -> str:
    """Empty if the CUDA kernels can run on the GPUs that PyTorch sees, else the reason."""
    if torch.version.hip:
        return "PyTorch sees AMD GPUs"
    found = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    if found < _CAPABILITY_AT_LEAST:
        least = ".".join(map(str, _CAPABILITY_AT_LEAST))
        return f"compute capability {least} or newer is needed, found {'.'.join(map(str, found))}"
    return ""


def simulated() -> bool:
    """Whether the CUDA kernels run in the tests' simulator in this process."""
    return bool(_SIMULATOR) and not _why_not("cuda")
