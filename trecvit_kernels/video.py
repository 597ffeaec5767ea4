"""From a video file to the frames that TRecViT reads, and back: decoding and encoding through PyAV.

PyAV (the extra ``trecvit-kernels[video]``) is imported on first use: the package works without it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

Source = str | os.PathLike[str] | BinaryIO
SAMPLINGS = ("uniform", "strided")
_MUXERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}
# FFmpeg opens text files as terminal recordings ("ANSI art"), and subtitles and playlists as media.
_NOT_VIDEO = {"tty", "concat", "hls", "srt", "webvtt", "ass"}


class VideoError(ValueError):
    """A file that cannot be used as a video; the message names the file and what is wrong with it."""


def read_clip(
    source: Source,
    frames: int = 32,
    *,
    sampling: str = "uniform",
    stride: int = 2,
    start: int = 0,
    size: int | tuple[int, int] = 224,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Decode one clip of ``frames`` frames, ready for ``TRecViT``.

    Each frame is scaled (bilinear, antialiased when shrinking) until it just covers ``size`` and is then
    cropped at its centre: nothing is distorted, and a frame that has ``size`` already is left as it is. The
    released TRecViT reads 224 x 224 pixels in [0, 1]; its official demo merely divides by 255 the 32 frames
    of a video that is 224 x 224 already. Rotation recorded by phones is applied; pixels are taken as square;
    time stamps are ignored (frames count).

    A file that is cut off is an error as soon as the cut is met. Matroska (WebM), MPEG-TS and GIF files do not say
    how many frames they should have: cut between two frames, they are shorter videos.

    Args:
        source: a path, or a binary file object, read from its present position and left open. No URLs.
        frames: frames in the clip, T.
        sampling: ``"uniform"`` spreads the frames evenly from ``start`` to the last frame of the video, both
            included (a single frame is ``start``); it needs a seekable source, as frames are counted first.
            ``"strided"`` takes every ``stride``-th frame from ``start`` on and decodes no further.
        stride: distance of two frames in ``"strided"`` sampling, ignored in ``"uniform"``. The paper uses 2.
        start: index of the first frame that may be used.
        size: height and width of the result in pixels, or one number for both.
        dtype: ``torch.uint8`` (0 to 255; the model accepts it) or a floating dtype (0 to 1).

    Returns:
        (1, frames, 3, height, width), RGB.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError, IsADirectoryError, PermissionError: there is no file that can be read.
        TypeError, ValueError: an argument has the wrong type or is out of range.
        VideoError (a ValueError): the file is empty, not a video, without a video stream, damaged or
            truncated in the part that is read, or has too few frames (the message says how many there are).
    """
    height, width = _check("read_clip", size, dtype, frames=(frames, 1), stride=(stride, 1), start=(start, 0))
    if sampling not in SAMPLINGS:
        raise ValueError(f"read_clip: sampling must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")

    if sampling == "strided":
        needed = start + (frames - 1) * stride + 1
        wanted = list(range(start, needed, stride))
        chosen, seen = _read(source, wanted, height, width, until=needed)
    else:
        needed = start + frames
        origin = _position(source)
        _rewind(source, origin)  # refuses what cannot be read twice
        with _Reader(source) as reader:
            count = sum(1 for packet in reader.packets() if packet.size)
        _rewind(source, origin)
        wanted = _uniform(start, count, frames)
        chosen, seen = _read(source, wanted, height, width)
        if seen != count:  # a packet need not be a frame (edit lists): go by what was decoded
            _rewind(source, origin)
            wanted = _uniform(start, seen, frames)
            chosen, seen = _read(source, wanted, height, width)
    if seen < needed:
        asked = f"{frames} frames" + (f" with stride {stride}" if sampling == "strided" else "")
        asked += f" from frame {start} on" if start else ""
        raise VideoError(f"{_name(source)} is too short: it has {seen} frames, {asked} need {needed}")
    clip = torch.from_numpy(np.stack([chosen[i] for i in wanted])).permute(0, 3, 1, 2)
    return _convert(clip[None], dtype)


def iter_frames(
    source: Source,
    size: int | tuple[int, int] = 224,
    *,
    stride: int = 1,
    start: int = 0,
    frames: int | None = None,
    dtype: torch.dtype = torch.uint8,
) -> Iterator[Tensor]:
    """Frames of a video one after another, for streaming: only the frame at hand is in memory.

    The file is opened and checked by the call itself, before the first frame is asked for. Scaling and
    cropping are those of ``read_clip``.

    Args:
        source, size, dtype: as in ``read_clip``. The source need not be seekable.
        stride: yield every ``stride``-th frame. start: index of the first one.
        frames: stop after so many; None: at the end of the video.

    Yields:
        (1, 3, height, width), RGB: a batch of one.

    Raises:
        as ``read_clip``. VideoError comes part-way where the file is damaged or cut off, and at the end if
        there was no frame to yield, or fewer than ``frames``.
    """
    limits = {} if frames is None else {"frames": (frames, 1)}
    height, width = _check("iter_frames", size, dtype, stride=(stride, 1), start=(start, 0), **limits)
    reader = _Reader(source)

    def generate() -> Iterator[Tensor]:
        seen = given = 0
        with reader:
            for frame in reader.frames():
                if seen >= start and (seen - start) % stride == 0:
                    picture = torch.from_numpy(_fit(frame, height, width)).permute(2, 0, 1)
                    yield _convert(picture[None], dtype)
                    given += 1
                    if given == frames:
                        return
                seen += 1
        if given < (frames or 1):
            needed = start + ((frames or 1) - 1) * stride + 1
            raise VideoError(f"{reader.name} is too short: it has {seen} frames, {needed} are needed")

    return generate()


def write_video(path: str | os.PathLike[str], frames: Tensor | Iterable[Tensor], fps: int = 30) -> None:
    """Encode frames as a video file: .mp4, .mov, .mkv or .avi, by the suffix of ``path``.

    H.264 where the PyAV at hand can encode it, else MPEG-4 part 2. Both lose a little; quality is set high.

    Args:
        path: a file that does not exist yet.
        frames: uint8 (T, 3, H, W), or an iterable of (3, H, W); RGB, H and W even (4:2:0 colour).
        fps: frames per second.

    Raises:
        ImportError: PyAV is not installed. FileExistsError: ``path`` exists; it is left alone.
        TypeError, ValueError: a suffix, frame or fps that does not fit, or no frame. No file is left then.
    """
    av = _import_av()
    _check_int("write_video", "fps", fps, 1)
    target = Path(path)
    if target.suffix.lower() not in _MUXERS:
        raise ValueError(f"write_video: path must end in {', '.join(_MUXERS)}, got {target.name!r}")
    h264 = "libx264" in av.codecs_available
    name, options = ("libx264", {"crf": "18"}) if h264 else ("mpeg4", {"qscale": "2"})
    with target.open("xb") as file:  # "x": never write over a file
        try:
            with av.open(file, "w", format=_MUXERS[target.suffix.lower()]) as container:
                stream: Any = None
                for frame in frames:
                    picture = _as_picture(frame)
                    if stream is None:
                        stream = container.add_stream(name, rate=fps, options=options)
                        stream.height, stream.width = picture.shape[:2]
                        stream.pix_fmt = "yuv420p"
                    elif picture.shape[:2] != (stream.height, stream.width):
                        first = (stream.height, stream.width)
                        raise ValueError(
                            f"write_video: all frames must be {first}, as the first, got {picture.shape[:2]}"
                        )
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                if stream is None:
                    raise ValueError("write_video: frames must hold at least one frame, got none")
                container.mux(stream.encode(None))
        except BaseException:
            target.unlink(missing_ok=True)
            raise


class _Reader:
    """An open video: its packets and frames, with one kind of error for whatever is wrong with the file."""

    def __init__(self, source: Source, threads: bool = False) -> None:
        av = _import_av()
        self.name = _name(source)
        self._ffmpeg_error = av.error.FFmpegError
        target = _check_source(source, self.name)
        try:  # files may not make FFmpeg open anything else, least of all over the network
            options = {"protocol_whitelist": "file"}
            self._container = av.open(target, options=options, metadata_errors="ignore")
        except av.error.FFmpegError as error:
            raise VideoError(
                f"{self.name} is not a video, or its header is cut off ({error.strerror})"
            ) from error
        try:
            if _NOT_VIDEO & set(self._container.format.name.split(",")):
                raise VideoError(f"{self.name} is not a video (format: {self._container.format.long_name})")
            cover = av.stream.Disposition.attached_pic  # album art in a sound file is no video
            streams = [s for s in self._container.streams.video if not s.disposition & cover]
            if not streams:
                only = "only sound" if self._container.streams.audio else "no video stream"
                raise VideoError(f"{self.name} is not a video: it has {only}")
        except BaseException:
            self._container.close()
            raise
        weakref.finalize(self, self._container.close)  # also where frames() is never begun
        self._stream = streams[0]
        if threads:  # frame threads decode ahead: where many frames are wanted at once
            self._stream.thread_type = "AUTO"
        # Where the header lists all packets (MP4), it is known when some are missing (recent PyAV tells).
        self._listed = len(getattr(self._stream, "index_entries", ()))

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def packets(self) -> Iterator[Any]:
        """Packets of the video stream, an empty one last; VideoError where the file is cut off."""
        count = 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    raise self._damaged(count, "its data ends early")
                count += packet.dts is not None or packet.size > 0
                yield packet
        except self._ffmpeg_error as error:
            raise self._damaged(count, error.strerror) from error
        if count < self._listed:
            raise self._damaged(count, "its data ends early")

    def frames(self) -> Iterator[Any]:
        """Decoded frames in order of display; VideoError where data makes no sense, or there is none."""
        count = 0
        try:
            for packet in self.packets():
                for frame in packet.decode():
                    count += 1
                    yield frame
        except self._ffmpeg_error as error:
            raise self._damaged(count, error.strerror) from error
        except VideoError:  # cut off: the decoder still holds some good frames
            with contextlib.suppress(self._ffmpeg_error):
                yield from self._stream.codec_context.decode(None)
            raise
        if count == 0:
            raise VideoError(f"{self.name} has a video stream, but not one frame of it can be decoded")

    def _damaged(self, count: int, reason: str) -> VideoError:
        total = max(self._listed, self._stream.frames)
        read = f"{count} of {total} frames" if total > count else f"{count} frames"
        return VideoError(f"{self.name} is truncated or damaged: reading stopped after {read} ({reason})")


def _check_source(source: Source, name: str) -> Any:
    """What PyAV may open; errors for paths and objects that hold no bytes to read."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"no such video: {name}")
        if path.is_dir():
            raise IsADirectoryError(f"{name} is a directory, not a video")
        if not os.access(path, os.R_OK):
            raise PermissionError(f"{name} cannot be read: permission denied")
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            raise VideoError(f"{name} is empty (0 bytes)")
        return f"file:{os.fspath(path)}"  # a name with a colon in it is not a protocol
    if not callable(getattr(source, "read", None)):
        raise TypeError(f"source must be a path or a binary file object, got {type(source).__name__}")
    if not isinstance(source.read(0), bytes):
        raise TypeError("source must be opened in binary mode ('rb'), got a text file")
    if (position := _position(source)) is not None:
        if source.seek(0, os.SEEK_END) <= position:
            raise VideoError(f"{name} is empty (no bytes after position {position})")
        source.seek(position)
    return source


def _read(
    source: Source, wanted: list[int], height: int, width: int, until: int | None = None
) -> tuple[dict[int, np.ndarray], int]:
    """The frames whose index is wanted, and how many frames were decoded (all, if ``until`` is None)."""
    chosen: dict[int, np.ndarray] = {}
    seen, pending = 0, set(wanted)
    with _Reader(source, threads=True) as reader:
        for frame in reader.frames():
            if seen in pending:
                chosen[seen] = _fit(frame, height, width)
            seen += 1
            if seen == until:
                break
    return chosen, seen


def _uniform(start: int, count: int, frames: int) -> list[int]:
    """Distinct indices, evenly spread over [start, count - 1]; empty if there are too few frames."""
    if count - start < frames:
        return []
    return [start + i * (count - 1 - start) // max(frames - 1, 1) for i in range(frames)]


def _fit(frame: Any, height: int, width: int) -> np.ndarray:
    """RGB (height, width, 3) from a PyAV frame: scaled to cover, cropped at the centre, turned upright."""
    turns = round(frame.rotation / 90) % 4  # counter-clockwise quarter turns
    if turns % 2:
        height, width = width, height
    scale = max(height / frame.height, width / frame.width)
    rows, columns = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    picture = frame.reformat(columns, rows, "rgb24", interpolation="BILINEAR").to_ndarray()
    top, left = (rows - height) // 2, (columns - width) // 2
    return np.ascontiguousarray(np.rot90(picture[top : top + height, left : left + width], turns))


def _as_picture(frame: object) -> np.ndarray:
    if not isinstance(frame, Tensor) or frame.dtype != torch.uint8:
        kind = str(frame.dtype) if isinstance(frame, Tensor) else type(frame).__name__
        raise TypeError(f"write_video: each frame must be a torch.uint8 tensor, got {kind}")
    if frame.ndim != 3 or frame.shape[0] != 3 or any(s % 2 or s == 0 for s in frame.shape[1:]):
        raise ValueError(f"write_video: each frame must be (3, even, even), got {tuple(frame.shape)}")
    return np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())


def _convert(pictures: Tensor, dtype: torch.dtype) -> Tensor:
    pictures = pictures.contiguous()
    return pictures if dtype == torch.uint8 else pictures.to(dtype).div_(255)


def _name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


def _position(source: Any) -> int | None:
    """Where a seekable file object stands; None for paths and for what cannot seek."""
    seekable = getattr(source, "seekable", None)
    return source.tell() if callable(seekable) and seekable() else None


def _rewind(source: Any, origin: int | None) -> None:
    if origin is not None:
        source.seek(origin)
    elif hasattr(source, "read"):
        raise ValueError(
            "read_clip: uniform sampling reads twice and needs a seekable source; use sampling='strided'"
        )


def _check(where: str, size: object, dtype: object, **limits: tuple[object, int]) -> tuple[int, int]:
    """Checks the arguments that the readers share (name=(value, least)); returns (height, width)."""
    for name, (value, least) in limits.items():
        _check_int(where, name, value, least)
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{where}: size must be one number or (height, width), got {size}")
    for value in pair:
        _check_int(where, "size", value, 1)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{where}: dtype must be a torch.dtype, got {type(dtype).__name__}")
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise ValueError(f"{where}: dtype must be torch.uint8 or a floating dtype, got {dtype}")
    return int(pair[0]), int(pair[1])


def _check_int(where: str, name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{where}: {name} must be at least {least}, got {value}")


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "reading and writing video needs PyAV: pip install 'trecvit-kernels[video]'", name="av"
        ) from error
    return av
