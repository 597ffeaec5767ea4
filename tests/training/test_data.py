"""Where clips come from: folders, CSV files, shards and synthetic shapes; what is wrong with them is said by name."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trecvit_kernels.tasks.task import Task
from trecvit_kernels.training import checkpoint, sources
from trecvit_kernels.training import data as loading
from trecvit_kernels.training.clips import load_clip
from trecvit_kernels.training.config import DataConfig
from trecvit_kernels.training.loop import Trainer
from trecvit_kernels.training.synthetic import moving_shapes
from trecvit_kernels.training.tables import ConfigError
from trecvit_kernels.video import VideoError, write_video


class Labels(Task):
    """Stands for any task with labels."""

    needs = ("video", "label")
    classes = 2

    def build(self):
        raise AssertionError("a model was built")

    loss = evaluate = build


def _data(source: str, **options: Any) -> DataConfig:
    options = {"frames": 4, "stride": 2, "size": (16, 24), "batch_size": 2, "workers": 0} | options
    return DataConfig(source=source, **options)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two classes of two videos, grey of level 20 (class jump) and 200 (run), 12 frames of 32 x 48."""
    pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")
    for name, level in (("jump", 20), ("run", 200)):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for i in range(2):
            frames = torch.full((12, 3, 32, 48), level, dtype=torch.uint8)
            write_video(tmp_path / "videos" / name / f"{i}.mp4", frames)
    return tmp_path / "videos"


def _epoch(clips: loading.Clips) -> list[tuple[int, int]]:
    """(label, grey level) of the first epoch, sorted."""
    loader = loading.training_loader(clips, seed=0, position=0, pin=False)
    batches = [batch for batch, _ in itertools.islice(loader, len(clips) // 2)]
    for batch in batches:
        assert batch["video"].shape == (2, 4, 3, 16, 24) and batch["video"].dtype == torch.uint8
    pairs = [
        (int(y), v.float().mean().item()) for batch in batches for v, y in zip(batch["video"], batch["label"])
    ]
    return sorted((label, round(level / 20) * 20) for label, level in pairs)


WHOLE = [(0, 20), (0, 20), (1, 200), (1, 200)]


def test_folder(videos: Path) -> None:
    train, validation, classes = loading.open_data(
        _data("folder", train=str(videos), validation=str(videos)), Labels(), seed=0
    )
    assert classes == ["jump", "run"] and train is not None and validation is not None
    assert _epoch(train) == WHOLE
    batches = [batch for batch, _ in loading.validation_loader(validation, 0, False)]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0, 0, 1, 1]


def _write_csv(videos: Path, *rows: tuple[object, ...]) -> str:
    path = videos / "list.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def test_csv(videos: Path) -> None:
    rows = [(f"{name}/{i}.mp4", label) for label, name in enumerate(("jump", "run")) for i in range(2)]
    path = _write_csv(videos, ("path", "label"), *rows)
    train, _, classes = loading.open_data(_data("csv", train=path), Labels(), seed=0)
    assert classes is None and train is not None and _epoch(train) == WHOLE


def _shard(path: Path, videos: Path, name: str, label: bytes, extension: str) -> None:
    with tarfile.open(path, "w") as shard:
        for video in sorted((videos / name).iterdir()):
            for suffix, content in ((extension, label), ("mp4", video.read_bytes())):
                member = tarfile.TarInfo(f"{name}/{video.stem}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("pattern", ["shards-{00..01}.tar", "shards-*.tar", ""])
def test_webdataset(videos: Path, tmp_path: Path, pattern: str) -> None:
    _shard(tmp_path / "shards-00.tar", videos, "jump", b"0", "cls")
    _shard(tmp_path / "shards-01.tar", videos, "run", json.dumps({"label": 1}).encode(), "json")
    train, _, _ = loading.open_data(_data("webdataset", train=str(tmp_path / pattern)), Labels(), seed=0)
    assert train is not None and _epoch(train) == WHOLE


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_videos_are_skipped_and_named(videos: Path, workers: int) -> None:
    bad = videos / "run" / "1.mp4"
    bad.write_bytes(bad.read_bytes()[:700])
    (videos / "jump" / "1.mp4").write_bytes(b"")
    options = {"train": str(videos), "validation": str(videos), "workers": workers}
    train, validation, _ = loading.open_data(_data("folder", **options), Labels(), seed=0)
    assert train is not None and validation is not None
    found = list(itertools.islice(loading.training_loader(train, 0, 0, False), 2))
    assert [len(batch["video"]) for batch, _ in found] == [2, 2]  # others took their places
    assert {name for _, skipped in found for name, _ in skipped} == {str(bad), str(videos / "jump" / "1.mp4")}
    assert any("empty (0 bytes)" in reason for _, skipped in found for _, reason in skipped)
    evaluated = list(loading.validation_loader(validation, 0, False))
    assert sum(len(batch["video"]) for batch, _ in evaluated if batch is not None) == 2


def test_nothing_can_be_read(videos: Path, tables, tmp_path: Path, capsys, start) -> None:
    for path in videos.rglob("*.mp4"):
        path.write_bytes(b"no video")
    tables["task"] = {"name": "masked_autoencoding"}  # needs videos alone
    tables["task"] |= {
        "overrides": {"width": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "image_size": 16}
    }
    tables["task"] |= {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.5}
    tables["data"] = {"source": "folder", "train": str(videos), "frames": 2, "size": 16, "workers": 0}
    with pytest.raises(VideoError, match="no video can be read among many tried"):
        start(tables).run()
    assert capsys.readouterr().err.count("is not a video") == 4


def test_a_run_counts_what_it_skips(videos: Path, tables, start, lines, capsys) -> None:
    """In the log, in the checkpoint and on the screen; a resumed run counts on, and is exact on files too."""
    bad = videos / "run" / "1.mp4"
    bad.write_bytes(b"no video")
    overrides = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32, "lru_width": 32, "patch_size": 8}
    overrides |= {"image_size": 16, "head_width": 16}
    tables["task"] = {"name": "classification", "num_classes": 2, "overrides": overrides}
    source = {"source": "folder", "train": str(videos), "validation": str(videos)}
    tables["data"] = source | {"frames": 2, "size": 16, "batch_size": 2, "workers": 1, "flip": True}
    trainer = start(tables)
    assert trainer.run()["videos"] == 3
    assert trainer.skipped == {str(bad): trainer.skipped[str(bad)]} and trainer.skipped[str(bad)] > 4
    said = capsys.readouterr().err
    assert said.count(f"skipped {bad}: is not a video") == 1
    run = Path(tables["run"]["folder"])
    logged, state = lines(run), trainer.state().state
    assert [line["skipped"] for line in logged if line["kind"] == "train"][-1] > 4
    checkpoint.path_of(run, 6).unlink()
    again = start(tables, resume=True)
    again.run()
    assert lines(run) == logged and again.state().state == state
    assert state["classes"] == ["jump", "run"]


def test_refused(videos: Path, tmp_path: Path) -> None:
    def refused(message: str, source: str, where: object, **more: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            loading.open_data(_data(source, train=str(where), **more), Labels(), seed=0)

    refused("data.train must be a folder, got .*none, which does not exist", "folder", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused(r"must hold videos \(.mp4", "folder", tmp_path / "empty")
    refused("data.train must be a CSV file, got .*empty", "csv", tmp_path / "empty")
    refused("no such shard: .*none.tar", "webdataset", tmp_path / "none.tar")
    refused("cannot be read as an uncompressed .tar", "webdataset", videos / "run" / "0.mp4")
    _shard(tmp_path / "named.tar", videos, "run", b"run", "cls")
    refused(
        r"named.tar:run/0.cls must hold a whole number or JSON, got b'run'",
        "webdataset",
        tmp_path / "named.tar",
    )
    (videos / "swim").mkdir()
    (videos / "swim" / "0.mp4").write_bytes(b"x")
    refused("label of .*swim/0.mp4 must be between 0 and 1, got 2", "folder", videos)
    header = ("path", "label")
    refused("must be between 0 and 1, got -1", "csv", _write_csv(videos, header, ("run/0.mp4", -1)))
    refused(
        "line 2: label must be a whole number, got 'run'", "csv", _write_csv(videos, header, ("a", "run"))
    )
    refused("must have a header with path and label", "csv", _write_csv(videos, ("run/0.mp4", 1)))
    refused("none of the 1 videos", "csv", _write_csv(videos, header, ("gone.mp4", 1)))
    refused("must have a label, found none", "csv", _write_csv(videos, ("path",), ("run/0.mp4",)))


def test_unreadable_folder(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sources.os, "access", lambda path, mode: Path(path) != videos / "run"
    )  # root may read all
    with pytest.raises(ConfigError, match=r"data.train: .*run cannot be read: permission denied"):
        loading.open_data(_data("folder", train=str(videos)), Labels(), seed=0)


def test_classes_must_agree(videos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "fly"
    other.mkdir(parents=True)
    (other / "0.mp4").write_bytes((videos / "run" / "0.mp4").read_bytes())
    data = _data("folder", train=str(videos), validation=str(other.parent))
    with pytest.raises(ConfigError, match="not in both: fly, jump, run"):
        loading.open_data(data, Labels(), seed=0)


def test_task_needs_what_files_have_not(tables, videos: Path) -> None:
    from trecvit_kernels.training.config import TrainingConfig

    tables["data"] = {"source": "folder", "train": str(videos), "size": 16}
    with pytest.raises(
        ConfigError, match="'folder' has no query_points, target_points, visible, which the task needs"
    ):
        Trainer(TrainingConfig.from_tables(tables))


def test_where_a_clip_is_cut(tmp_path: Path) -> None:
    """Frames tell their number, pixels their place: starts, windows and scales vary in training, not in evaluation."""
    pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")
    ramp = torch.linspace(0, 250, 128).expand(64, 128)
    frames = [torch.stack([ramp, torch.full_like(ramp, 10.0 * t), ramp]).to(torch.uint8) for t in range(20)]
    path = tmp_path / "ramp.mp4"
    write_video(path, torch.stack(frames))
    data = _data("folder", train="-", frames=5, stride=3, size=(32, 32))
    numbers = lambda clip: (clip[:, 1].float().mean(dim=(1, 2)) / 10).round().int().tolist()  # noqa: E731
    middle = load_clip(path, data, None)
    assert middle.shape == (5, 3, 32, 32) and numbers(middle) == [3, 6, 9, 12, 15]
    clips = [load_clip(path, data, np.random.default_rng(seed)) for seed in range(12)]
    starts = {numbers(clip)[0] for clip in clips}
    assert all(numbers(clip) == [*range(numbers(clip)[0], numbers(clip)[0] + 13, 3)] for clip in clips)
    assert len(starts) > 3 and starts <= set(range(8))
    lefts = [clip[0, 0, :, 0].float().mean().item() for clip in clips]
    slopes = [(clip[0, 0, :, -1].float().mean().item() - left) for clip, left in zip(clips, lefts)]
    assert max(lefts) - min(lefts) > 30  # a wide picture is cropped anywhere
    assert max(slopes) > 1.2 * min(slopes) > 0  # scales differ; none is mirrored
    mirrored = [
        load_clip(path, dataclasses.replace(data, flip=True), np.random.default_rng(s)) for s in range(12)
    ]
    assert (
        2
        < sum(bool(clip[0, 0, :, -1].float().mean() < clip[0, 0, :, 0].float().mean()) for clip in mirrored)
        < 10
    )
    short = load_clip(path, _data("folder", train="-", frames=18, stride=3), None)  # 52 frames are not there
    assert numbers(short)[0] == 0 and numbers(short)[-1] == 19
    with pytest.raises(VideoError, match="too short"):
        load_clip(path, _data("folder", train="-", frames=21), None)


def test_order() -> None:
    """Every epoch has every index once; from any position on the order is the same."""
    take: Callable[[int], list[tuple[int, int]]] = lambda position: [  # noqa: E731
        place for batch in itertools.islice(loading.Places(5, 2, 0, position), 10) for place in batch
    ]
    order = take(0)
    for epoch in range(4):
        assert sorted(order[5 * epoch : 5 * epoch + 5]) == [(epoch, i) for i in range(5)]
    assert [i for _, i in order[:5]] != [i for _, i in order[5:10]]
    assert take(7)[:10] == order[7:17]


def test_synthetic_points_are_where_the_picture_says() -> None:
    """A visible point of a shape keeps its colour; points move along the label's direction or not at all."""
    for seed in range(8):
        size, frames = (48, 64), 6
        clip = moving_shapes(
            np.random.default_rng(seed), frames=frames, size=size, directions=4, shapes=2, points=24
        )
        points, visible, query = clip["target_points"], clip["visible"], clip["query_points"]
        angle = clip["label"] * torch.pi / 2
        step = points.diff(dim=1)
        along = step @ torch.stack([angle.cos(), angle.sin()])
        across = step @ torch.stack([-angle.sin(), angle.cos()])
        assert (along > -1e-4).all() and (across.abs() < 1e-4).all()
        first = visible.long().argmax(dim=1)
        assert visible.any(dim=1).all() and torch.equal(query[:, 0].long(), first)
        at = points[torch.arange(24), first]
        assert torch.equal(query[:, 1:], at.flip(-1))
        inside = ((points >= 0) & (points < torch.tensor([64, 48]))).all(dim=-1)
        assert not (visible & ~inside).any()
        still = step.abs().sum(dim=(1, 2)) == 0
        for q in still.nonzero().flatten().tolist():
            x, y = points[q, 0].long().tolist()
            colours = clip["video"][visible[q], :, y, x].int()
            assert (colours == colours[:1]).all()
