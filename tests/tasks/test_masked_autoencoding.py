"""Masked autoencoding: masks, what the encoder pays for, loss by hand, weights into a classifier and out of a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import trecvit_kernels as tk
from trecvit_kernels.modules import RecurrentBlock
from trecvit_kernels.tasks.masked_autoencoding import (
    MaskedAutoencoder,
    MaskedAutoencoderConfig,
    MaskedAutoencodingTask,
    join_patches,
    kept_patches,
    normalise_patches,
    reconstruction_loss,
    tube_mask,
)

ENCODER = tk.TRecViTConfig(
    width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=(4, 8), image_size=(24, 40), lru_width=24, head_width=20,
    num_classes=3,
)  # fmt: skip
CONFIG = MaskedAutoencoderConfig(ENCODER, decoder_width=16, decoder_depth=1, decoder_heads=2)
PATCHES = 30  # 6 x 5, of which 3 are kept
PAGE = Path(__file__).resolve().parents[2] / "docs" / "masked_autoencoding.md"


@pytest.fixture
def model() -> MaskedAutoencoder:
    return MaskedAutoencoder(CONFIG).eval()


@pytest.fixture
def video() -> Tensor:
    return torch.rand(2, 4, 3, 24, 40)


@pytest.mark.parametrize("patches, ratio, kept", [(196, 0.9, 20), (196, 0.75, 49), (30, 0.9, 3), (2, 0.5, 1)])
def test_every_mask_keeps_exactly_the_rounded_number(patches: int, ratio: float, kept: int) -> None:
    mask = tube_mask(50, patches, ratio)
    assert mask.shape == (50, patches) and mask.dtype == torch.bool
    assert ((~mask).sum(dim=1) == kept).all()


def test_masks_follow_the_generator_alone_and_are_uniform() -> None:
    def draw(seed: int) -> Tensor:
        return tube_mask(400, 20, 0.75, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) > 390  # each video has its own
    torch.manual_seed(3)
    seeded = tube_mask(4, 20)
    torch.manual_seed(3)
    assert torch.equal(tube_mask(4, 20), seeded)
    # Every patch is visible in a quarter of the masks; binomial, 400 draws: +-5 standard deviations of 0.0217.
    assert ((~first).float().mean(dim=0) - 0.25).abs().max() < 0.11


def test_kept_patches_in_order() -> None:
    mask = torch.tensor([[True, False, True, False], [False, True, True, False]])
    assert kept_patches(mask).tolist() == [[1, 3], [0, 3]]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_encoder_of_all_patches_is_the_classifiers(pool: str, video: Tensor) -> None:
    config = CONFIG.replace(encoder=ENCODER.replace(pool=pool))
    model, classifier = MaskedAutoencoder(config).eval(), tk.TRecViT(ENCODER.replace(pool=pool)).eval()
    missing, unexpected = classifier.load_state_dict(model.encoder_state_dict(), strict=False)
    assert not unexpected
    assert sorted(missing) == ["cls_head.bias", "cls_head.weight", "pre_logits.bias", "pre_logits.weight"]
    everything = kept_patches(torch.zeros(2, PATCHES, dtype=torch.bool))
    with torch.no_grad():
        tokens = model.encoder.forward_features(video, kept=everything)
        assert torch.equal(tokens, classifier.forward_features(video))
    assert tokens.shape[2] == PATCHES + (pool == "cls")


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_encoder_sees_the_kept_tubes_and_nothing_else(pool: str, video: Tensor, backend: str) -> None:
    """Tokens by hand: all tokens of the embedding, the hidden ones cut out, through the blocks."""
    encoder = MaskedAutoencoder(CONFIG.replace(encoder=ENCODER.replace(pool=pool))).encoder.eval()
    mask = tube_mask(2, PATCHES)
    kept, cls = kept_patches(mask), int(pool == "cls")
    with torch.no_grad():
        x = encoder._embed(video)
        x = torch.stack([torch.cat([c[:, :cls], c[:, cls:][:, ~m]], dim=1) for c, m in zip(x, mask)])
        assert x.shape == (2, 4, 3 + cls, 16)
        expected = encoder._encode(x)
        found = encoder.forward_features(video, kept=kept)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        patches = encoder.patches(video)
        noise = torch.where(mask[:, None, :, None], torch.rand_like(patches), patches)
        assert torch.equal(encoder.forward_features(join_patches(noise, (6, 5), (4, 8)), kept=kept), found)


def test_kept_patches_of_a_video_of_several_clips(video: Tensor) -> None:
    model = tk.TRecViT(ENCODER.replace(frames_per_clip=2)).eval()
    kept = kept_patches(tube_mask(2, PATCHES))
    with torch.no_grad():
        found = model.forward_features(video, kept=kept)
        parts = [model.forward_features(video[:, i : i + 2], kept=kept) for i in (0, 2)]
    torch.testing.assert_close(found, torch.stack(parts, dim=1).flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_hidden_tubes_cost_the_encoder_nothing(model: MaskedAutoencoder, video: Tensor) -> None:
    seen: list[tuple[int, ...]] = []
    for module in model.encoder.modules():
        if isinstance(module, RecurrentBlock):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    counts = []
    for mask in (tube_mask(2, PATCHES), torch.zeros(2, PATCHES, dtype=torch.bool)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.encoder.forward_features(video, kept=kept_patches(mask))
        counts.append({name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()})
    # The cls token and 3 of 30 patches.
    assert seen == [(2, 4, 4, 16)] * 2 + [(2, 4, 31, 16)] * 2
    masked, whole = counts
    assert masked["Block.time"] * 31 == whole["Block.time"] * 4
    assert masked["Block.space"] * 31 < whole["Block.space"] * 4  # attention costs the square
    assert masked["Linear"] * 10 == whole["Linear"]  # the embedding; the cls token has none
    assert 0.1 < masked["Global"] / whole["Global"] < 4 / 31


def test_loss_and_targets_by_hand(video: Tensor) -> None:
    patches, prediction = MaskedAutoencoder(CONFIG).encoder.patches(video), torch.randn(2, 4, PATCHES, 96)
    target, mean, deviation = normalise_patches(patches)
    pixels = video[1, 2, :, 4:8, 16:24]  # row 1, column 2 of the grid
    by_hand = (pixels - pixels.mean()) / (pixels.var(correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(target[1, 2, 7], by_hand.permute(1, 2, 0).flatten(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target * deviation + mean, patches)
    mask = tube_mask(2, PATCHES)
    errors = [
        (prediction[b, t, n] - target[b, t, n]).square().mean()
        for b in range(2) for t in range(4) for n in range(PATCHES) if mask[b, n]
    ]  # fmt: skip
    torch.testing.assert_close(reconstruction_loss(prediction, target, mask), torch.stack(errors).mean())
    everything = reconstruction_loss(prediction, target, None)
    torch.testing.assert_close(everything, (prediction - target).square().mean())


@pytest.mark.parametrize("loss_over", ["masked", "all"])
def test_predicting_the_mean_of_a_patch_costs_one(loss_over: str, video: Tensor) -> None:
    model = MaskedAutoencoder(CONFIG.replace(loss_over=loss_over))
    for parameter in model.to_pixels.parameters():
        torch.nn.init.zeros_(parameter)  # predicts 0, the mean of the normalised pixels
    mask = tube_mask(2, PATCHES)
    result = model(video, mask)
    assert result.loss.item() == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(result.loss, result.baseline)
    flat = video.clone()
    flat[1] = 0.3  # one of the two videos has no contrast
    assert model(flat, mask).baseline.item() == pytest.approx(0.5, abs=1e-4)


def test_visible_patches_get_no_gradient_from_the_loss(model: MaskedAutoencoder, video: Tensor) -> None:
    mask = tube_mask(2, PATCHES)
    prediction, loss, _ = model(video, mask)
    (gradient,) = torch.autograd.grad(loss, prediction)
    used = gradient.abs().sum(dim=(1, 3)) > 0
    assert torch.equal(used, mask)


def test_prediction_is_causal_and_knows_where_a_patch_is(model: MaskedAutoencoder, video: Tensor) -> None:
    mask = tube_mask(2, PATCHES)
    later = video.clone()
    later[:, 2:] = torch.rand(2, 2, 3, 24, 40)
    with torch.no_grad():
        a, b = model(video, mask).prediction, model(later, mask).prediction
    assert torch.equal(a[:, :2], b[:, :2]) and not torch.equal(a[:, 2:], b[:, 2:])
    hidden = a[0, 0, mask[0]]
    assert (hidden[:, None] - hidden[None]).abs().amax(dim=-1).fill_diagonal_(1.0).min() > 1e-3


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_decoder_gets_every_token_at_its_place(pool: str, video: Tensor) -> None:
    model = MaskedAutoencoder(CONFIG.replace(encoder=ENCODER.replace(pool=pool))).eval()
    mask, cls, inputs = tube_mask(2, PATCHES), int(pool == "cls"), []
    model.decoder[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        model(video, mask)
        seen = model.to_decoder(model.encoder.forward_features(video, kept=kept_patches(mask)))
        tokens = inputs[0][:, :, cls:] - model.decoder_positions
    assert inputs[0].shape == (2, 4, PATCHES + cls, 16)
    assert torch.equal(inputs[0][:, :, :cls], seen[:, :, :cls])
    for b in range(2):
        torch.testing.assert_close(tokens[b][:, ~mask[b]], seen[b, :, cls:], rtol=1e-5, atol=1e-5)
        hidden = tokens[b][:, mask[b]]
        torch.testing.assert_close(hidden, model.mask_token[0].expand_as(hidden), rtol=1e-5, atol=1e-5)


def test_pictures(model: MaskedAutoencoder, video: Tensor) -> None:
    video = torch.cat([video, torch.rand(2, 4, 3, 24, 3)], dim=-1)  # edge pixels that fill no patch
    mask = tube_mask(2, PATCHES)
    pictures = model.reconstruct(video, mask)
    hidden = mask.unflatten(1, (6, 5)).repeat_interleave(4, 1).repeat_interleave(8, 2)[:, None, None]
    whole = video[..., :40]
    assert pictures.reconstruction.shape == whole.shape
    assert torch.equal(pictures.visible, torch.where(hidden, 0.5, whole))
    assert torch.equal(pictures.reconstruction.where(~hidden, whole), whole)
    assert not torch.equal(pictures.reconstruction, whole)
    assert torch.equal(pictures.reconstruction, pictures.reconstruction.clamp(0.0, 1.0))
    assert not pictures.reconstruction.requires_grad
    for parameter in model.to_pixels.parameters():
        torch.nn.init.constant_(
            parameter, 0.0 if parameter.ndim == 2 else 0.5
        )  # half a deviation above the mean
    patch = int(mask[1].nonzero()[0])
    pixels = (
        1,
        2,
        slice(None),
        slice(patch // 5 * 4, patch // 5 * 4 + 4),
        slice(patch % 5 * 8, patch % 5 * 8 + 8),
    )
    value = whole[pixels].mean() + 0.5 * whole[pixels].std(correction=0)
    found = model.reconstruct(video, mask).reconstruction[pixels]
    torch.testing.assert_close(found, value.expand_as(found), rtol=1e-4, atol=1e-4)
    drawn = [model.reconstruct(video, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(drawn[0].visible, drawn[1].visible)


def test_bytes_and_floats_are_the_same_video(model: MaskedAutoencoder) -> None:
    pixels, mask = torch.randint(0, 256, (1, 2, 3, 24, 40), dtype=torch.uint8), tube_mask(1, PATCHES)
    with torch.no_grad():
        a, b = model(pixels, mask), model(pixels / 255, mask)
    torch.testing.assert_close(a.prediction, b.prediction)
    torch.testing.assert_close(a.loss, b.loss)


def test_autocast_and_checkpointing(model: MaskedAutoencoder, video: Tensor) -> None:
    model, mask = model.train(), tube_mask(2, PATCHES)
    loss = model(video, mask).loss
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    model.set_activation_checkpointing()
    again = model(video, mask).loss
    for a, b in zip(gradients, torch.autograd.grad(again, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(video, mask).loss
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(loss.item(), rel=0.05)
    half = model.bfloat16()(video, mask)
    assert half.prediction.dtype == torch.bfloat16 and half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(loss.item(), rel=0.05)
    whole = model.double()(video.double(), mask)
    assert whole.loss.dtype == whole.prediction.dtype == torch.float64


def moving_waves(clips: int) -> Tensor:
    """uint8 (clips, 8, 3, 24, 40): plane waves that drift, each in its own direction."""
    direction = 2 * torch.pi * torch.rand(clips, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    t, y, x = torch.meshgrid(torch.arange(8.0), torch.arange(24.0), torch.arange(40.0), indexing="ij")
    phase = (x * direction.cos() + y * direction.sin()) / 8 + 0.3 * t
    return ((phase.sin() + 1) * 127.5).to(torch.uint8).unsqueeze(2).repeat(1, 1, 3, 1, 1)


TASK = MaskedAutoencodingTask(
    "trecvit_tiny",
    {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "patch_size": (4, 8), "image_size": (24, 40)},
    decoder_width=32, decoder_depth=1, decoder_heads=2, mask_ratio=0.5,
)  # fmt: skip


def test_a_few_steps_beat_the_mean_of_the_patch() -> None:
    model, batch = TASK.build(), {"video": moving_waves(8)}
    assert isinstance(model, MaskedAutoencoder)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draws = torch.Generator().manual_seed(1)
    before = TASK.evaluate(model, [batch])
    assert before["baseline"] == pytest.approx(1.0, abs=0.01) and before["loss"] > 1.0
    for _ in range(60):
        loss, logged = TASK.loss(model, batch, draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert set(logged) == {"baseline"} and not logged["baseline"].requires_grad
    after = TASK.evaluate(model, [batch])
    assert after["loss"] < 0.85
    assert after == TASK.evaluate(model, [batch]) and model.training
    parts = TASK.evaluate(model, [{"video": part} for part in batch["video"].split([2, 6])])
    assert parts["loss"] == pytest.approx(after["loss"], rel=0.1)  # other masks


def test_task_draws_what_its_generator_says() -> None:
    model, batch = TASK.build(), {"video": moving_waves(2)}
    losses = [TASK.loss(model, batch, torch.Generator().manual_seed(seed))[0].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1, got 1.0"),
        ({"mask_ratio": float("nan")}, "mask_ratio must lie between 0 and 1, got nan"),
        (
            {"mask_ratio": 0.99},
            "mask_ratio must keep and hide at least one of 30 patches, got 0.99, which keeps 0",
        ),
        ({"mask_ratio": "0.9"}, "mask_ratio must be a float, got str"),
        ({"decoder_width": 18}, "decoder_width must be a multiple of 4, got 18"),
        ({"decoder_heads": 3}, "decoder_width must be a multiple of decoder_heads = 3, got 16"),
        ({"decoder_depth": 0}, "decoder_depth must be at least 1, got 0"),
        ({"decoder_depth": 1.0}, "decoder_depth must be an int, got float"),
        ({"loss_over": "visible"}, "loss_over must be one of masked, all, got 'visible'"),
        (
            {"encoder": ENCODER.replace(complex_lru=True), "decoder_width": 20, "decoder_heads": 4},
            "decoder_width and decoder_heads must make a block of the encoder's kind, got 20 and 4 (TRecViTConfig: lru",
        ),
        ({"encoder": "trecvit_base"}, "encoder must be a TRecViTConfig, got str"),
    ],
)
def test_impossible_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        CONFIG.replace(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "huge"}, "model must be one of trecvit_tiny"),
        ({"overrides": {"widht": 8}}, "MaskedAutoencodingTask: unknown field widht"),
        ({"overrides": 3}, "overrides must be a table, got int"),
        ({"mask_ratio": 0.0}, "mask_ratio must lie between 0 and 1"),
        ({"evaluation_seed": "a"}, "evaluation_seed must be an int, got str"),
    ],
)
def test_impossible_tasks(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        MaskedAutoencodingTask(**options)


def test_refused_arguments(model: MaskedAutoencoder, video: Tensor) -> None:
    mask = tube_mask(2, PATCHES)
    uneven = mask.clone()
    uneven[0] = True
    cases: list[tuple[Any, Any, str]] = [
        (video[0], mask, "video must have shape"),
        (video, mask.float(), "mask must have dtype bool, got float32"),
        (video, mask[:1], r"mask must have shape \(2, 30\), got \(1, 30\)"),
        (video, uneven, "mask must keep the same number of patches in every video, at least 1, got 0 to 3"),
        (video, torch.ones_like(mask), "at least 1, got 0 to 0"),
        (video, torch.zeros_like(mask), "mask must hide at least one patch"),
        (video, None, "mask must be a torch.Tensor, got NoneType"),
    ]
    for clip, hidden, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            model(clip, hidden)
    for kept, message in [
        (torch.full((2, 3), 30), "kept must be patches 0 to 29, got 30 to 30"),
        (torch.full((2, 0), 1), "kept must be patches 0 to 29, got none"),
        (torch.zeros(2, 3), "kept must have dtype int64"),
        (torch.zeros(1, 3, dtype=torch.int64), r"kept must have shape \(2, 3\)"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            model.encoder.forward_features(video, kept=kept)
    with pytest.raises(TypeError, match="config must be a MaskedAutoencoderConfig, got TRecViTConfig"):
        MaskedAutoencoder(ENCODER)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batches must hold at least one video"):
        TASK.evaluate(model, [])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        tube_mask(0, PATCHES)


def test_examples_of_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["pictures"].reconstruction.shape == (2, 16, 3, 64, 64)
    assert names["logits"].shape == (2, 10)
