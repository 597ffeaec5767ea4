"""Sizes of a masked autoencoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from trecvit_kernels.models import SIZES, TRecViTConfig
from trecvit_kernels.tasks.masked_autoencoding.masks import number_kept

LOSS_OVER = ("masked", "all")


@dataclass(frozen=True)
class MaskedAutoencoderConfig:
    """Sizes and choices of a ``MaskedAutoencoder``; the defaults are TRecViT-B with a decoder half as wide.

    Mask ratio and loss are the paper's (arXiv 2412.14294). The decoder's width, depth and heads are those of VideoMAE
    (arXiv 2203.12602) for an encoder of this size.

    Attributes:
        encoder: a TRecViT; its head, ``frames_per_clip`` and number of classes are left out.
        decoder_width: channels of the decoder, a multiple of 4 and of decoder_heads, at least 8.
        decoder_depth: number of blocks, of the encoder's kind, MLPs 4 * decoder_width wide, LRU as wide as the decoder.
        decoder_heads: attention heads, and blocks of the LRU's gates.
        mask_ratio: hidden share of the patches, between 0 and 1.
        loss_over: the error is averaged over the "masked" patches or over "all".

    Raises:
        TypeError: a field of the wrong type. ValueError: a value that does not fit.
    """

    encoder: TRecViTConfig = field(default_factory=lambda: SIZES["trecvit_base"])
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 6
    mask_ratio: float = 0.9
    loss_over: str = "masked"

    def __post_init__(self) -> None:
        where = "MaskedAutoencoderConfig"
        if not isinstance(self.encoder, TRecViTConfig):
            raise TypeError(f"{where}: encoder must be a TRecViTConfig, got {type(self.encoder).__name__}")
        encoder = self.encoder.replace(head_width=0, num_classes=0, frames_per_clip=None)
        object.__setattr__(self, "encoder", encoder)
        for name, at_least in (("decoder_width", 8), ("decoder_depth", 1), ("decoder_heads", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{where}: {name} must be an int, got {type(value).__name__}")
            if value < at_least:
                raise ValueError(f"{where}: {name} must be at least {at_least}, got {value}")
        heads = self.decoder_heads
        for divisor, what in ((4, "4"), (heads, f"decoder_heads = {heads}")):
            if self.decoder_width % divisor:
                raise ValueError(
                    f"{where}: decoder_width must be a multiple of {what}, got {self.decoder_width}"
                )
        if self.loss_over not in LOSS_OVER:
            raise ValueError(
                f"{where}: loss_over must be one of {', '.join(LOSS_OVER)}, got {self.loss_over!r}"
            )
        number_kept(where, self.patches, self.mask_ratio)
        try:
            _ = self.decoder
        except ValueError as error:  # the encoder's kind of block asks for more
            raise ValueError(
                f"{where}: decoder_width and decoder_heads must make a block of the encoder's kind, got"
                f" {self.decoder_width} and {heads} ({error})"
            ) from error

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return self.encoder.grid[0] * self.encoder.grid[1]

    @property
    def kept(self) -> int:
        """Patches of a frame that the encoder sees: round((1 - mask_ratio) * patches)."""
        return number_kept("MaskedAutoencoderConfig", self.patches, self.mask_ratio)

    @property
    def decoder(self) -> TRecViTConfig:
        """The decoder's blocks: the encoder's, of another size."""
        return self.encoder.replace(
            width=self.decoder_width,
            depth=self.decoder_depth,
            num_heads=self.decoder_heads,
            mlp_dim=4 * self.decoder_width,
            lru_width=self.decoder_width,
            posemb="sincos2d",
            dropout=0.0,
        )

    def replace(self, **fields: object) -> MaskedAutoencoderConfig:
        """A copy with other values; TypeError names unknown fields."""
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]
