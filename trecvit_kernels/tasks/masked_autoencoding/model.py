"""A masked autoencoder: a TRecViT that sees a few tubes of patches, and a light decoder that predicts the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trecvit_kernels._checks import check_like
from trecvit_kernels.models import TRecViT, positions, pretrained
from trecvit_kernels.models.encoder import encode
from trecvit_kernels.models.trecvit import Block
from trecvit_kernels.modules import _init
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.ops._dtypes import state_dtype
from trecvit_kernels.tasks.masked_autoencoding.config import MaskedAutoencoderConfig
from trecvit_kernels.tasks.masked_autoencoding.masks import kept_patches, tube_mask
from trecvit_kernels.tasks.masked_autoencoding.pixels import (
    join_patches,
    normalise_patches,
    reconstruction_loss,
)

_HEAD = ("pre_logits.", "cls_head.")


class Reconstruction(NamedTuple):
    """What ``MaskedAutoencoder.forward`` returns.

    prediction: (B, T, N, rows * columns * 3), of every patch, in units of ``normalise_patches``.
    loss: scalar, float32 (float64 for a float64 model).
    baseline: the same for predicting the mean of every patch, without a gradient: 1, less with patches of one colour.
    """

    prediction: Tensor
    loss: Tensor
    baseline: Tensor


class Pictures(NamedTuple):
    """Videos (B, T, 3, H, W) in [0, 1], float32 (float64 for a float64 model), for the eye.

    visible: hidden patches in grey. reconstruction: hidden patches as predicted, with the true patch's mean and
    contrast, which the model is not asked to predict; visible patches as they are. H and W are whole patches.
    """

    visible: Tensor
    reconstruction: Tensor


class MaskedAutoencoder(nn.Module):
    """Encodes the visible tubes of a video and predicts the pixels of all (MAE, arXiv 2111.06377, with tube masks).

    Hidden patches are dropped before the encoder, which runs on (B, T, kept, C): neither its attention nor its
    recurrences see them or pay for them. A cls token, if the encoder has one, is always kept. The decoder, blocks of
    the same kind, gets the encoder's tokens through a linear layer, one learned token in place of all others, and
    fixed sin-cos positions; time needs none, because the recurrence has an order.

    A video counts as one clip.

    Raises:
        TypeError: config is no MaskedAutoencoderConfig.
    """

    decoder_positions: Tensor

    def __init__(self, config: MaskedAutoencoderConfig) -> None:
        super().__init__()
        if not isinstance(config, MaskedAutoencoderConfig):
            raise TypeError(
                f"MaskedAutoencoder: config must be a MaskedAutoencoderConfig, got {type(config).__name__}"
            )
        self.config = config
        self.activation_checkpointing = False
        width, (rows, columns) = config.decoder_width, config.encoder.patch_size
        self.encoder = TRecViT(config.encoder)
        self.to_decoder = Linear(config.encoder.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, 1, width))
        table = positions.sincos2d(*config.encoder.grid, width)
        self.register_buffer("decoder_positions", table, persistent=False)
        self.decoder = nn.ModuleList(Block(config.decoder) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.to_pixels = Linear(width, rows * columns * 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal layers, mask token N(0, 1 / width); encoder and blocks initialise themselves."""
        for linear in (self.to_decoder, self.to_pixels):
            _init.truncated_normal_(linear.weight, linear.in_features)
            nn.init.zeros_(linear.bias)
        _init.normal_(self.mask_token, self.config.decoder_width)

    def set_activation_checkpointing(self, enabled: bool = True) -> None:
        """In training, keep only each block's input and run the block again in the backward pass."""
        self.activation_checkpointing = enabled
        self.encoder.set_activation_checkpointing(enabled)

    def draw_mask(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """A ``tube_mask`` for each of ``batch_size`` videos, with the configuration's ratio, on the model's device."""
        config, device = self.config, self.mask_token.device
        return tube_mask(batch_size, config.patches, config.mask_ratio, generator=generator, device=device)

    def forward(self, video: Tensor, mask: Tensor) -> Reconstruction:
        """Predict all patches from the visible ones.

        Args:
            video: (B, T, 3, H, W), RGB, floating in [0, 1] or uint8 in [0, 255], of the encoder's ``image_size``.
            mask: bool (B, N), True where a patch is hidden, in every frame; each video hides the same number, which
                need not be that of the configuration.

        Raises:
            TypeError, ValueError: an argument whose type, dtype, shape or device does not fit, videos that keep
            different numbers of patches or none, or a mask that hides nothing (with ``loss_over="masked"``).
        """
        kept = self._kept("MaskedAutoencoder.forward", video, mask)
        prediction = self._predict(video, kept)
        target = normalise_patches(self._patches(video))[0]
        over = mask if self.config.loss_over == "masked" else None
        # The target of a patch's mean is 0.
        baseline = reconstruction_loss(torch.zeros_like(target), target, over)
        return Reconstruction(prediction, reconstruction_loss(prediction, target, over), baseline)

    @torch.no_grad()
    def reconstruct(
        self, video: Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Pictures:
        """Pictures of what the encoder sees and of what the model makes of it; no gradients.

        Arguments and errors as in ``forward``; ``mask=None`` draws one with ``generator``.
        """
        where = "MaskedAutoencoder.reconstruct"
        self.encoder.check_video(where, "video", video, ndim=5)
        mask = self.draw_mask(video.shape[0], generator) if mask is None else mask
        prediction = self._predict(video, self._kept(where, video, mask))
        patches = self._patches(video)
        _, mean, deviation = normalise_patches(patches)
        hidden = mask[:, None, :, None]
        restored = torch.where(hidden, prediction.to(patches.dtype) * deviation + mean, patches).clamp(
            0.0, 1.0
        )
        encoder = self.config.encoder
        return Pictures(
            join_patches(patches.masked_fill(hidden, 0.5), encoder.grid, encoder.patch_size),
            join_patches(restored, encoder.grid, encoder.patch_size),
        )

    def encoder_state_dict(self) -> dict[str, Tensor]:
        """The encoder's weights, under the names that they have in a ``TRecViT``: all but those of its head."""
        return dict(self.encoder.state_dict())

    def load_into(self, model: TRecViT) -> None:
        """Copy the encoder's weights into a classifier, whose head stays as it is.

        Learned positions are interpolated (bicubic) if the classifier has another ``image_size``.

        Raises:
            TypeError: model is no TRecViT. ValueError: its tensors differ from the encoder's (all are named); nothing
            is copied then.
        """
        where = "MaskedAutoencoder.load_into"
        if not isinstance(model, TRecViT):
            raise TypeError(f"{where}: model must be a TRecViT, got {type(model).__name__}")
        state, ours, theirs = self.encoder_state_dict(), self.config.encoder, model.config
        table = state.get("pos_embedding")
        if table is not None and ours.posemb == theirs.posemb == "learned":
            state["pos_embedding"] = positions.interpolate(table, ours.grid, theirs.grid)
        expected = {n: t.shape for n, t in model.state_dict().items() if not n.startswith(_HEAD)}
        pretrained.compare(where, expected, state)
        model.load_state_dict(state, strict=False)

    def _kept(self, where: str, video: Tensor, mask: Tensor) -> Tensor:
        self.encoder.check_video(where, "video", video, ndim=5)
        shape = (video.shape[0], self.config.patches)
        check_like(where, "mask", mask, shape=shape, dtypes=(torch.bool,), device=video.device)
        if self.config.loss_over == "masked" and not mask.any():
            raise ValueError(f"{where}: mask must hide at least one patch, got one that hides none")
        return kept_patches(mask)

    def _patches(self, video: Tensor) -> Tensor:
        """Pixels (B, T, N, rows * columns * 3) of all patches in [0, 1], in the dtype of the loss."""
        patches = self.encoder.patches(video)
        scaled = patches.to(state_dtype(self.mask_token.dtype))
        return scaled / 255 if video.dtype == torch.uint8 else scaled

    def _predict(self, video: Tensor, kept: Tensor) -> Tensor:
        """Prediction (B, T, N, pixels) of all patches from the patches ``kept`` (B, K)."""
        seen = self.to_decoder(self.encoder.forward_features(video, kept=kept))
        first = self.config.encoder.tokens - self.config.patches  # 1 with a cls token
        batch, frames = video.shape[:2]
        x = self.mask_token.to(seen.dtype).expand(batch, frames, self.config.patches, -1)
        index = kept[:, None, :, None].expand(-1, frames, -1, x.shape[-1])
        x = x.scatter(2, index, seen[:, :, first:]) + self.decoder_positions.to(x.dtype)
        x = torch.cat([seen[:, :, :first], x], dim=2)
        checkpointing = self.activation_checkpointing and self.training
        decoded = encode(self.decoder, self.decoder_norm, x, checkpointing=checkpointing)
        return self.to_pixels(decoded[:, :, first:])
