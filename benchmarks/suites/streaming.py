"""Frames pushed into a ``Stream`` one by one: a step against its floor, and a long stream's latencies and memory."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import floors
from benchmarks.models import baselines
from benchmarks.models import common as models
from benchmarks.models.common import dtype_name, on
from benchmarks.rows import FAILURES, Comparison, Measurement, Peer
from benchmarks.setting import Setting
from benchmarks.suites.model import COMPILED, MODEL, ONEDNN, PRODUCTS, REFERENCE
from benchmarks.timing import Budget
from trecvit_kernels import Stream, TRecViT

# On the CPU, at most so many times the floor.
STEP = {torch.float32: 1.06, torch.bfloat16: 1.2}
LONG = (("TRecViT-B", torch.bfloat16), ("TRecViT-S", torch.float32))
FRAMES, QUICK_FRAMES, TINY_FRAMES = 2000, 50, 20
_POOL = 16  # different frames, pushed in turn
_SAMPLES = 200  # of resident memory over the stream
_WARM_UP = 3  # frames of a stream before: a CUDA graph is captured at the second
_FLAT_SHARE, _FLAT_BYTES = 0.01, 8 * 2**20  # by which memory may differ and still count as flat


def rows(at: Setting) -> Iterator[Comparison | Measurement]:
    """One step of the released TRecViT-B, then the long streams of the paper's models."""
    yield from _steps(at)
    if not at.floors_only:
        yield from _long(at)


def _steps(at: Setting) -> Iterator[Comparison]:
    """One frame pushed into a stream that is under way."""
    on_gpu = at.device == "cuda"
    budget = at.budget(Budget(12.0, 7, 40), Budget(1.0, 2, 5))
    for dtype in at.dtypes_or(*((torch.bfloat16,) if on_gpu else (torch.float32, torch.bfloat16))):
        model = models.build(at, MODEL, dtype)
        frame, first = models.random_video(model, 2, 1)[:, 0].split(1)
        row = functools.partial(Comparison, "streaming", budget=budget, clock=at.wall)
        what = f"TRecViT-B streaming step, {dtype_name(dtype)}"
        check = functools.cache(functools.partial(models.check_streaming, model))
        push = _under_way(model, first, frame)
        limit = None if on_gpu else STEP.get(dtype)
        least = floors.ModelFloor(model, 1, 1)
        yield row(what, push, [Peer(PRODUCTS, least.forward, None)], check, limit=limit, floor=True)
        if not on_gpu:
            onednn = floors.ModelFloor(model, 1, 1, onednn=True)
            yield row(what, push, [Peer(ONEDNN, onednn.forward, None)], check, floor=True)
        if not at.in_dtype(dtype).floors_only:
            reference = on("reference", _under_way(model, first, frame, "reference"))
            yield row(what, push, [Peer(REFERENCE, reference, None)], check)
            if not at.quick:
                other = models.compiled_blocks(at, model)
                compiled = on("reference", _under_way(other, first, frame, "reference"))
                yield row(what, push, [Peer(COMPILED, compiled, None)], check)
                del other, compiled
            for name in models.kernels(at.device)[1:]:
                other = on(name, _under_way(model, first, frame, name))
                again = functools.cache(functools.partial(on(name, models.check_streaming), model))
                yield row(f"{what}, backend {name}", other, [Peer(REFERENCE, reference, None)], again)
        del model, least, push, check
        gc.collect()


def _under_way(
    model: TRecViT, first: Tensor, frame: Tensor, backend: str | None = None
) -> Callable[[], Tensor]:
    """Push ``frame`` into a stream that has had its first; a CUDA graph keeps the backend of its capture."""
    stream = Stream(model)
    on(backend, stream.push)(first)
    return functools.partial(stream.push, frame)


def _long(at: Setting) -> Iterator[Measurement]:
    """Many frames through one stream."""
    frames = TINY_FRAMES if at.tiny else QUICK_FRAMES if at.quick else FRAMES
    for label, usual in LONG:
        for dtype in at.dtypes_or(usual):
            for name in models.kernels(at.device) or ("reference",):
                yield Measurement(
                    "streaming",
                    f"{label}, {dtype_name(dtype)}, {name}",
                    {"frames": frames, "batch": 1},
                    functools.partial(_checked_stream, at, label, dtype, name, frames),
                )


def _checked_stream(at: Setting, label: str, dtype: torch.dtype, backend: str, frames: int) -> dict[str, Any]:
    """The stream's values, on a CPU found by a process of its own, in whose memory nothing else is.

    Here, what PyTorch's allocator kept of earlier rows would count as the stream's.
    """
    model = models.build(at, baselines.TRECVIT[label], dtype)
    if wrong := on(backend, models.check_streaming)(model):
        return {"note": f"{FAILURES[0]}, wrong result: {wrong}"}
    if at.device != "cpu" or at.tiny:
        return on(backend, stream)(model, frames)
    del model
    gc.collect()
    return _in_a_process(at, label, dtype, backend, frames)


def _in_a_process(at: Setting, label: str, dtype: torch.dtype, backend: str, frames: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe(duplex=False)
    arguments = (its, at, label, dtype, backend, frames, torch.get_num_threads())
    process = context.Process(target=_stream_alone, args=arguments, daemon=True)
    process.start()
    its.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the stream's process ended with {process.exitcode}") from None
    finally:
        process.terminate()  # a run that is stopped does not wait for it
        process.join()


def _stream_alone(
    to: Connection, at: Setting, label: str, dtype: torch.dtype, backend: str, frames: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    to.send(on(backend, stream)(models.build(at, baselines.TRECVIT[label], dtype), frames))


def stream(model: TRecViT, frames: int) -> dict[str, Any]:
    """Push random frames, each different from the one before, and wait for every prediction.

    Returns:
        p50, p99, mean and latencies (seconds of each frame, the first included), frames_per_second,
        state_bytes (of the stream's state at the end), resident (bytes, sampled along the way: of the process, on a GPU
        those allocated there) and resident_at (number of frames pushed by then), note.
    """
    pool = models.random_video(model, 1, min(_POOL, frames))[0].split(1)
    on_gpu = model.embedding.weight.is_cuda
    memory = torch.cuda.memory_allocated if on_gpu else resident_bytes
    moving = Stream(model)
    for frame in pool[:_WARM_UP]:
        moving.push(frame)
    moving.reset()
    gc.collect()
    latencies, resident, resident_at = [], [], []
    every = max(1, frames // _SAMPLES)
    for index in range(frames):
        frame = pool[index % len(pool)]
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        logits = moving.push(frame)
        if on_gpu:
            torch.cuda.synchronize()
        latencies.append(time.perf_counter() - began)
        if (index + 1) % every == 0:
            resident.append(memory())
            resident_at.append(index + 1)
    if not logits.isfinite().all():
        return {"note": f"{FAILURES[0]}, wrong result: logits are not finite"}
    return {
        **latency(latencies),
        "frames_per_second": frames / sum(latencies),
        "state_bytes": moving.state.nbytes,
        "latencies": latencies,
        "resident": resident,
        "resident_at": resident_at,
        "note": flatness(resident),
    }


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile (linear interpolation between neighbours) and mean."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "mean": statistics.fmean(seconds)}


def flatness(resident: Sequence[int]) -> str:
    """What to say of memory over time: its mean in the last quarter against the second quarter."""
    if len(resident) < 4:
        return ""
    quarter = len(resident) // 4
    before = statistics.fmean(resident[quarter : 2 * quarter])
    grown = statistics.fmean(resident[-quarter:]) - before
    flat = abs(grown) <= max(_FLAT_SHARE * before, _FLAT_BYTES)
    return (
        f"memory {'is flat' if flat else 'IS NOT FLAT'}: {before / 1e6:.1f} MB in the second quarter of the stream,"
        f" {grown / 1e6:+.1f} MB in the last"
    )


def resident_bytes() -> int:
    """Resident memory of this process; its highest so far where there is no /proc (macOS)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
