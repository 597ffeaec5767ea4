"""FLOPs and parameters of TRecViT and its baselines against published figures, and that no product goes uncounted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from benchmarks.models import analytic, baselines
from benchmarks.models import common as models
from benchmarks.models.baselines import BASELINES, TRECVIT
from benchmarks.rows import find
from benchmarks.setting import Setting
from benchmarks.suites import flops as suite
from trecvit_kernels import accounting, backends, create_model

BUILT = [label for label, baseline in BASELINES.items() if baseline.build is not None]
ANALYTIC = [label for label, baseline in BASELINES.items() if baseline.analytic is not None]
# TimeSformer of transformers has no choice of attention.
CHOOSES = [label for label in BUILT if label != "TimeSformer-L"]


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers (extra 'benchmarks') is not installed")


def count(build: Callable[[], nn.Module], frames: int, image: int, mode: str = "forward") -> int:
    return suite.counted(build, frames, image, mode)["flop"]


def test_labels() -> None:
    assert list(TRECVIT) == ["TRecViT-B", "TRecViT-B, doubled LRU", "TRecViT-S", "TRecViT-L"]
    assert list(BASELINES) == [
        "ViViT-L 1x16x16",
        "ViViT-L 2x16x16",
        "ViViT-B 1x16x16",
        "ViViT-B 2x16x16",
        "ViViT-L factorised encoder 1x16x16",
        "ViViT-L factorised self-attention 1x16x16",
        "TimeSformer-L",
        "VideoMAE-L",
        "MViTv2-B",
        "X3D-L",
        "VideoMamba-M",
    ]
    for label, baseline in BASELINES.items():
        assert baseline.label == label
        assert (baseline.build is None) != (baseline.analytic is None)
        assert baseline.note.startswith("analytic") == (baseline.build is None)


# What the papers print, which is multiply-adds.


@pytest.mark.parametrize(
    "kind, giga, million",
    [  # arXiv 2103.15691, table 2: ViViT-B, 32 frames, tubelets of 2x16x16
        (baselines.full_attention, 455.2, 88.9),
        (baselines.FactorisedEncoder, 284.4, 115.1),
        (baselines.FactorisedSelfAttention, 372.3, 117.3),
    ],
)
def test_published_vivit_variants(
    transformers: Any, kind: Callable[[Any], nn.Module], giga: float, million: float
) -> None:
    found = suite.counted(lambda: kind(accounting.vivit_config("B", tubelet_frames=2)), 32, 224, "forward")
    assert found["flop"] / 2e9 == pytest.approx(giga, rel=0.01)  # theirs are up to 1 % higher
    assert found["parameters"] / 1e6 == pytest.approx(million, abs=0.06)


@pytest.mark.parametrize(
    "label, frames, giga, million",
    [
        # arXiv 2102.05095, table 5: 0.59 TFLOP for three crops; 121.4 M parameters, ours has 8 frames' positions
        ("TimeSformer-L", 8, 590 / 3, 121.4),
        (
            "VideoMAE-L",
            16,
            597,
            304.5,
        ),  # arXiv 2203.12602, table 7: 305 M; 304 M and 598 G in SlowFast's list
    ],
)
def test_published_figures_of_models_from_transformers(
    transformers: Any, label: str, frames: int, giga: float, million: float
) -> None:
    build = BASELINES[label].build
    assert build is not None
    found = suite.counted(lambda: build(frames, 224, "eager"), frames, 224, "forward")
    assert found["flop"] / 2e9 == pytest.approx(giga, rel=5e-3)
    assert found["parameters"] / 1e6 == pytest.approx(million, rel=2e-3)


@pytest.mark.parametrize(
    "counted, giga, million, tolerance",
    [  # model lists of facebookresearch/SlowFast (X3D, MViTv2), and arXiv 2004.04730 for the larger images
        (analytic.x3d_l(16, 312), 18.37, 6.2, 1e-3),
        (analytic.x3d_l(16, 356), 24.8, 6.2, 2e-3),
        (analytic.x3d(16, 224, depth=2.2), 4.73, 3.8, 1e-3),
        (analytic.mvit_v2_b(32, 224), 225, 51.2, 5e-3),
    ],
)
def test_published_figures_of_analytic_counts(
    counted: analytic.Count, giga: float, million: float, tolerance: float
) -> None:
    assert counted.forward / 2e9 == pytest.approx(giga, rel=tolerance)
    assert counted.parameters / 1e6 == pytest.approx(million, abs=0.06)


@pytest.mark.parametrize("image, giga", [(224, 12.7), (448, 50.4), (576, 83.1)])
def test_published_figures_of_videomamba(image: int, giga: float) -> None:
    """The list of image models in OpenGVLab/VideoMamba counts the patches and the two large products of a layer."""
    found = analytic.videomamba_m(1, image)
    published = found.macs["patches"] + found.macs["in and out"]
    assert published / 1e9 == pytest.approx(giga, rel=6e-3)
    assert found.parameters / 1e6 == pytest.approx(74.5, rel=0.01)  # 74 M, 75 M at larger images
    assert 2 * published < found.forward < 2.3 * published  # its smaller products are work, too


def test_mvit_counts_as_torchvision_builds_it() -> None:
    try:
        from torchvision.models.video.mvit import MSBlockConfig, MViT
    except (ImportError, RuntimeError) as error:  # RuntimeError: a wheel for another build of PyTorch
        pytest.skip(f"torchvision cannot be imported: {error}")
    settings, width, heads, kv_stride = [], 96, 1, 8
    for layer in range(24):
        step = 2 if layer in (2, 5, 21) else 1
        heads, kv_stride = heads * step, kv_stride // step
        settings.append(
            MSBlockConfig(
                heads, width, width * step, [3] * 3, [3] * 3, [1, step, step], [1, kv_stride, kv_stride]
            )
        )
        width *= step

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True}
            self.model = MViT((224, 224), 16, settings, **options, proj_after_attn=True)

        def forward(self, video: Tensor) -> Tensor:
            return self.model(video.transpose(1, 2))

    theirs, ours = suite.counted(Model, 16, 224, "forward"), analytic.mvit_v2_b(16, 224)
    assert (theirs["flop"], theirs["parameters"]) == (ours.forward, ours.parameters)


def test_an_analytic_count_is_that_of_its_layers() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.point = nn.Conv2d(8, 12, 1)
            self.head = nn.Linear(12, 5)

        def forward(self, video: Tensor) -> Tensor:
            x = self.point(self.norm(self.stem(video.flatten(0, 1)))).flatten(2)
            return self.head((x.transpose(1, 2) @ (x @ x.transpose(1, 2))).mean(1))

    by_hand = analytic.Count()
    by_hand.conv("stem", 16 * 16, 9, 3, 8)
    by_hand.first = by_hand.macs["stem"]
    by_hand.norm(8)
    by_hand.conv("point", 16 * 16, 1, 8, 12, bias=True)
    by_hand.product("attention", 2 * 12 * 12 * 16 * 16)
    by_hand.linear("head", 1, 12, 5)
    assert by_hand.forward == count(Layers, 1, 32)
    assert by_hand.training == count(Layers, 1, 32, "training")
    assert by_hand.parameters == accounting.parameters(Layers())


# The TRecViT paper's figures. ViViT-L at 32 frames, all of it, is in tests/test_accounting.py.


def test_ours_and_the_row_that_the_paper_leaves_out(transformers: Any) -> None:
    counters = suite.counters()
    forward = counters["TRecViT-B"](32, 224, "forward")
    assert forward["flop"] / 1e12 == pytest.approx(1.44, rel=0.025)  # the official code's products are 1.407
    assert counters["TRecViT-B"](32, 224, "training")["flop"] / 1e12 == pytest.approx(4.3, abs=0.05)
    usual = counters["ViViT-L 2x16x16"](32, 224, "forward")
    assert usual["flop"] / 1e12 == pytest.approx(2.87, abs=5e-3)
    assert usual["flop"] / forward["flop"] == pytest.approx(2, abs=0.05)


def test_parameters_that_the_paper_prints(transformers: Any) -> None:
    """111.3 M and 310.8 M. At 400 classes there are 111.9 and 309.9; Something-Something has 174.

    With 174 classes ViViT-L and the usual dense layer in front of its classifier are 310.8, and TRecViT-B is
    111.2. Where the remaining 0.1 M of the latter come from, the official code does not tell.
    """
    classes = 174
    with torch.device("meta"):
        ours, ours_ssv2 = create_model("trecvit_base"), create_model("trecvit_base", num_classes=classes)
        vivit, vivit_ssv2 = accounting.vivit_l(), accounting.vivit_l(num_classes=classes)
        pooler = nn.Linear(1024, 1024)
    assert accounting.parameters(ours) == 111_913_360
    assert accounting.parameters(ours_ssv2) / 1e6 == pytest.approx(111.3, abs=0.1)
    assert accounting.parameters(vivit) == 309_933_456
    with_pooler = accounting.parameters(vivit_ssv2) + accounting.parameters(pooler)
    assert with_pooler / 1e6 == pytest.approx(310.8, abs=0.05)


# Nothing skipped, and the same work for every kind of attention.


def short(label: str, attention: str) -> nn.Module:
    """A baseline for 2 frames of 32 x 32, its first 2 layers of each kind."""
    build = BASELINES[label].build
    assert build is not None
    model = build(2, 32, attention)
    for module in model.modules():
        for name, layers in module.named_children():
            if isinstance(layers, nn.ModuleList):
                setattr(module, name, layers[:2])
    return model


@pytest.mark.parametrize("label", BUILT)
def test_all_work_is_counted_whatever_the_attention(
    transformers: Any, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    monkeypatch.setattr(accounting, "_VIVIT_SIZES", {"B": (768, 2, 12), "L": (1024, 2, 16)})
    forward, training = {}, {}
    for attention in ("eager", "sdpa") if label in CHOOSES else ("eager",):
        with FakeTensorMode():
            model = accounting.fake_model(partial(short, label, attention))
            video = torch.empty(1, 2, 3, 32, 32)
            run = partial(model, video)
            assert accounting.uncounted(run, backward=True) == []
            training[attention] = accounting.flops(run, backward=True)
            model.eval()
            assert accounting.uncounted(run) == []
            forward[attention] = accounting.flops(run)
    if label in CHOOSES:
        assert forward["eager"] == forward["sdpa"]
        # The fused backward pass computes the scores once more.
        assert training["sdpa"] - training["eager"] == 2 * 2 * squared_lengths(label) * (
            768 if "-B" in label else 1024
        )


def squared_lengths(label: str) -> int:
    """Scores in one layer of each kind: steps of time have 4 tokens, and a cls token is one more."""
    steps, cls = (1, 0) if "VideoMAE" in label else (2 // int(label.split(" ")[-1][0]), 1)
    if "factorised encoder" in label:
        return steps * (4 + cls) ** 2 + (steps + cls) ** 2
    if "factorised self-attention" in label:
        return steps * 4**2 + 4 * steps**2
    return (4 * steps + cls) ** 2


def test_our_attention_counts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(mode: str) -> tuple[int, int]:
        build = lambda: create_model("trecvit_base", **models.TINY)  # noqa: E731
        fused = count(build, 3, 32, mode)
        with monkeypatch.context() as patch:
            patch.setattr(backends, "select", eager)
            return count(build, 3, 32, mode), fused

    select = backends.select

    def eager(op: str, *args: Any) -> str:
        return "reference" if op == "spatial_attention" else select(op, *args)

    plain, fused = both("forward")
    assert plain == fused
    plain, fused = both("training")
    depth, tokens = models.TINY["depth"], 2 * 2 + 1
    assert fused - plain == depth * 3 * 2 * tokens**2 * models.TINY["width"]


@pytest.mark.parametrize("backend", ["reference", None])
def test_all_of_our_work_is_counted(backend: str | None) -> None:
    with FakeTensorMode(), backends.use(backend) if backend else nullcontext():
        model = accounting.fake_model(lambda: create_model("trecvit_base_k400", **models.TINY))
        video = torch.empty(1, 3, 3, 32, 32)
        assert accounting.uncounted(lambda: model(video), backward=True) == []
        assert accounting.uncounted(lambda: model.eval()(video)) == []


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    made = torch.library.Library("uncounted_test", "DEF")
    made.define("twice(Tensor x) -> Tensor")
    made.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    yield made
    made._destroy()


def test_what_would_go_uncounted_is_named(
    library: torch.library.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 4, 8)
    assert (
        accounting.uncounted(lambda: nn.functional.linear(x, x[0]) @ x) == []
    )  # composite, counted in pieces
    assert accounting.uncounted(lambda: x[0] @ x[0, 0]) == ["aten.mv"]
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    assert accounting.uncounted(lambda: layer(x)) == ["aten._transformer_encoder_layer_fwd"]
    assert accounting.uncounted(lambda: torch.ops.uncounted_test.twice(x)) == ["uncounted_test.twice"]

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    query = torch.randn(1, 2, 5, 8)
    run = lambda: nn.functional.scaled_dot_product_attention(query, query, query)  # noqa: E731
    assert accounting.uncounted(run) == []
    monkeypatch.delitem(flop_registry, attention)  # as PyTorch is without trecvit_kernels.accounting
    assert accounting.uncounted(run) == ["aten._scaled_dot_product_flash_attention_for_cpu"]


# The models and the suite.


@pytest.mark.parametrize("kind", [baselines.FactorisedEncoder, baselines.FactorisedSelfAttention])
def test_factorised_models_keep_videos_apart(transformers: Any, kind: Callable[[Any], nn.Module]) -> None:
    config = transformers.VivitConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=5,
        num_frames=4, image_size=32, tubelet_size=[2, 16, 16], attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = kind(config).eval()
    video = torch.rand(3, 4, 3, 32, 32)
    together = model(video)
    assert together.shape == (3, 5)
    torch.testing.assert_close(together, torch.cat([model(one[None]) for one in video]))
    other = video.clone()
    other[:, 3] += 1  # the last frame counts
    assert not torch.allclose(model(other), together)


def test_positions_of_videomae_are_its_own(transformers: Any) -> None:
    from transformers.models.videomae import modeling_videomae

    theirs = modeling_videomae.get_sinusoid_encoding_table(50, 16)
    torch.testing.assert_close(baselines.sincos(50, 16), theirs, atol=1e-5, rtol=0)


def test_sizes_that_a_baseline_cannot_have(transformers: Any) -> None:
    build = BASELINES["ViViT-L 2x16x16"].build
    assert build is not None
    for arguments, message in (
        ((3, 32, "sdpa"), "frames must be a positive multiple of 2, got 3"),
        ((2, 40, "sdpa"), "image must be a positive multiple of 16, got 40"),
        ((2, 32, "flash"), 'attention must be "sdpa" or "eager", got \'flash\''),
    ):
        with pytest.raises(ValueError, match=message):
            build(*arguments)
    with pytest.raises(ValueError, match='size must be "B" or "L", got \'H\''):
        accounting.vivit_config("H")
    for label in ANALYTIC:
        analytic = BASELINES[label].analytic
        assert analytic is not None
        with pytest.raises(ValueError, match="frames must be a positive multiple of"):
            analytic(0, 224)
        with pytest.raises(ValueError, match="image must be a positive multiple of"):
            analytic(8, 0)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for label in BUILT:
        build = BASELINES[label].build
        assert build is not None
        with pytest.raises(ImportError, match=r"pip install 'trecvit-kernels\[benchmarks\]'"):
            build(2, 32)


def test_rows_of_the_suite() -> None:
    rows = list(suite.rows(Setting()))
    assert len(rows) == (len(TRECVIT) + len(BASELINES)) * len(suite.FRAMES) * len(suite.MODES)
    assert len({row.key for row in rows}) == len(rows)
    assert [row.key for row in rows] == [row.key for row in suite.rows(Setting())]
    assert {row.key for row in suite.rows(Setting(quick=True))} < {row.key for row in rows}

    tiny = [find(row) for row in suite.rows(Setting(tiny=True))]
    assert [(record.what, record.at["mode"]) for record in tiny] == [
        (label, mode) for label in ("TRecViT-B", "X3D-L") for mode in suite.MODES
    ]
    for forward, training in zip(tiny[::2], tiny[1::2]):
        assert 0 < 2 * forward.values["flop"] < training.values["flop"]
        assert 0 < forward.values["parameters"] == training.values["parameters"]
    assert tiny[0].note == ""
    assert tiny[-1].note.startswith("analytic")
