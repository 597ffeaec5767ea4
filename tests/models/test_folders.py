"""Folders of ``save_pretrained``, the Hub, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import trecvit_kernels as tk
from trecvit_kernels.models import pretrained


@pytest.fixture
def path(golden: Path) -> Path:
    return golden / "trecvit" / "trecvit_tiny_ckpt.npz"


def same(first: tk.TRecViT, second: tk.TRecViT) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return first.config == second.config and set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_save_and_load_round_trip(path: Path, tmp_path: Path) -> None:
    model = tk.load_official_checkpoint(path)
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert same(tk.TRecViT.from_pretrained(tmp_path), model)
    assert same(tk.TRecViT.from_pretrained(str(tmp_path), map_location="cpu"), model)
    larger = tk.TRecViT.from_pretrained(tmp_path, image_size=(64, 48))
    assert same(larger, tk.load_official_checkpoint(path, image_size=(64, 48)))
    with pytest.warns(UserWarning, match="new and random"):
        assert tk.TRecViT.from_pretrained(tmp_path, num_classes=4)(torch.rand(1, 1, 3, 32, 32)).shape == (
            1,
            4,
        )


SMALL = {
    "width": 16,
    "depth": 1,
    "mlp_dim": 16,
    "num_heads": 2,
    "patch_size": 4,
    "image_size": 8,
    "head_width": 8,
}


@pytest.mark.parametrize("posemb", ["learned", "sincos2d"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_round_trip_in_other_dtypes(dtype: torch.dtype, posemb: str, tmp_path: Path) -> None:
    model = tk.TRecViT(tk.TRecViTConfig(**SMALL, num_classes=3, posemb=posemb)).to(dtype).eval()
    model.save_pretrained(tmp_path)
    loaded, video = tk.TRecViT.from_pretrained(tmp_path).eval(), torch.rand(1, 2, 3, 8, 8)
    assert same(loaded, model) and loaded.pos_embedding.dtype == dtype
    torch.testing.assert_close(loaded(video), model(video))  # products may depend on where memory begins
    with pytest.warns(UserWarning, match="new and random"):
        other = tk.TRecViT.from_pretrained(tmp_path, num_classes=4, image_size=12)
    assert other(torch.rand(1, 2, 3, 12, 12)).dtype == dtype


@pytest.mark.parametrize("step", [1, 2])
def test_a_failed_save_leaves_the_old_folder(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the weights, or after them at the configuration."""
    old = tk.TRecViT(tk.TRecViTConfig(**SMALL, num_classes=3))
    old.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    before, calls = {p.name: p.read_bytes() for p in tmp_path.iterdir()}, iter(range(1, 9))

    def fail(*_: object) -> None:
        if next(calls) == step:
            raise OSError("disk full")

    new = tk.TRecViT(tk.TRecViTConfig(**{**SMALL, "mlp_dim": 8}, num_classes=3))
    with monkeypatch.context() as patch:
        patch.setattr(pretrained.os, "chmod", fail)
        with pytest.raises(OSError, match="disk full"):
            new.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert same(tk.TRecViT.from_pretrained(tmp_path), old)
    new.save_pretrained(tmp_path)
    assert same(tk.TRecViT.from_pretrained(tmp_path), new)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_pushing_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    monkeypatch.setattr(
        tk.TRecViT, "push_to_hub", lambda _, *names, **options: pushed.append((names, options))
    )
    model = tk.TRecViT(tk.TRecViTConfig(**SMALL))
    model.save_pretrained(tmp_path / "name", push_to_hub=True, private=True)
    model.save_pretrained(tmp_path / "name", push_to_hub=True, repo_id="me/model")
    assert [names for names, _ in pushed] == [("name",), ("me/model",)]
    assert pushed[0][1]["private"] is True
    assert "trecvit" in (tmp_path / "name" / "README.md").read_text()


BAD_CONFIGURATIONS = [
    (b"{", "Expecting property name"),
    (b"\xff\xfe\xff", "codec can't decode"),
    (b"[]", "fields must be a mapping by name, got list"),
    (b"null", "fields must be a mapping by name, got NoneType"),
    (b"[" * 100_000, "."),  # too deep for the parser
    (b'{"wide": 1}', "unknown field wide"),
    (b'{"width": "16"}', "width must be an int, got str"),
    (b'{"temporal": []}', "temporal must be a str, got list"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CONFIGURATIONS)
def test_damaged_configurations(content: bytes, message: str, tmp_path: Path) -> None:
    tk.TRecViT(tk.TRecViTConfig(**SMALL)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    expected = rf"TRecViT\.from_pretrained: .*config\.json must hold a configuration .*{message}"
    with pytest.raises(ValueError, match=expected):
        tk.TRecViT.from_pretrained(tmp_path)


def test_weights_of_other_dtypes(tmp_path: Path) -> None:
    tk.TRecViT(tk.TRecViTConfig(**SMALL)).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    state["cls"], state["cls_head.weight"] = state["cls"].int(), state["cls_head.weight"].bfloat16()
    safetensors.torch.save_file(state, weights)
    for check in (tk.TRecViT.from_pretrained, lambda folder: pretrained.check_folder("check", folder)):
        with pytest.raises(ValueError, match=r"2 weights do not fit") as caught:
            check(tmp_path)
        assert "mistyped cls: must have dtype float32 like the others, got" in str(caught.value)
        assert "mistyped cls_head.weight: must have dtype float32 like the others, got bfloat16" in str(
            caught.value
        )


def test_folders_that_do_not_fit(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have a config\.json, found none"):
        tk.TRecViT.from_pretrained(tmp_path)
    tk.load_official_checkpoint(path).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    del state["cls"]
    safetensors.torch.save_file({**state, "extra": torch.zeros(2)}, weights)
    with pytest.raises(
        ValueError, match=r"2 weights do not fit the model: missing cls; unexpected extra \(2,\)"
    ):
        tk.TRecViT.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        tk.TRecViT.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"TRecViT\.from_pretrained: unknown field classes"):
        tk.TRecViT.from_pretrained(tmp_path, classes=3)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"must have a model\.safetensors"):
        tk.TRecViT.from_pretrained(tmp_path)


def test_from_the_hub(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository id asks the Hub for exactly two files, neither of them a pickle."""
    expected = tk.load_official_checkpoint(path)
    expected.save_pretrained(tmp_path)
    asked = []

    def download(repo_id: str, filename: str, **_: object) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    assert same(tk.TRecViT.from_pretrained("someone/trecvit"), expected)
    assert asked == [("someone/trecvit", "config.json"), ("someone/trecvit", "model.safetensors")]
