"""A small model as a checkpoint folder, a small video, and the command line to use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import trecvit_kernels as tk
from trecvit_kernels.cli import app
from trecvit_kernels.video import write_video

CLASSES = 11


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a random TRecViT of 32 x 32 pixels and 11 classes."""
    torch.manual_seed(0)
    config = tk.TRecViTConfig(
        width=48,
        depth=2,
        mlp_dim=96,
        num_heads=4,
        patch_size=(8, 8),
        image_size=(32, 32),
        num_classes=CLASSES,
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    folder.mkdir()
    tk.TRecViT(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of moving colours, 64 x 48."""
    pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")
    rows, columns = torch.arange(48)[:, None], torch.arange(64)[None]
    frames = [
        torch.stack([rows + 5 * t + 0 * columns, columns + 7 * t + 0 * rows, rows + columns])
        for t in range(20)
    ]
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, torch.stack(frames).mul(2).remainder(256).to(torch.uint8))
    return path


@pytest.fixture
def run() -> Callable[..., Answer]:
    """``run("classify", path, ...)``: exit status, standard output and standard error of the command."""

    def call(*arguments: object, status: int = 0) -> Answer:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="trecvit")
        answer = Answer(result.stdout, result.stderr)
        assert "Traceback" not in answer.err
        shown = f"{answer.out}\n{answer.err}\n{result.exception!r}"
        assert result.exit_code == status, shown
        assert result.exception is None or isinstance(result.exception, SystemExit), shown
        return answer

    return call


class Answer:
    """What a command printed."""

    def __init__(self, out: str, err: str) -> None:
        self.out, self.err = out, err

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.lower().startswith("error:")]
        assert len(lines) == 1, self.err
        assert self.out == ""
        return lines[0]
