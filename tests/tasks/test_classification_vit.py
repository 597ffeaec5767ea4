"""Weights of an image ViT in a TRecViT: against a ViT written here in timm's names, and against timm itself."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels.models import TRecViT, TRecViTConfig, positions
from trecvit_kernels.tasks.classification import ClassificationTask, initialise_from_vit

# Sizes that differ wherever they may: a transposed or exchanged tensor cannot pass for another.
CONFIG = TRecViTConfig(
    width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=(8, 4), image_size=(32, 24), head_width=20, num_classes=7
)  # fmt: skip
GRID = CONFIG.grid  # 4 x 6


class Attention(nn.Module):
    """q, k, v from one matrix, whose rows are (q | k | v, head, channel of the head)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gelu = nn.Linear(width, hidden), nn.Linear(hidden, width), gelu

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


class VitBlock(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, gelu: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden, gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """An image ViT with timm's names; ``gelu`` is "none" (erf, timm's own) or "tanh" (ours)."""

    def __init__(
        self, grid: tuple[int, int] = GRID, depth: int = 2, cls: bool = True, gelu: str = "tanh"
    ) -> None:
        super().__init__()
        width, patch = CONFIG.width, CONFIG.patch_size
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if cls else None
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1] + cls, width))
        self.blocks = nn.ModuleList(
            VitBlock(width, CONFIG.mlp_dim, CONFIG.num_heads, gelu) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.3)

    def tokens(self, image: Tensor) -> Tensor:
        x = self.patch_embed.proj(image).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x + self.pos_embed

    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(image)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def spatial_only(model: TRecViT, video: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and what the spatial blocks and the last norm make of them; the LRUs are left out."""
    x = tokens = model(video, return_dict=True)["tokens"]
    for block in model.blocks:
        x = block.space(x)
    return tokens, model.encoder_norm(x)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_spatial_blocks_compute_the_vit(pool: str, backend: str) -> None:
    vit, model = Vit(cls=pool == "cls").eval(), TRecViT(CONFIG.replace(pool=pool)).eval()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    report = initialise_from_vit(model, vit.state_dict())
    video = torch.rand(2, 3, 3, 32, 24)
    with torch.no_grad():
        tokens, features = spatial_only(model, video)
        frames = (video.flatten(0, 1) - 0.5) / 0.5
        torch.testing.assert_close(tokens.flatten(0, 1), vit.tokens(frames), atol=1e-5, rtol=0)
        torch.testing.assert_close(features.flatten(0, 1), vit(frames), atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        shared = not name.startswith(("pre_logits.", "cls_head.")) and ".time." not in name
        assert (name in report.loaded) == shared and (name in report.fresh) == (not shared)
        assert torch.equal(parameter, before[name]) != shared
    assert report.unused == ("head.weight", "head.bias")


def test_every_tensor_is_where_it_should_be() -> None:
    """Bit by bit; pixels are taken as they are."""
    vit, model = Vit().state_dict(), TRecViT(CONFIG)
    initialise_from_vit(model, vit, pixel_mean=0.0, pixel_std=1.0)
    ours = model.state_dict()
    for i in range(2):
        for theirs, mine in [
            ("norm1", "norm_1"), ("attn.qkv", "qkv"), ("attn.proj", "out"), ("norm2", "norm_2"), ("mlp.fc1", "mlp_in"),
            ("mlp.fc2", "mlp_out"),
        ]:  # fmt: skip
            for kind in ("weight", "bias"):
                assert torch.equal(
                    ours[f"blocks.{i}.space.{mine}.{kind}"], vit[f"blocks.{i}.{theirs}.{kind}"]
                )
    assert torch.equal(ours["encoder_norm.weight"], vit["norm.weight"])
    assert torch.equal(ours["pos_embedding"], vit["pos_embed"][:, 1:])
    assert torch.equal(ours["cls"], vit["cls_token"] + vit["pos_embed"][:, :1])
    kernel = vit["patch_embed.proj.weight"]
    assert torch.equal(ours["embedding.weight"], kernel.movedim(1, -1).reshape(24, -1))
    assert torch.equal(ours["embedding.bias"], vit["patch_embed.proj.bias"])


def test_erf_gelu_is_the_only_difference() -> None:
    """timm's own GELU: close, not equal, as the docstring says."""
    vit, model = Vit(gelu="none").eval(), TRecViT(CONFIG).eval()
    initialise_from_vit(model, vit.state_dict())
    video = torch.rand(1, 1, 3, 32, 24)
    with torch.no_grad():
        _, features = spatial_only(model, video)
        difference = (features[0] - vit(video[0] * 2 - 1)).abs().max()
    assert 1e-5 < difference < 1e-2


def test_normalisation_of_pixels_for_each_colour() -> None:
    vit, model = Vit(), TRecViT(CONFIG)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    initialise_from_vit(model, vit.state_dict(), pixel_mean=mean, pixel_std=std)
    video = torch.rand(1, 2, 3, 32, 24)
    normalised = (video[0] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        got = model(video, return_dict=True)["tokens"][0]
        torch.testing.assert_close(got, vit.tokens(normalised), atol=2e-5, rtol=0)


# Positions


def test_positions_at_another_grid() -> None:
    vit, model = Vit(grid=(5, 5)).state_dict(), TRecViT(CONFIG)
    with pytest.raises(
        ValueError, match=r"pos_embed must be for the model's grid \(4, 6\), or interpolate_positions"
    ):
        initialise_from_vit(model, vit)
    initialise_from_vit(model, vit, interpolate_positions=True)
    expected = positions.interpolate(vit["pos_embed"][:, 1:], (5, 5), GRID)
    assert torch.equal(model.pos_embedding, expected)
    assert torch.equal(model.cls, vit["cls_token"] + vit["pos_embed"][:, :1])


def test_grid_of_the_positions() -> None:
    oblong = Vit(grid=(3, 7)).state_dict()
    with pytest.raises(ValueError, match=r"misshapen pos_embed: must be \(1, 25, 24\), got \(1, 22, 24\)"):
        initialise_from_vit(TRecViT(CONFIG), oblong, interpolate_positions=True)
    model = TRecViT(CONFIG)
    initialise_from_vit(model, oblong, interpolate_positions=True, source_grid=(3, 7))
    assert torch.equal(model.pos_embedding, positions.interpolate(oblong["pos_embed"][:, 1:], (3, 7), GRID))
    with pytest.raises(ValueError, match=r"misshapen pos_embed: must be \(1, 22, 24\), got \(1, 25, 24\)"):
        initialise_from_vit(model, Vit().state_dict(), source_grid=(3, 7))
    with pytest.raises(ValueError, match=r"source_grid must be \(down, across\), got \(3,\)"):
        initialise_from_vit(model, oblong, source_grid=(3,))


def test_cls_token_without_a_position() -> None:
    """timm's ``no_embed_class``: as many positions as patches."""
    state, model = Vit().state_dict(), TRecViT(CONFIG)
    state["pos_embed"] = state["pos_embed"][:, 1:]
    initialise_from_vit(model, state)
    assert torch.equal(model.cls, state["cls_token"]) and torch.equal(model.pos_embedding, state["pos_embed"])
    # 10 positions: 2 x 5 without the cls token, or 3 x 3 with it
    small = TRecViT(CONFIG.replace(image_size=(16, 20)))
    state["pos_embed"] = state["pos_embed"][:, :10]
    with pytest.raises(
        ValueError, match=r"10 positions may be \(2, 5\) without the cls token or \(3, 3\) with"
    ):
        initialise_from_vit(small, state)
    initialise_from_vit(small, state, source_grid=(2, 5))
    assert torch.equal(small.pos_embedding, state["pos_embed"])


def test_parts() -> None:
    vit, model = Vit().state_dict(), TRecViT(CONFIG)
    report = initialise_from_vit(model, vit, parts=["blocks"])
    assert all(".space." in name for name in report.loaded) and len(report.loaded) == 2 * 12
    assert {"pos_embed", "norm.weight", "patch_embed.proj.bias", "head.bias"} <= set(report.unused)
    report = initialise_from_vit(model, vit, parts=["cls"])
    assert report.loaded == ("cls",) and torch.equal(model.cls, vit["cls_token"] + vit["pos_embed"][:, :1])
    fixed = TRecViT(CONFIG.replace(posemb="sincos2d", pool="mean"))
    report = initialise_from_vit(fixed, vit)
    assert {"pos_embed", "cls_token"} <= set(report.unused)
    for parts in (["positions"], ["cls"]):
        with pytest.raises(ValueError, match="parts must have a place in the model"):
            initialise_from_vit(fixed, vit, parts=parts)
    for parts in ([], "blocks", ["head"]):
        with pytest.raises(
            ValueError, match="parts must be some of patches, positions, cls, blocks, norm, got"
        ):
            initialise_from_vit(model, vit, parts=parts)


# What does not fit


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), ["1 weights", "missing blocks.1.attn.qkv.bias"]),
        (
            lambda s: s.update({"blocks.0.ls1.gamma": torch.ones(24)}),
            [r"unexpected blocks.0.ls1.gamma \(24,\)"],
        ),
        (lambda s: s.update({"reg_token": torch.ones(1, 4, 24)}), ["unexpected reg_token"]),
        (lambda s: s.pop("cls_token"), ["missing cls_token"]),
        (
            lambda s: (s.pop("norm.weight"), s.update({"fc_norm.weight": torch.ones(24)})),
            ["2 weights", "missing norm.weight", "unexpected fc_norm.weight"],
        ),
        (
            lambda s: (
                s.pop("pos_embed"),
                s.update(
                    {
                        "blocks.0.mlp.fc1.weight": torch.ones(24, 40),
                        "patch_embed.proj.weight": torch.ones(3, 3),
                    }
                ),
            ),
            [
                "3 weights",
                "missing pos_embed",
                r"misshapen blocks.0.mlp.fc1.weight: must be \(40, 24\), got \(24, 40\)",
                r"misshapen patch_embed.proj.weight: must be \(24, 3, 8, 4\)",
            ],
        ),
        (
            lambda s: s.update({"pos_embed": torch.ones(25, 24)}),
            [r"misshapen pos_embed: must be \(1, 25, 24\)"],
        ),
        (lambda s: s.update({"blocks.2.norm1.bias": torch.ones(24)}), ["must have 2 blocks.*got 3"]),
        (lambda s: s.update({"norm.bias": torch.ones(24).long()}), ["norm.bias must be real and floating"]),
        (lambda s: s.update({"norm.bias": 3}), ["norm.bias must be a torch.Tensor, got int"]),
        (lambda s: s.clear(), ["missing blocks.1.mlp.fc2.bias", "missing cls_token"]),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Any]], Any], words: list[str]) -> None:
    state, model = dict(Vit().state_dict()), TRecViT(CONFIG)
    before = [parameter.clone() for parameter in model.parameters()]
    change(state)
    with pytest.raises((ValueError, TypeError), match="initialise_from_vit") as caught:
        initialise_from_vit(model, state)
    assert all(re.search(word, str(caught.value)) for word in words), caught.value
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_bad_arguments() -> None:
    vit, model = Vit().state_dict(), TRecViT(CONFIG)
    with pytest.raises(TypeError, match="model must be a TRecViT, got Vit"):
        initialise_from_vit(Vit(), vit)
    with pytest.raises(TypeError, match="weights must be a state dict or a path of one, got list"):
        initialise_from_vit(model, [1])
    with pytest.raises(ValueError, match="must have 2 blocks, as many as the model, got 1"):
        initialise_from_vit(model, Vit(depth=1).state_dict())
    for options in ({"pixel_std": 0.0}, {"pixel_mean": (0.5, 0.5)}, {"pixel_std": "a"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            initialise_from_vit(model, vit, **options)


# Files


@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
def test_files(tmp_path: Path, inside: str | None) -> None:
    state, direct = Vit().state_dict(), TRecViT(CONFIG)
    initialise_from_vit(direct, state)
    torch.save(state if inside is None else {inside: state, "epoch": 3}, tmp_path / "vit.pth")
    paths = [tmp_path / "vit.pth"]
    if inside is None:
        safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
        paths.append(tmp_path / "vit.safetensors")
    for path in paths:
        loaded = TRecViT(CONFIG)
        initialise_from_vit(loaded, path)
        assert all(
            torch.equal(loaded.state_dict()[n], t) for n, t in direct.state_dict().items() if ".space." in n
        )


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = TRecViT(CONFIG)
    with pytest.raises(FileNotFoundError, match="found no file"):
        initialise_from_vit(model, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="ends in one of"):
        initialise_from_vit(model, tmp_path / "vit.npz")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil(), protocol=2))
    torch.save({"head": _Evil()}, tmp_path / "evil.pt")
    for name in ("evil.pth", "evil.pt"):
        with pytest.raises(ValueError, match="complete PyTorch file of plain tensors"):
            initialise_from_vit(model, tmp_path / name)
    assert "unpickled" not in capsys.readouterr().out
    safetensors.torch.save_file(Vit().state_dict(), tmp_path / "vit.safetensors")
    half = (tmp_path / "vit.safetensors").read_bytes()[:1000]
    (tmp_path / "half.safetensors").write_bytes(half)
    with pytest.raises(ValueError, match="complete safetensors file"):
        initialise_from_vit(model, tmp_path / "half.safetensors")


def test_task_starts_from_a_vit(tmp_path: Path) -> None:
    safetensors.torch.save_file(Vit(grid=(5, 5)).state_dict(), tmp_path / "vit.safetensors")
    fields = {name: value for name, value in CONFIG.to_dict().items() if name != "num_classes"}
    task = ClassificationTask(
        num_classes=7,
        overrides=fields,
        vit=str(tmp_path / "vit.safetensors"),
        vit_options={"interpolate_positions": True},
    )
    expected = TRecViT(CONFIG)
    initialise_from_vit(expected, tmp_path / "vit.safetensors", interpolate_positions=True)
    built = task.build().state_dict()
    assert all(
        torch.equal(built[n], t) for n, t in expected.state_dict().items() if ".space." in n or n == "cls"
    )


# timm itself


@pytest.fixture(scope="module")
def timm_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what ``_timm_vit.py`` writes; in a process of its own, as it may put a stub for torchvision."""
    folder = tmp_path_factory.mktemp("timm")
    script = Path(__file__).with_name("_timm_vit.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False
    )
    if ran.returncode == 3:
        pytest.skip("timm is not installed")
    assert ran.returncode == 0, ran.stderr
    return folder


def test_against_timm(timm_vit: Path, backend: str) -> None:
    """Random weights; timm's tanh GELU. Tokens, features and interpolated positions are timm's."""
    values = safetensors.torch.load_file(timm_vit / "values.safetensors")
    config = CONFIG.replace(mlp_dim=96, patch_size=8, image_size=32)
    model = TRecViT(config).eval()
    report = initialise_from_vit(model, timm_vit / "vit.safetensors")
    assert set(report.unused) == {"head.weight", "head.bias"}
    with torch.no_grad():
        tokens, features = spatial_only(model, (values["image"][:, None] + 1) / 2)
    torch.testing.assert_close(tokens[:, 0], values["tokens"], atol=1e-5, rtol=0)
    torch.testing.assert_close(features[:, 0], values["features"], atol=1e-5, rtol=0)
    wide = TRecViT(config.replace(image_size=(24, 40)))
    initialise_from_vit(wide, timm_vit / "vit.safetensors", interpolate_positions=True)
    torch.testing.assert_close(wide.pos_embedding, values["positions"][:, 1:], atol=1e-6, rtol=0)
