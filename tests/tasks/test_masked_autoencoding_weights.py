"""A masked autoencoder's encoder: into classifiers, out of runs, out of files in DeepMind's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import trecvit_kernels as tk
from trecvit_kernels.models import SIZES, load_official_encoder, official, save_official_checkpoint
from trecvit_kernels.tasks.classification import ClassificationTask
from trecvit_kernels.tasks.masked_autoencoding import (
    MaskedAutoencoder,
    MaskedAutoencoderConfig,
    kept_patches,
    tube_mask,
)
from trecvit_kernels.training.config import TrainingConfig
from trecvit_kernels.training.export import export
from trecvit_kernels.training.loop import prepare

ENCODER = tk.TRecViTConfig(
    width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=(4, 8), image_size=(24, 40), lru_width=24, head_width=20,
    num_classes=3,
)  # fmt: skip
CONFIG = MaskedAutoencoderConfig(ENCODER, decoder_width=16, decoder_depth=1, decoder_heads=2)
PATCHES = 30
CONFIGURATION = Path(__file__).resolve().parents[2] / "docs" / "configs" / "masked_autoencoding.toml"


@pytest.fixture
def model() -> MaskedAutoencoder:
    return MaskedAutoencoder(CONFIG).eval()


@pytest.fixture
def video() -> Tensor:
    return torch.rand(2, 4, 3, 24, 40)


def test_weights_into_a_classifier_of_another_resolution(model: MaskedAutoencoder) -> None:
    classifier = tk.TRecViT(ENCODER.replace(image_size=(48, 80)))
    head = classifier.cls_head.weight.clone()  # type: ignore[union-attr]
    model.load_into(classifier)
    assert classifier.pos_embedding.shape == (1, 120, 16)
    assert torch.equal(classifier.cls_head.weight, head)  # type: ignore[union-attr]
    assert torch.equal(classifier.blocks[1].space.qkv.weight, model.encoder.blocks[1].space.qkv.weight)
    other = tk.TRecViT(ENCODER.replace(pool="mean", mlp_dim=48))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"load_into: 7 weights do not fit .*unexpected cls .*misshapen blocks.0"
    ):
        model.load_into(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(TypeError, match="model must be a TRecViT, got Linear"):
        model.load_into(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*the classifier for 3 classes")
def test_encoder_folder_starts_a_classifier(model: MaskedAutoencoder, video: Tensor, tmp_path: Path) -> None:
    model.encoder.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="the classifier for 3 classes is new and random"):
        probe = tk.TRecViT.from_pretrained(tmp_path, num_classes=3)
    with pytest.warns(UserWarning, match="the layer of 20 pre-logits is new and random"):
        classifier = tk.TRecViT.from_pretrained(tmp_path, num_classes=3, head_width=20)
    assert classifier.pre_logits is not None and classifier.pre_logits.weight.std() > 0.1
    with torch.no_grad():
        tokens = model.encoder.forward_features(video)
        assert torch.equal(probe.eval().forward_features(video), tokens)
        assert torch.equal(classifier.eval().forward_features(video), tokens)
        assert classifier(video).shape == probe(video).shape == (2, 3)


def test_official_layout_of_an_encoder_and_what_else_is_in_the_file(
    model: MaskedAutoencoder, video: Tensor, tmp_path: Path
) -> None:
    plain, more = tmp_path / "plain.npz", tmp_path / "more.npz"
    save_official_checkpoint(model.encoder, plain)
    with np.load(plain) as file:
        arrays = dict(file)
    assert all(name.startswith(("tokenizer/", "encoder/")) for name in arrays)
    foreign = {"decoder/mask_token": np.zeros((1, 16), np.float32), "step": np.zeros((), np.float32)}
    np.savez(more, **arrays, **foreign)
    kept = kept_patches(tube_mask(2, PATCHES))
    with torch.no_grad():
        expected = model.encoder.forward_features(video, kept=kept)
        loaded = load_official_encoder(plain, image_size=(24, 40))
        assert torch.equal(loaded.forward_features(video, kept=kept), expected)
        with pytest.warns(
            UserWarning, match=r"2 arrays are no part .*decoder/mask_token \(1, 16\), step \(\)"
        ):
            loaded = load_official_encoder(more, image_size=(24, 40))
        assert torch.equal(loaded.forward_features(video, kept=kept), expected)
    assert (loaded.config.num_classes, loaded.config.head_width) == (0, 0)
    fresh = MaskedAutoencoder(CONFIG)
    fresh.encoder.load_state_dict(loaded.state_dict())
    with pytest.raises(ValueError, match="load_official_encoder: num_classes must be 0"):
        load_official_encoder(plain, num_classes=3)
    np.savez(more, **arrays, **{"encoder/mask_token": np.zeros((1, 16), np.float32)})
    with pytest.raises(ValueError, match=r"unexpected encoder/mask_token \(1, 16\)"):
        load_official_encoder(more, image_size=(24, 40))
    del arrays["tokenizer/embedding/kernel"]
    np.savez(more, **arrays)
    with pytest.raises(ValueError, match="missing tokenizer/embedding/kernel"):
        load_official_encoder(more)


def test_encoder_of_the_official_classifier(golden: Path) -> None:
    path = golden / "trecvit" / "trecvit_tiny_ckpt.npz"
    with pytest.warns(UserWarning, match="4 arrays are no part of the encoder .*decoder/pre_logits/kernel"):
        encoder = load_official_encoder(path)
    whole = tk.load_official_checkpoint(path).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in encoder.state_dict().items())


def test_names_and_shapes_of_the_released_encoder(golden: Path) -> None:
    """Those that trecvit_B_mae.npz must have below tokenizer/ and encoder/ to be read."""
    keys = json.loads((golden / "trecvit" / "official_B_param_keys.json").read_text())["keys"]
    config = MaskedAutoencoderConfig(SIZES["trecvit_base_k400"])
    with torch.device("meta"):
        encoder = MaskedAutoencoder(config).encoder
    ours = official.to_official(encoder.state_dict(), encoder.config)
    released = {name: tuple(shape) for name, shape in keys.items() if not name.startswith("decoder/")}
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == released
    assert config.kept == 20


@pytest.mark.filterwarnings("ignore:.*is new and random")
def test_a_run_of_the_pages_configuration_starts_a_classifier(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "encoder"
    changes = [
        "schedule.steps=2",
        "schedule.warmup_steps=1",
        "data.clips=32",
        "data.workers=0",
        f"run.folder={run}",
    ]
    measures = prepare(TrainingConfig.from_file(CONFIGURATION, [*changes, "data.validation_clips=4"])).run()
    assert set(measures) == {"loss", "baseline"}
    assert export(run, out) == "TRecViT"
    encoder = tk.TRecViT.from_pretrained(out)
    sizes = {
        name: getattr(encoder.config, name)
        for name in ("width", "depth", "mlp_dim", "num_heads", "lru_width")
    }
    images = {"patch_size": 8, "image_size": 32}
    classifier = ClassificationTask(5, "trecvit_tiny", {**sizes, **images}, pretrained=str(out)).build()
    weights = classifier.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.state_dict().items())
    assert classifier(torch.rand(1, 2, 3, 32, 32)).shape == (1, 5)
