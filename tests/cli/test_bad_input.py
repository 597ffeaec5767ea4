"""What the commands say about bad input: one line, no traceback, status 1; 2 for impossible arguments."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trecvit_kernels import models
from trecvit_kernels import video as video_io


@pytest.fixture(params=["classify", "stream", "demo"])
def command(request) -> str:
    return request.param


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad videos and labels must be found out before a model is built or run."""

    built = models.TRecViT.__init__

    def refuse(*arguments: object) -> None:
        if torch.get_default_device().type != "meta":  # a skeleton costs nothing
            raise AssertionError("a model was built")
        built(*arguments)

    monkeypatch.setattr(models.TRecViT, "__init__", refuse)
    monkeypatch.setattr(models.TRecViT, "from_pretrained", refuse)


@pytest.fixture
def no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad checkpoints must be found out before a frame is decoded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a video was decoded")

    monkeypatch.setattr(video_io, "read_clip", refuse)
    monkeypatch.setattr(video_io, "iter_frames", lambda *_, **__: iter(refuse, None))


@pytest.mark.usefixtures("no_model")
class TestVideo:
    def test_missing(self, run, command: str, checkpoint: Path, tmp_path: Path) -> None:
        path = tmp_path / "none.mp4"
        assert (
            run(command, path, "--checkpoint", checkpoint, status=1).error == f"error: no such video: {path}"
        )

    def test_directory(self, run, command: str, checkpoint: Path, tmp_path: Path) -> None:
        error = run(command, tmp_path, "--checkpoint", checkpoint, status=1).error
        assert error == f"error: {tmp_path} is a directory, not a video"

    def test_empty(self, run, command: str, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "e.mp4").touch()
        assert (
            "is empty (0 bytes)"
            in run(command, tmp_path / "e.mp4", "--checkpoint", checkpoint, status=1).error
        )

    def test_not_a_video(self, run, command: str, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_text("text" * 1000)
        assert (
            "is not a video" in run(command, tmp_path / "a.mp4", "--checkpoint", checkpoint, status=1).error
        )

    def test_truncated(self, run, command: str, checkpoint: Path, clip: Path, tmp_path: Path) -> None:
        path = tmp_path / "cut.mp4"
        path.write_bytes(clip.read_bytes()[:-500])  # the index of an .mp4 is at its end
        assert "header is cut off" in run(command, path, "--checkpoint", checkpoint, status=1).error

    def test_audio_only(self, run, command: str, checkpoint: Path, tmp_path: Path) -> None:
        av = pytest.importorskip("av")
        path = tmp_path / "a.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        assert "it has only sound" in run(command, path, "--checkpoint", checkpoint, status=1).error

    def test_too_short(self, run, checkpoint: Path, clip: Path) -> None:
        error = run("classify", clip, "--checkpoint", checkpoint, status=1).error
        assert "is too short: it has 20 frames, 32 frames need 32" in error
        error = run(
            "classify", clip, "--checkpoint", checkpoint, "--frames", 8, "--stride", 3, status=1
        ).error
        assert "it has 20 frames, 8 frames with stride 3 need 22" in error


def test_stream_says_what_it_saw_before_a_video_breaks_off(
    run, checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "whole.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    answer = run("stream", cut, "--checkpoint", checkpoint, "--every", 100, status=1)
    assert answer.out.startswith("frame ")
    assert "is truncated or damaged: reading stopped after" in answer.err
    assert "of 20 frames" in answer.err


@pytest.mark.parametrize(
    "content, message",
    [
        ("a\nb\nc\n", "has 3 names, the model has 11 classes"),
        (json.dumps(["x"] * 12), "has 12 names, the model has 11 classes"),
        (json.dumps({"1": "x"}), "must have the keys 0 to 0"),
        (json.dumps([1] * 11), "must hold names only"),
        ('["broken', "neither text lines nor JSON"),
        (b"\xff\xfe\x00", "neither text lines nor JSON"),
        ("", "has 0 names, the model has 11 classes"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_labels(
    content: str | bytes, message: str, run, checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ("--checkpoint", checkpoint, "--labels", path, "--frames", 8)
    assert message in run("classify", clip, *arguments, status=1).error
    missing = run("stream", clip, "--checkpoint", checkpoint, "--labels", tmp_path / "none", status=1)
    assert missing.error == f"error: no such labels file: {tmp_path / 'none'}"


class TestCheckpoint:
    def test_missing(self, run, command: str, clip: Path, tmp_path: Path) -> None:
        path = tmp_path / "none.npz"
        assert (
            run(command, clip, "--checkpoint", path, status=1).error == f"error: no such checkpoint: {path}"
        )

    def test_other_file(self, run, command: str, clip: Path) -> None:
        assert "must be an .npz file or a folder" in run(command, clip, "--checkpoint", clip, status=1).error

    def test_folder_without_weights(self, run, command: str, clip: Path, tmp_path: Path) -> None:
        error = run(command, clip, "--checkpoint", tmp_path, status=1).error
        assert "must hold config.json and model.safetensors" in error

    @pytest.mark.parametrize(
        "text, message",
        [
            (b"{", "must hold a configuration of a TRecViT as JSON"),
            (b"\xff\xfe\xff", "must hold a configuration of a TRecViT as JSON"),
            (b"[]", "fields must be a mapping by name, got list"),
            (b"null", "fields must be a mapping by name, got NoneType"),
            (b'{"wide": 1}', "wide"),
        ],
    )
    @pytest.mark.usefixtures("no_video")
    def test_broken_configuration(
        self, text, message, run, clip: Path, checkpoint: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint, folder)
        (folder / "config.json").write_bytes(text)
        error = run("classify", clip, "--checkpoint", folder, status=1).error
        assert message in error and str(folder / "config.json") in error

    @pytest.mark.usefixtures("no_video")
    def test_truncated_weights(self, run, command: str, clip: Path, checkpoint: Path, tmp_path: Path) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint, folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        error = run(command, clip, "--checkpoint", folder, "--frames", 8, status=1).error
        assert "must be a complete safetensors file" in error and str(weights) in error

    @pytest.mark.usefixtures("no_video")
    def test_weights_of_another_size(
        self, run, command: str, clip: Path, checkpoint: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "mlp_dim": 64}))
        error = run(command, clip, "--checkpoint", folder, "--frames", 8, status=1).error
        assert "misshapen blocks.0.space.mlp_in.weight: must be (64, 48), got (96, 48)" in error

    @pytest.mark.parametrize("command", ["classify", "convert"])
    @pytest.mark.parametrize("kind", ["truncated", "pickled"])
    def test_npz(self, kind: str, command: str, run, clip: Path, golden: Path, tmp_path: Path) -> None:
        path = tmp_path / "bad.npz"
        if kind == "truncated":
            path.write_bytes((golden / "trecvit" / "trecvit_tiny_ckpt.npz").read_bytes()[:-5000])
        else:
            np.savez(path, **{"tokenizer/cls": np.array([object()], dtype=object)})
        arguments = (clip, "--checkpoint", path) if command == "classify" else (path, tmp_path / "out")
        assert "must be a complete .npz" in run(command, *arguments, status=1).error
        assert not (tmp_path / "out").exists()


def test_convert_never_writes_over_anything(run, golden: Path, tmp_path: Path) -> None:
    npz = golden / "trecvit" / "trecvit_tiny_ckpt.npz"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        assert "exists already" in run("convert", npz, tmp_path / name, status=1).error
    assert (tmp_path / "full" / "config.json").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"
    assert "found no file" in run("convert", tmp_path / "none.npz", tmp_path / "out", status=1).error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--frames", 0), "--frames"),
        (("--frames", "many"), "--frames"),
        (("--top-k", 0), "--top-k"),
        (("--stride", -1), "--stride"),
        (("--dtype", "int8"), "--dtype"),
        (("--device", "toaster"), "'toaster' cannot be used"),
        (("--model", "trecvit_giant"), "trecvit_tiny, trecvit_small, trecvit_base, trecvit_large"),
        (("--model", "trecvit_tiny", "--checkpoint", "x.npz"), "the checkpoint says which model it is"),
        (("--colour", "red"), "No such option"),
    ],
)
@pytest.mark.parametrize("command", ["classify", "stream"])
def test_impossible_arguments(command: str, arguments: tuple, message: str, run, clip: Path) -> None:
    error = run(command, clip, *arguments, status=2).error
    assert message in error


def test_frames_that_the_models_clips_do_not_divide(run, clip: Path) -> None:
    error = run("classify", clip, "--frames", 65, status=2).error
    assert "65 is no multiple of this model's 32 frames per clip" in error


def test_a_model_without_classifier_cannot_classify(
    run, clip: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "headless"
    models.TRecViT.from_pretrained(checkpoint, num_classes=0).save_pretrained(folder)
    for command in ("classify", "stream", "demo"):
        assert "has no classifier" in run(command, clip, "--checkpoint", folder, status=1).error


def test_output_that_is_not_finite_is_an_error(run, clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    import safetensors.torch

    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["cls_head.bias"][3] = float("nan")
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    for command in ("classify", "stream"):
        answer = run(command, clip, "--checkpoint", folder, "--frames", 4, "--json", status=1)
        assert answer.error == "error: the model's output is not finite (in float32)"


def test_without_pyav_the_extra_is_named(run, clip: Path, checkpoint: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    error = run("classify", clip, "--checkpoint", checkpoint, status=1).error
    assert "pip install 'trecvit-kernels[video]'" in error


def test_a_whole_process_fails_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trecvit_kernels", "classify", str(tmp_path / "none.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"error: no such video: {tmp_path / 'none.mp4'}\n"
