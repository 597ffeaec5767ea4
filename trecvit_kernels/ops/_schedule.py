"""Launch decisions shared by the recurrent ops: pure functions of shape and machine.

*Serial*: a thread owns a run of lanes and walks time. *Chunked*: time is cut into segments that run side by
side (summaries of segments, a carry scan, a replay), for long sequences with too few lanes to fill the cores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

FRAMES_PER_STATE = 16  # one state saved for so many frames, at most kMaxFramesPerState in csrc
LANES_PER_BLOCK = 256  # lanes that one thread walks together (kMaxBlock in csrc/common/blocks.h)
_MIN_FRAMES_PER_SEGMENT = 64  # below this the second pass over a segment costs more than it gains

SCHEDULES = ("serial", "chunked")
_forced: str | None = None


def saved_states(frames: int, frames_per_state: int = FRAMES_PER_STATE) -> int:
    """Number of states that the forward pass saves for the backward: one before every chunk but the first."""
    return (frames - 1) // frames_per_state


def segments(batch: int, lanes: int, frames: int, threads: int) -> int:
    """Into how many segments of time to cut a scan; 1 is the serial schedule."""
    chunks = saved_states(frames) + 1
    if _forced == "serial" or chunks == 1:
        return 1
    if _forced == "chunked":
        return min(chunks, max(2, threads))
    blocks = batch * -(-lanes // LANES_PER_BLOCK)
    # Two passes double the arithmetic, so cutting time pays only while more than half the threads are idle.
    if 2 * blocks > threads or frames < 2 * _MIN_FRAMES_PER_SEGMENT:
        return 1
    return min(threads // blocks, frames // _MIN_FRAMES_PER_SEGMENT, chunks)


@contextlib.contextmanager
def force(schedule: str) -> Iterator[None]:
    """Run every scan inside the ``with`` block by this schedule (for tests and measurements)."""
    global _forced
    if schedule not in SCHEDULES:
        raise ValueError(f"force: schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    previous, _forced = _forced, schedule
    try:
        yield
    finally:
        _forced = previous


# GPUs

_WARPS_PER_MULTIPROCESSOR = 12  # so many warps with loads in flight keep the memory of a GPU busy


def gpu_segments(warps: int, frames: int, multiprocessors: int) -> int:
    """Into how many segments of time a GPU cuts a scan; 1 is the serial schedule, which runs so many warps."""
    chunks = saved_states(frames) + 1
    if _forced == "serial" or chunks == 1:
        return 1
    wanted = _WARPS_PER_MULTIPROCESSOR * multiprocessors
    if _forced == "chunked":
        return min(chunks, max(2, wanted // warps))
    # Two passes read the inputs twice, so cutting time pays only while more than half of the warps are missing.
    if 2 * warps > wanted or frames < 2 * _MIN_FRAMES_PER_SEGMENT:
        return 1
    return min(wanted // warps, frames // _MIN_FRAMES_PER_SEGMENT, chunks)


def segment_frames(frames: int, segments: int) -> int:
    """Length of a segment: whole chunks, so that states are saved where they would be without segments."""
    chunks = saved_states(frames) + 1
    return -(-chunks // segments) * FRAMES_PER_STATE


def gpu_walks_tiles(sequences: int, multiprocessors: int) -> bool:
    """Whether a program of ``spatial_attention`` walks all tiles of its frame and head ("serial"), not one of them."""
    if _forced is not None:
        return _forced == "serial"
    return sequences >= multiprocessors
