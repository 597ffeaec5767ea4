"""The clips of the experiments are what they are said to be, and every experiment runs; what it learns is not asked."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

pytest.importorskip("skimage", reason="scikit-image (extra 'benchmarks') is not installed")
pytest.importorskip("sklearn", reason="scikit-learn (extra 'benchmarks') is not installed")

from benchmarks.experiments import experiment as files
from benchmarks.experiments import jobs, pages, pixels, scenes
from benchmarks.experiments.clips import MAKERS, Clips
from benchmarks.experiments.registry import EXPERIMENTS

SIZE = (32, 32)


def _shift(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int]:
    """How far (down, right) the content of frame (3, H, W) ``before`` has moved in ``after``, by least squares."""
    best, found = float("inf"), (0, 0)
    a, b = before.float(), after.float()
    for down in range(-4, 5):
        for right in range(-4, 5):
            ours = a[:, 4 - down : 28 - down, 4 - right : 28 - right]
            error = float((ours - b[:, 4:28, 4:28]).square().mean())
            if error < best:
                best, found = error, (down, right)
    return found


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("split", pixels.SPLITS)
def test_a_clip_follows_from_seed_split_and_index(kind: str, split: str) -> None:
    first, again = (Clips(kind, split, 5, 6, SIZE)[3] for _ in range(2))
    other = Clips(kind, split, 5, 6, SIZE, seed=1)[3]
    assert first["video"].shape == (6, 3, *SIZE) and first["video"].dtype == torch.uint8
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["video"], other["video"])
    assert not torch.equal(first["video"][0], first["video"][-1])


def test_training_and_test_share_no_photograph_and_no_digit() -> None:
    assert not set(pixels.PHOTOGRAPHS["train"]) & set(pixels.PHOTOGRAPHS["test"])
    counts = {split: sum(len(kind) for kind in pixels.digits(split)) for split in pixels.SPLITS}
    assert counts == {"train": 1347, "test": 450}
    assert all(
        min(picture.shape[1:]) == pixels.SHORT_SIDE
        for s in pixels.SPLITS
        for picture in pixels.photographs(s)
    )


def test_direction_is_where_the_camera_goes() -> None:
    """A camera that goes to the right sees things go to the left."""
    clips = Clips("direction", "test", 30, 4, SIZE, options={"speed": 2.0})
    right = 0
    for index in range(30):
        clip = clips[index]
        moved = [_shift(a, b)[1] for a, b in itertools.pairwise(clip["video"])]
        right += (sum(moved) < 0) == bool(clip["label"])
    assert right >= 28  # nearly flat pictures may mislead least squares


def test_turn_says_which_axis_comes_first() -> None:
    clips = Clips("turn", "test", 30, 8, SIZE, options={"speed": 2.0})
    right = 0
    for index in range(30):
        video = clips[index]["video"]
        moved = np.abs([_shift(a, b) for a, b in itertools.pairwise(video[:4])]).sum(axis=0)
        right += bool(moved[1] > moved[0]) == bool(clips[index]["label"])
    assert right >= 28


@pytest.mark.parametrize("kind, shown", [("order", 6), ("identity", 4)])
def test_labels_are_told_by_the_order_of_the_frames_alone(
    kind: str, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits 0 and 1, each in as many frames whatever the label; the label is the first."""
    clips = Clips(kind, "train", 40, 12, (16, 16))
    labels = [int(clips[index]["label"]) for index in range(40)]
    assert set(labels) == {0, 1} and 10 <= sum(labels) <= 30
    made: list[tuple[int, int, int]] = []  # (first frame, digit, frames)
    draw = scenes.digit

    def spy(rng, split, label, path, **options):
        inside = (np.abs(path) < 50).all(axis=1)
        made.append((int(inside.argmax()), label, int(inside.sum())))
        return draw(rng, split, label, path, **options)

    monkeypatch.setattr(scenes, "digit", spy)
    for index, label in enumerate(labels[:10]):
        made.clear()
        Clips(kind, "train", 40, 12, (16, 16))[index]
        assert [(digit, frames) for _, digit, frames in sorted(made)] == [(label, shown), (1 - label, shown)]


def test_after_the_occlusion_nothing_of_the_first_digit_is_left() -> None:
    video = Clips("identity", "train", 8, 12, (16, 16))[0]["video"].float()
    curtain = video[4:8]
    assert torch.equal(curtain, curtain[:1].expand_as(curtain))
    assert (video[3] - video[4]).abs().mean() > 4 and (video[7] - video[8]).abs().mean() > 4


def test_tracks_stay_on_what_they_are_on() -> None:
    """The colour under a visible point stays that of its query, unlike under a point that does not move."""
    clips = Clips("tracks", "train", 12, 8, SIZE, options={"points": 24, "speed": 3.0})
    moving, still, hidden = [], [], 0
    for index in range(12):
        clip = clips[index]
        video, target, visible = clip["video"].float() / 255, clip["target_points"], clip["visible"]
        query = clip["query_points"]
        first = query[:, 0].long()
        rows = torch.arange(len(query))
        torch.testing.assert_close(target[rows, first], query[:, [2, 1]])
        assert visible[rows, first].all() and not (visible & (torch.arange(8) < first[:, None])).any()
        assert ((target >= 0) & (target <= 32))[visible].all()
        grid = (2 * target / 32 - 1).transpose(0, 1)[:, None]  # (T, 1, Q, 2)
        there = F.grid_sample(video, grid, align_corners=False, padding_mode="border")[:, :, 0].permute(
            2, 0, 1
        )
        fixed = (2 * query[:, [2, 1]] / 32 - 1).expand(8, 1, -1, -1)
        here = F.grid_sample(video, fixed, align_corners=False, padding_mode="border")[:, :, 0].permute(
            2, 0, 1
        )
        reference = there[rows, first][:, None]
        moving.append((there - reference).abs().mean(dim=-1)[visible])
        still.append((here - reference).abs().mean(dim=-1)[visible])
        hidden += int((~visible).sum())
    assert torch.cat(moving).mean() < 0.03 < 0.08 < torch.cat(still).mean()
    assert hidden > 20


def test_layers_turn_zoom_and_invert_exactly() -> None:
    rng, frames = np.random.default_rng(0), 5
    path, points = rng.normal(0, 3, (frames, 2)), rng.uniform(0, 32, (frames, 7, 2))
    layer = scenes.photograph(
        rng, "train", SIZE, path, zoom=np.linspace(0.8, 1.5, frames), angle=np.linspace(-0.5, 1, frames)
    )
    np.testing.assert_allclose(layer.to_frame(layer.to_picture(points)), points, atol=1e-9)
    one = layer.to_picture(np.array([[[16.0, 16.0], [17.0, 16.0]]] * frames))
    np.testing.assert_allclose(np.linalg.norm(one[:, 1] - one[:, 0], axis=-1), 1 / layer.zoom)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(name: str, tmp_path: Path) -> None:
    """Two steps of each training, one process; the result file reads back."""
    made = [job.tiny() for job in EXPERIMENTS[name].jobs()]
    assert len({job.name for job in made}) == len(made)
    chosen = [job for job in made if not job.start][:1]
    chosen += [job for job in made if job.start == chosen[0].name][:1]
    outcomes = {job.name: jobs.train(job, str(tmp_path)) for job in chosen}
    for outcome in outcomes.values():
        assert [line["step"] for line in outcome.curve if line["kind"] == "train"] == [1, 2]
        assert outcome.measures and outcome.parameters > 50_000
    record = files.Record(outcomes, 1.0, "2026-01-01", {})
    again = files.read(name, files.write(name, record, tmp_path / "result.json"))
    assert set(again.outcomes) == set(outcomes)
    assert again.outcomes[chosen[0].name].measures == pytest.approx(
        outcomes[chosen[0].name].measures, rel=1e-5
    )


def test_jobs_wait_for_those_they_start_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their order in the list; outcomes come in the list's order."""
    trained: list[str] = []

    def train(job: jobs.Job, folder: str) -> jobs.Outcome:
        assert not job.start or job.start in trained
        trained.append(job.name)
        return jobs.Outcome(job.name, [], {"loss": 1.0}, {}, 0.0, 1)

    monkeypatch.setattr(jobs, "train", train)
    monkeypatch.setattr(jobs, "_pool", concurrent.futures.ThreadPoolExecutor)
    made, said = EXPERIMENTS["pretraining"].jobs()[::-1], []
    assert made[0].start and not made[-1].start
    assert list(jobs.run(made, said.append)) == [job.name for job in made]
    assert trained.index("pre-training") < trained.index(made[0].name) and len(said) == len(made)
    with pytest.raises(
        ValueError, match="jobs must start from jobs of the same experiment, got pre-training"
    ):
        jobs.run(made[:-1], said.append)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_result_files_have_every_training(name: str) -> None:
    record = files.read(name)
    assert list(record.outcomes) == [job.name for job in EXPERIMENTS[name].jobs()]
    assert record.seconds < 15 * 60
    for job in EXPERIMENTS[name].jobs():
        assert record.outcomes[job.name].curve[-1]["step"] == job.tables["schedule"]["steps"]


def test_page_belongs_to_the_result_files() -> None:
    records = {name: files.read(name) for name in EXPERIMENTS}
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page(records)
    for name in EXPERIMENTS:
        assert all(pages.figure(name, theme).exists() for theme in ("light", "dark"))


def test_claims_can_fail() -> None:
    """The same numbers with every accuracy at chance and every error doubled: no claim of learning holds."""
    spoilt = {"top1": 0.5, "loss": 1.0, "psnr": 10.0, "mean_error": 99.0}
    for name, one in EXPERIMENTS.items():
        content = json.loads(files.path(name).read_text(encoding="utf-8"))
        for outcome in content["outcomes"]:
            for measures in (outcome["measures"], *outcome["more"].values()):
                measures.update({key: value for key, value in spoilt.items() if key in measures})
        outcomes = {found["name"]: jobs.Outcome(**found) for found in content["outcomes"]}
        claims = one.claims(outcomes)
        learned = [claim for claim in claims if "without a temporal module" not in claim.expected]
        assert learned and not any(claim.holds for claim in learned)


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    from benchmarks.experiments.__main__ import app

    result = CliRunner().invoke(app, ["memorisation", "flying"])
    assert result.exit_code == 2 and "flying: known are temporal_order" in " ".join(result.output.split())
    assert CliRunner().invoke(app, ["memorisation", "--tiny"]).exit_code == 2
