"""Energy of a piece of work as the GPU itself reports it. **This has not been run on a GPU yet.**"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.timing import Work

_QUERY = ("--query-gpu=power.draw", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Energy:
    """Mean power while one work repeats, and the energy of one call."""

    watts: float
    joules: float


def of(work: Work, seconds: float = 3.0, smi: Sequence[str] = ("nvidia-smi",)) -> Energy | None:
    """Repeat ``work`` for some seconds while ``smi`` is asked for the power; None where it reports none.

    What the driver reports is an average over up to a second, so the first half of the samples is left out.
    """
    command = [*smi, *_device(), *_QUERY]
    samples: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):  # "[N/A]" is no number
            while not stop.is_set():
                asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
                samples.append(float(asked.stdout))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    calls, began = 0, time.perf_counter()
    try:
        while (elapsed := time.perf_counter() - began) < seconds and sampler.is_alive():
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            calls += 1
    finally:
        stop.set()
        sampler.join()
    if not samples or not calls:
        return None
    watts = statistics.mean(samples[len(samples) // 2 :])
    return Energy(watts, watts * elapsed / calls)


def _device() -> list[str]:
    """nvidia-smi's option that names the GPU which PyTorch uses: their numbers can differ."""
    return [f"--id=GPU-{torch.cuda.get_device_properties().uuid}"] if torch.cuda.is_available() else []
