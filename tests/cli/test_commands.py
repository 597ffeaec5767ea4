"""What the commands print when all is well."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import trecvit_kernels as tk
from trecvit_kernels import accounting, demo
from trecvit_kernels.video import read_clip

from .conftest import CLASSES


def probabilities(checkpoint: Path, clip: Path, frames: int, **sampling) -> torch.Tensor:
    model = tk.TRecViT.from_pretrained(str(checkpoint)).eval()
    with torch.no_grad():
        return model(read_clip(clip, frames, size=32, **sampling))[0].softmax(-1)


def test_info_names_every_backend_and_the_reason_for_a_missing_one(run) -> None:
    out = run("info").out
    for name, status in tk.backends.available().items():
        line = next(line for line in out.splitlines() if line.startswith(f"backend {name}:"))
        assert ("available" in line) == status.available
        assert status.reason in line
    for expected in (tk.__version__, torch.__version__, "instruction set:", "threads:", "triton:", "GPU"):
        assert expected in out
    if not torch.cuda.is_available():
        assert "GPU:                none" in out
    if tk.backends.available()["native"].available:
        from trecvit_kernels import _native

        assert _native.isa() in out


def test_info_with_an_instruction_set_that_does_not_exist(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rows are what one needs then."""
    native = pytest.importorskip("trecvit_kernels._native", exc_type=ImportError)

    def isa() -> str:
        raise ValueError("TRECVIT_ISA: expected one of baseline, avx2, got 'foo'")

    monkeypatch.setattr(native, "isa", isa)
    out = run("info").out
    assert "instruction set:    TRECVIT_ISA: expected one of baseline, avx2, got 'foo'" in out
    assert "backend reference:" in out and "threads:" in out


def test_info_without_extension_and_with_gpus(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tk.backends, "_native_error", "the compiled extension cannot be imported (a reason)")
    nvidia = SimpleNamespace(name="Some GPU", major=9, minor=0)
    amd = SimpleNamespace(name="Other GPU", major=9, minor=4, gcnArchName="gfx942")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: (nvidia, amd)[index])
    out = run("info").out
    for expected in (
        "backend native:     missing: the compiled extension cannot be imported (a reason)",
        "instruction set:    none",
        "GPU 0:              Some GPU (sm_90)",
        "GPU 1:              Other GPU (gfx942)",
    ):
        assert expected in out


def test_help_lists_the_commands_that_exist(run) -> None:
    out = run("--help").out
    for command in ("info", "classify", "stream", "convert", "demo", "train", "evaluate", "export"):
        assert command in out
        assert "Usage" in run(command, "--help").out


def test_classify(run, checkpoint: Path, clip: Path) -> None:
    answer = run("classify", clip, "--checkpoint", checkpoint, "--frames", 8, "--top-k", 3)
    assert answer.err == ""
    head, *lines = answer.out.splitlines()
    assert "8 frames of 32 x 32" in head
    assert len(lines) == 3
    best = probabilities(checkpoint, clip, 8).argmax().item()
    assert lines[0].endswith(f"class {best}")


def test_classify_json_is_pure_and_right(run, checkpoint: Path, clip: Path) -> None:
    answer = run(
        "classify", clip, "--checkpoint", checkpoint, "--frames", 8, "--top-k", 99, "--stride", 2, "--json"
    )
    result = json.loads(answer.out)
    assert result["weights"] == str(checkpoint)
    assert result["frames"] == 8
    expected = probabilities(checkpoint, clip, 8, sampling="strided", stride=2)
    assert [entry["class"] for entry in result["top"]] == expected.argsort(descending=True).tolist()
    found = torch.tensor([entry["probability"] for entry in result["top"]])
    torch.testing.assert_close(found, expected.sort(descending=True).values, rtol=0, atol=1e-6)
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["lines", "list", "dict"])
def test_labels(kind: str, run, checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    names = [f"äction {index}" for index in range(CLASSES)]
    text = {
        "lines": "\n".join(names) + "\n\n",
        "list": json.dumps(names),
        "dict": json.dumps({str(index): name for index, name in reversed(list(enumerate(names)))}),
    }[kind]
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    arguments = ("--checkpoint", checkpoint, "--labels", tmp_path / "labels", "--frames", 8, "--json")
    result = json.loads(run("classify", clip, *arguments).out)
    assert len(result["top"]) == 5
    for entry in result["top"]:
        assert entry["label"] == names[entry["class"]]


def test_stream_agrees_with_the_clip_at_every_frame(run, checkpoint: Path, clip: Path) -> None:
    answer = run("stream", clip, "--checkpoint", checkpoint, "--json", "--top-k", CLASSES)
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(1, 21))
    assert lines[0]["weights"] == str(checkpoint)
    for line in (lines[0], lines[6], lines[19]):
        sampling = {"sampling": "strided", "stride": 1}
        expected = probabilities(checkpoint, clip, line["frame"], **sampling)
        found = torch.zeros(CLASSES)
        for entry in line["top"]:
            found[entry["class"]] = entry["probability"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert line["frames_per_second"] > 0


def test_stream_in_plain_lines(run, checkpoint: Path, clip: Path) -> None:
    answer = run("stream", clip, "--checkpoint", checkpoint, "--every", 6, "--stride", 2)
    starts = [line.split()[:2] for line in answer.out.splitlines()]
    assert starts == [["frame", "6"], ["frame", "10"]]  # the last one in any case
    assert all("frames/s" in line and "%" in line for line in answer.out.splitlines())
    assert answer.err == ""
    assert len(run("stream", clip, "--checkpoint", checkpoint, "--frames", 3).out.splitlines()) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(dtype: str, run, checkpoint: Path, clip: Path) -> None:
    arguments = ("--checkpoint", checkpoint, "--dtype", dtype, "--json", "--top-k", CLASSES)
    for command in ("classify", "stream"):
        out = run(command, clip, *arguments, "--frames", 8).out
        result = json.loads(out.splitlines()[0])
        assert result["dtype"] == dtype
        assert sum(entry["probability"] for entry in result["top"]) == pytest.approx(1, abs=1e-2)


def test_random_weights_are_called_so_and_are_the_same_every_time(run, clip: Path, monkeypatch) -> None:
    from trecvit_kernels import _inference

    small = tk.TRecViTConfig(
        width=48, depth=1, mlp_dim=96, num_heads=4, patch_size=(8, 8), image_size=(32, 32)
    )
    monkeypatch.setitem(_inference.SIZES, "trecvit_tiny", small)
    arguments = ("classify", clip, "--model", "trecvit_tiny", "--frames", 4, "--json")
    first, second = run(*arguments), run(*arguments)
    assert "the weights are random" in first.err
    result = json.loads(first.out)
    assert result["weights"] == "random"
    assert result["top"] == json.loads(second.out)["top"]


def test_official_checkpoint_and_its_conversion(run, golden: Path, clip: Path, tmp_path: Path) -> None:
    npz, folder = golden / "trecvit" / "trecvit_tiny_ckpt.npz", tmp_path / "converted"
    told = run("convert", npz, folder)
    assert f"{folder}: 3 blocks of width 48, LRU width 96, 11 classes" in told.out
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    tops = [
        json.loads(run("classify", clip, "--checkpoint", path, "--frames", 6, "--json").out)["top"]
        for path in (npz, folder)
    ]
    for before, after in zip(*tops):
        assert before["class"] == after["class"]
        # The file's transposed weights are views, the folder's are plain: products round in another order.
        assert before["probability"] == pytest.approx(after["probability"], rel=1e-5)


def test_in_a_pipe_there_is_nothing_but_lines(checkpoint: Path, clip: Path) -> None:
    command = [sys.executable, "-m", "trecvit_kernels", "stream", clip, "--checkpoint", checkpoint, "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 20
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_on_a_terminal_there_is_a_bar_and_lines_stay_whole(checkpoint: Path, clip: Path) -> None:
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "trecvit_kernels", "stream", clip, "--checkpoint", checkpoint]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(list(map(str, command)), stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says when the other side is gone
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait(timeout=120) == 0
    text = shown.decode()
    assert "streaming" in text
    # After the escape sequence that clears the bar's line, each result stands on a line of its own.
    lines = re.findall(r"\x1b\[2Kframe +(\d+) [^\r\n]*%  class \d+\r\n", text)
    assert lines == [str(number) for number in range(1, 21)]


def test_a_reader_that_leaves_early_is_no_error(checkpoint: Path, clip: Path) -> None:
    command = [sys.executable, "-m", "trecvit_kernels", "stream", clip, "--checkpoint", checkpoint]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("frame     1")
    process.stdout.close()
    assert process.wait(timeout=120) in (0, 1)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_demo(run, checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    monkeypatch.setattr(demo, "price_table", lambda console: "the table")  # half a minute; tested below
    output = tmp_path / "demo_output"
    arguments = ("demo", "--checkpoint", checkpoint, "--frames", 8, "--output", output)
    out = run(*arguments).out
    for expected in (
        "4 photographs",
        "Decoded 8 frames",
        "Largest difference of the logits",
        "Peak memory",
        "GiB",
    ):
        assert expected in out
    assert "random" not in out
    assert [path.name for path in output.iterdir()] == ["clip.mp4"]
    first = (output / "clip.mp4").read_bytes()
    run(*arguments)
    assert (output / "clip.mp4").read_bytes() == first  # left alone
    assert sorted(path.name for path in output.iterdir()) == ["clip-2.mp4", "clip.mp4"]


def test_demo_on_a_video_that_is_shorter_than_asked(
    run, checkpoint: Path, clip: Path, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(demo, "price_table", lambda console: "the table")
    monkeypatch.chdir(tmp_path)
    out = run("demo", clip, "--checkpoint", checkpoint).out
    assert "Decoded 20 frames" in out
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_demo_refuses_results_that_disagree(run, checkpoint: Path, clip: Path, monkeypatch) -> None:
    push = tk.Stream.push
    monkeypatch.setattr(tk.Stream, "push", lambda self, frame: push(self, frame) + 1e-3)
    result = run("demo", clip, "--checkpoint", checkpoint, status=1)
    assert "error: whole clip and frame by frame differ by 1.0e-03" in result.err


def test_the_clip_of_photographs_moves() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    clip = demo.make_clip(9).float()
    assert clip.shape == (9, 3, 240, 320)
    assert (clip[1:] - clip[:-1]).abs().mean(dim=(1, 2, 3)).min() > 1
    assert clip.std(dim=(1, 2, 3)).min() > 15


def test_price_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands where; that the figures are right is in test_accounting."""
    given = iter([(111.9e6, 1), (136.8e6, 2), (310e6, 3), (311e6, 4), (312e6, 5), (313e6, 6)])

    def costs(build: object, shape: tuple[int, ...]) -> SimpleNamespace:
        assert shape == (1, 32, 3, 224, 224)
        parameters, number = next(given)
        return SimpleNamespace(
            parameters=parameters,
            flops_forward=number * 1e12,
            flops_training=3 * number * 1e12,
            training=SimpleNamespace(total=10 * number * 2**30),
        )

    monkeypatch.setattr(accounting, "costs", costs)
    assert [list(column.cells) for column in demo.price_table().columns] == [
        ["TRecViT-B, paper", "TRecViT-B, released", "ViViT-L, 1x16x16", "ViViT-L, 2x16x16"],
        ["111.9", "136.8", "310.0", "312.0"],
        ["1.00", "2.00", "3.00", "5.00"],
        ["3.00", "6.00", "12.00", "18.00"],  # ViViT-L's with eager attention
        ["10.0", "20.0", "30.0", "50.0"],
        ["", "", "40.0", "60.0"],
    ]
