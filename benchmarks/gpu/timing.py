"""Seconds that a GPU spends on one call, and what the GPU can do at best."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.timing import Clock, Work, seconds

_COPIED = 2**31  # bytes: many times the L2 cache
_BLOCK = 2**24
_MATMUL = 8192
_LEAD, _LONGEST_LEAD = 5e-4, 2e-2  # seconds that the GPU is kept waiting, so that the host is ahead of it


class Stopwatch:
    """Time between two events around a call, with the L2 cache emptied before.

    The GPU first sleeps and then overwrites a buffer larger than its L2 cache; meanwhile the host queues the whole
    call, so that launch gaps are not in the time. A call that took the host longer than the GPU waited is timed
    again with a longer wait, up to ``_LONGEST_LEAD``; beyond that (a call that synchronises) gaps are in.
    """

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties().L2_cache_size
        self.buffer = torch.empty(max(4 * cache, 2**28), dtype=torch.uint8, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.lead = _LEAD
        self.ticks = 1e9  # clock ticks in a second, until they are counted
        for _ in range(2):
            self.ticks /= self._timed(lambda: torch.cuda._sleep(int(self.ticks / 100)))[0] * 100

    def __call__(self, work: Work) -> float:
        lead = self.lead
        while True:
            torch.cuda._sleep(int(lead * self.ticks))
            self.buffer.zero_()
            elapsed, host = self._timed(work)
            if host < lead or lead >= _LONGEST_LEAD:
                return elapsed
            lead = min(3 * host, _LONGEST_LEAD)

    def _timed(self, work: Work) -> tuple[float, float]:
        """Seconds of the GPU, and of the host for queueing."""
        self.start.record()
        began = time.perf_counter()
        result = work()
        host = time.perf_counter() - began
        self.end.record()
        self.end.synchronize()
        del result
        return self.start.elapsed_time(self.end) / 1e3, host


def wall(work: Work) -> float:
    """Seconds until the GPU has done one call, the host's part included: what a user waits for."""

    def run() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return seconds(run)


def copy(nbytes: int, device: str) -> Work:
    """A copy that moves ``nbytes``, half of them read and half written, between buffers that exist already."""
    half = max(1, nbytes // 2)
    # Random, but a block of it repeated: on a CPU random numbers take longer than what they are for.
    block = torch.randint(0, 255, (min(half, _BLOCK),), dtype=torch.uint8, device=device)
    source = block.repeat(-(-half // block.numel()))[:half]
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def matmul(device: str, size: int = _MATMUL) -> tuple[Work, float]:
    """A square bfloat16 matrix product on random data, and its floating-point operations."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def rates(clock: Clock, device: str, tiny: bool) -> dict[str, float]:
    """Copy bandwidth in bytes/s, counting read and write, and bfloat16 matrix products in FLOP/s."""
    nbytes = 2**22 if tiny else _COPIED
    product, flops = matmul(device, 256 if tiny else _MATMUL)
    return {
        "copy": nbytes / _median(clock, copy(nbytes, device)),
        "matmul_bfloat16": flops / _median(clock, product),
    }


def _median(clock: Clock, work: Work) -> float:
    for _ in range(3):
        work()
    return statistics.median(clock(work) for _ in range(15))
