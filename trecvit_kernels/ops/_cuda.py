"""NVIDIA GPUs as a place to run the launchers of csrc/*/*.cu.

With TRECVIT_SIMT=<module> in the environment at import, the launchers come from that file: the same kernels built for
the CPU by tests/simt, which runs and watches them thread by thread. They then take CPU tensors.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import _native
from trecvit_kernels.ops import _schedule
from trecvit_kernels.ops._compiled import Schedule

SIMULATOR = os.environ.get("TRECVIT_SIMT", "")
SIMULATED_MULTIPROCESSORS = 2
_VECTOR_BYTES = 16  # that a thread owns of a row of gates


@functools.cache
def _launchers() -> Any:
    return load_simulator(SIMULATOR).cuda if SIMULATOR else _native.cuda


@functools.cache
def load_simulator(path: str) -> Any:
    """The module built by tests/simt. ImportError if the file is none."""
    spec = importlib.util.spec_from_file_location("_simt", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"TRECVIT_SIMT must name an extension module, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


class _GPU:
    """See ``_compiled.Machine``."""

    def schedule(self, x: Tensor, lanes: int) -> Schedule:
        batch, frames = x.shape[:2]
        warps = -(-batch * lanes * x.element_size() // (_VECTOR_BYTES * 32))
        segments = _schedule.gpu_segments(warps, frames, self.multiprocessors(x.device))
        return Schedule(_schedule.FRAMES_PER_STATE, segments, 1)

    def threads(self, elements: int) -> int:
        return 1

    def multiprocessors(self, device: torch.device) -> int:
        return SIMULATED_MULTIPROCESSORS if device.type == "cpu" else _multiprocessors(_index(device))

    def run(self, launcher: str, device: torch.device, *arguments: Any) -> None:
        """Scratch memory comes from PyTorch's allocator, which keeps it for the stream until the kernels are done."""
        scratch: list[Tensor] = []

        def allocate(bytes_: int) -> int:
            scratch.append(torch.empty(bytes_, dtype=torch.uint8, device=device))
            if SIMULATOR:  # it may be the last call's, with all that this call should wait for
                scratch[0].fill_(0xFF)
            return scratch[0].data_ptr()

        if device.type == "cpu":
            index, stream = 0, 0
        else:
            index = _index(device)
            stream = torch.cuda.current_stream(index).cuda_stream
        getattr(_launchers(), launcher)(index, self.multiprocessors(device), stream, allocate, *arguments)


GPU = _GPU()
