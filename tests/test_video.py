"""Decoding and encoding: what is read from good files, and what is said about bad ones."""

from __future__ import annotations

import builtins
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trecvit_kernels import video
from trecvit_kernels.video import VideoError, iter_frames, read_clip, write_video

av = pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")


def grey_frames(count: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Frame t is uniform grey of level 10 t, so that a decoded frame tells its index."""
    levels = torch.arange(count, dtype=torch.uint8) * 10
    return levels[:, None, None, None].expand(count, 3, height, width)


def indices(clip: torch.Tensor) -> list[int]:
    return [round(frame.float().mean().item() / 10) for frame in clip.reshape(-1, *clip.shape[-3:])]


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """20 frames of 64 x 64, frame t grey of level 10 t."""
    path = tmp_path / "short.mp4"
    write_video(path, grey_frames(20), fps=10)
    return path


def noise_video(path: Path, count: int = 20, **options: str) -> Path:
    """Frames that do not compress, so that cutting the file cuts frames."""
    pictures = np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def sound_file(path: Path, codec: str, cover: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="mono")
        if cover:
            picture = container.add_stream("png", rate=1)
            picture.width = picture.height = 16
            picture.pix_fmt = "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
        tone = (np.sin(np.arange(44100) * 0.05) * 8000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = 44100
        if cover:
            image = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# ---- reading


def test_uniform_sampling_spans_the_video(short: Path) -> None:
    clip = read_clip(short, 7, size=32)
    assert clip.shape == (1, 7, 3, 32, 32)
    assert clip.dtype == torch.uint8
    assert clip.is_contiguous()
    assert indices(clip) == [0, 3, 6, 9, 12, 15, 19]
    assert indices(read_clip(short, 20, size=32)) == list(range(20))
    assert indices(read_clip(short, 1, size=32)) == [0]
    assert indices(read_clip(short, 3, start=10, size=32)) == [10, 14, 19]


def test_strided_sampling(short: Path) -> None:
    assert indices(read_clip(short, 4, sampling="strided", size=32)) == [0, 2, 4, 6]
    assert indices(read_clip(short, 4, sampling="strided", stride=5, start=4, size=32)) == [4, 9, 14, 19]


def test_floating_frames_are_in_unit_range(short: Path) -> None:
    clip = read_clip(short, 20, size=16, dtype=torch.float32)
    assert clip.dtype == torch.float32
    torch.testing.assert_close(clip, read_clip(short, 20, size=16).float() / 255)
    assert clip.min() >= 0
    assert 0.7 < clip.max() <= 1


def test_file_objects_are_read_from_their_position_and_left_open(short: Path) -> None:
    expected = read_clip(short, 5, size=32)
    with short.open("rb") as file:
        torch.testing.assert_close(read_clip(file, 5, size=32), expected, rtol=0, atol=0)
        assert not file.closed
    stored = io.BytesIO(short.read_bytes())
    torch.testing.assert_close(read_clip(stored, 5, size=32), expected, rtol=0, atol=0)


def test_unseekable_source_streams_but_cannot_be_counted(tmp_path: Path) -> None:
    path = noise_video(tmp_path / "a.avi")

    class Pipe:
        def __init__(self) -> None:
            self.file = io.BytesIO(path.read_bytes())

        def read(self, count: int = -1) -> bytes:
            return self.file.read(count)

    assert len(list(iter_frames(Pipe(), 16))) == 20  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seekable source; use sampling='strided'"):
        read_clip(Pipe(), 4)  # type: ignore[arg-type]


def test_frames_are_scaled_to_cover_and_cropped_at_the_centre(tmp_path: Path) -> None:
    frames = torch.zeros(2, 3, 64, 128, dtype=torch.uint8)
    frames[:, 0, :, :32] = 255  # red on the left quarter: cropped away
    frames[:, 1, :, 32:64] = 255
    frames[:, 2, :, 64:96] = 255
    frames[:, :, :, 96:] = 255  # white on the right quarter: cropped away
    path = tmp_path / "wide.mp4"
    write_video(path, frames)
    clip = read_clip(path, 1, size=32)[0, 0].float()
    left, right = clip[:, :, 2:14].mean(dim=(1, 2)), clip[:, :, 18:30].mean(dim=(1, 2))
    torch.testing.assert_close(left, torch.tensor([0.0, 255.0, 0.0]), rtol=0, atol=12)
    torch.testing.assert_close(right, torch.tensor([0.0, 0.0, 255.0]), rtol=0, atol=12)
    assert read_clip(path, 1, size=(40, 20)).shape == (1, 1, 3, 40, 20)
    # A frame of the right size is neither scaled nor cropped.
    same = read_clip(path, 1, size=(64, 128))[0, 0].float()
    assert (same - frames[0].float()).abs().mean() < 6


def test_rotation_recorded_in_the_file_is_applied(tmp_path: Path) -> None:
    frames = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    frames[:, 0, :16] = 255  # red bar on top
    path = tmp_path / "phone.mp4"
    write_video(path, frames)
    data = bytearray(path.read_bytes())
    # Display matrix of the track header (ISO 14496-12), 16.16 fixed point: a quarter turn clockwise.
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, 64 * 65536, 0, 1 << 30)
    path.write_bytes(data)
    red = read_clip(path, 1, size=64)[0, 0, 0].float()
    assert red[:, 50:].mean() > 200  # the bar is now on the right
    assert red[:, :46].mean() < 30


def test_iter_frames_gives_one_frame_at_a_time(short: Path) -> None:
    frames = list(iter_frames(short, 32))
    assert [f.shape for f in frames] == [(1, 3, 32, 32)] * 20
    torch.testing.assert_close(torch.stack(frames, 1), read_clip(short, 20, size=32), rtol=0, atol=0)
    assert indices(torch.cat(list(iter_frames(short, 32, stride=3, start=1, frames=4)))) == [1, 4, 7, 10]
    assert next(iter_frames(short, 32, dtype=torch.float64)).dtype == torch.float64


def test_iter_frames_decodes_no_further_than_asked(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    fit = video._fit
    monkeypatch.setattr(video, "_fit", lambda *args: fitted.append(1) or fit(*args))
    stream = iter_frames(short, 16)
    next(stream)
    next(stream)
    assert len(fitted) == 2
    stream.close()


# ---- files that cannot be used


@pytest.mark.parametrize("read", [lambda p: read_clip(p, 4), lambda p: iter_frames(p)], ids=["clip", "iter"])
class TestUnusable:
    def test_missing(self, read, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no such video: .*none.mp4"):
            read(tmp_path / "none.mp4")

    def test_directory(self, read, tmp_path: Path) -> None:
        with pytest.raises(IsADirectoryError, match="is a directory, not a video"):
            read(tmp_path)

    def test_empty(self, read, tmp_path: Path) -> None:
        (tmp_path / "empty.mp4").touch()
        with pytest.raises(VideoError, match=r"empty.mp4 is empty \(0 bytes\)"):
            read(str(tmp_path / "empty.mp4"))
        with pytest.raises(VideoError, match="<BytesIO> is empty"):
            read(io.BytesIO())

    @pytest.mark.parametrize("name", ["text.txt", "text.mp4", "page.m3u8"])
    def test_not_a_video(self, read, name: str, tmp_path: Path) -> None:
        playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:9/a.ts\n#EXT-X-ENDLIST\n"
        (tmp_path / name).write_text(playlist if name == "page.m3u8" else "not a video\n" * 200)
        with pytest.raises(VideoError, match=f"{name} is not a video"):
            read(tmp_path / name)

    def test_random_bytes(self, read, tmp_path: Path) -> None:
        (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
        with pytest.raises(VideoError, match=r"noise.mp4 is not a video"):
            read(tmp_path / "noise.mp4")

    @pytest.mark.parametrize("name, codec, cover", [("a.wav", "pcm_s16le", False), ("a.mp3", "mp3", True)])
    def test_audio_only(self, read, name: str, codec: str, cover: bool, tmp_path: Path) -> None:
        if codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no {codec} encoder")
        path = sound_file(tmp_path / name, codec, cover)
        with av.open(str(path)) as container:
            assert len(container.streams.video) == cover  # the cover is a video stream to FFmpeg
        with pytest.raises(VideoError, match=f"{name} is not a video: it has only sound"):
            read(path)

    def test_header_cut_off(self, read, tmp_path: Path) -> None:
        path = noise_video(tmp_path / "cut.mp4")  # the index is at the end of the file
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(VideoError, match=r"cut.mp4 is not a video, or its header is cut off"):
            read(path)

    @pytest.mark.parametrize("source", [5, None, b"bytes", ["a.mp4"]])
    def test_source_of_another_type(self, read, source: object) -> None:
        with pytest.raises(TypeError, match="source must be a path or a binary file object"):
            read(source)

    def test_text_mode(self, read, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("text")
        with path.open() as file, pytest.raises(TypeError, match="binary mode"):
            read(file)


@pytest.mark.parametrize("keep", [0.4, 0.6, 0.99])
def test_truncated_in_the_middle(keep: float, tmp_path: Path) -> None:
    whole = noise_video(tmp_path / "whole.mp4", movflags="faststart").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: int(len(whole) * keep)])
    message = r"cut.mp4 is truncated or damaged: reading stopped after (\d+) of 20 frames"
    with pytest.raises(VideoError, match=message):
        read_clip(path, 4)
    frames: list[torch.Tensor] = []
    with pytest.raises(VideoError, match=message):
        frames.extend(iter_frames(path, 16))
    given = len(frames)  # list.extend keeps what came before the error
    assert 0 < given < 20
    # What lies before the cut can be used.
    assert read_clip(path, given, sampling="strided", stride=1, size=16).shape[1] == given


def test_cut_exactly_between_two_frames(tmp_path: Path) -> None:
    path = noise_video(tmp_path / "whole.mp4", movflags="faststart")
    with av.open(str(path)) as container:
        if not hasattr(container.streams.video[0], "index_entries"):
            pytest.skip("this PyAV does not tell how many frames the header lists")
        ends = [p.pos + p.size for p in container.demux(video=0) if p.size]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: ends[9]])
    with pytest.raises(VideoError, match=r"reading stopped after .* of 20 frames"):
        read_clip(cut, 4)


def test_cut_matroska_is_a_shorter_video(tmp_path: Path) -> None:
    path = noise_video(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(VideoError, match=r"too short: it has \d+ frames, 20 frames need 20"):
        read_clip(path, 20)


def test_damaged_frames(tmp_path: Path) -> None:
    path = noise_video(tmp_path / "a.mp4", movflags="faststart")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"damaged|not one frame"):
        read_clip(path, 20)


def test_too_short(short: Path) -> None:
    with pytest.raises(VideoError, match="too short: it has 20 frames, 21 frames need 21"):
        read_clip(short, 21)
    with pytest.raises(VideoError, match="it has 20 frames, 11 frames with stride 2 need 21"):
        read_clip(short, 11, sampling="strided")
    with pytest.raises(VideoError, match="it has 20 frames, 2 frames from frame 19 on need 21"):
        read_clip(short, 2, start=19)
    with pytest.raises(VideoError, match="it has 20 frames, 31 are needed"):
        list(iter_frames(short, 16, start=30))
    with pytest.raises(VideoError, match="it has 20 frames, 25 are needed"):
        list(iter_frames(short, 16, frames=25))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"frames": 0}, ValueError, "frames must be at least 1, got 0"),
        ({"frames": 2.0}, TypeError, "frames must be an int, got float"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"start": -1}, ValueError, "start must be at least 0, got -1"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": (1, 2, 3)}, ValueError, "size must be one number or"),
        ({"size": "224"}, TypeError, "size must be an int, got str"),
        ({"sampling": "random"}, ValueError, "sampling must be one of uniform, strided, got 'random'"),
        ({"dtype": torch.int64}, ValueError, "dtype must be torch.uint8 or a floating dtype"),
        ({"dtype": "float32"}, TypeError, "dtype must be a torch.dtype, got str"),
    ],
)
def test_impossible_arguments(arguments: dict, error: type[Exception], message: str, tmp_path: Path) -> None:
    missing = tmp_path / "none.mp4"  # arguments are checked before the file is touched
    with pytest.raises(error, match=f"read_clip: {message}"):
        read_clip(missing, **arguments)
    if "sampling" not in arguments:
        with pytest.raises(error, match=f"iter_frames: {message}"):
            iter_frames(missing, **arguments)


def test_files_are_closed(short: Path, tmp_path: Path) -> None:
    def handles() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are counted through /proc")
    broken = noise_video(tmp_path / "cut.mp4", movflags="faststart")
    broken.write_bytes(broken.read_bytes()[:20000])
    before = handles()
    for _ in range(5):
        read_clip(short, 4, size=16)
        next(iter_frames(short, 16))
        iter_frames(short, 16)
        with pytest.raises(VideoError):
            read_clip(broken, 4)
    assert handles() == before


def test_without_pyav_the_package_works_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_av(name, *args, **kwargs):
        if name == "av" or name.startswith("av."):
            raise ImportError("No module named 'av'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_av)
    monkeypatch.delitem(sys.modules, "av")
    with pytest.raises(ImportError, match=r"pip install 'trecvit-kernels\[video\]'"):
        read_clip("any.mp4")


# ---- writing


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_written_video_comes_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    write_video(path, grey_frames(12), fps=24)
    torch.testing.assert_close(
        read_clip(path, 12, size=64)[0].float(), grey_frames(12).float(), rtol=0, atol=4
    )
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 24


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_video(path, grey_frames(2))
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "name, frames, fps, error, message",
    [
        ("a.txt", grey_frames(2), 10, ValueError, "path must end in .mp4"),
        ("a.mp4", [], 10, ValueError, "at least one frame, got none"),
        ("a.mp4", grey_frames(2).float(), 10, TypeError, "torch.uint8 tensor, got torch.float32"),
        ("a.mp4", [np.zeros((3, 4, 4), np.uint8)], 10, TypeError, "got ndarray"),
        ("a.mp4", grey_frames(2, 63), 10, ValueError, r"\(3, even, even\), got \(3, 63, 64\)"),
        ("a.mp4", grey_frames(2)[:, :1], 10, ValueError, r"got \(1, 64, 64\)"),
        ("a.mp4", [grey_frames(1)[0], grey_frames(1, 32)[0]], 10, ValueError, "as the first, got"),
        ("a.mp4", grey_frames(2), 0, ValueError, "fps must be at least 1, got 0"),
        ("a.mp4", grey_frames(2), 29.97, TypeError, "fps must be an int, got float"),
    ],
)
def test_what_cannot_be_written_leaves_no_file(name, frames, fps, error, message, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        write_video(tmp_path / name, frames, fps)
    assert not (tmp_path / name).exists()
