"""One clip out of a video file: which frames, which window of the picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from torch import Tensor

from trecvit_kernels import video as video_io
from trecvit_kernels.training.config import DataConfig

# As for ImageNet: scaled to 256, cropped to 224. Jitter multiplies the 256.
_MARGIN = 256 / 224


class VideoBytes(io.BytesIO):
    """A video in memory, with a name for error messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def load_clip(source: Path | VideoBytes, data: DataConfig, rng: np.random.Generator | None) -> Tensor:
    """Decode one clip, uint8 (T, 3, H, W).

    In training (``rng``) it starts at a random frame and shows a random window of pictures scaled at random
    (``data.scale_jitter``), mirrored at random with ``data.flip``. In evaluation it is the middle of the video, and of
    the picture. Videos that are too short for the stride give frames spread over their whole length.

    Raises:
        VideoError: a damaged video, or one of fewer frames than the clip. OSError: a file that cannot be read.
    """
    count, rows, columns = _probe(source)
    height, width = data.size
    span = (data.frames - 1) * data.stride + 1
    if count >= span:
        start = (count - span) // 2 if rng is None else int(rng.integers(count - span + 1))
        sampling, stride = "strided", data.stride
    else:
        start, sampling, stride = 0, "uniform", 1
    view = (height, width)
    if rng is not None:
        scale = max(height / rows, width / columns) * _MARGIN * rng.uniform(*data.scale_jitter)
        view = (max(height, round(rows * scale)), max(width, round(columns * scale)))
    clip = video_io.read_clip(source, data.frames, sampling=sampling, stride=stride, start=start, size=view)[
        0
    ]
    if rng is None:
        return clip
    top, left = (view[0] - height) // 2, (view[1] - width) // 2
    if data.random_crop:
        top, left = int(rng.integers(view[0] - height + 1)), int(rng.integers(view[1] - width + 1))
    clip = clip[..., top : top + height, left : left + width]
    if data.flip and rng.random() < 0.5:
        clip = clip.flip(-1)
    return clip.contiguous()


def _probe(source: Path | VideoBytes) -> tuple[int, int, int]:
    """Frames (as the header says; else packets are counted), rows and columns of a video."""
    with video_io._Reader(source) as reader:
        stream = reader._stream
        count = stream.frames or reader._listed or sum(1 for packet in reader.packets() if packet.size)
        size = count, stream.height, stream.width
    if isinstance(source, VideoBytes):
        source.seek(0)
    return size
