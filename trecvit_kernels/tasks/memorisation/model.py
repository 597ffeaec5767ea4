"""A TRecViT that draws a frame of the past from the tokens of the present one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trecvit_kernels.models import TRecViT, TRecViTConfig, TRecViTState
from trecvit_kernels.modules import SpatialBlock, _init
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.tasks.masked_autoencoding.pixels import join_patches


class Memoriser(nn.Module):
    """Video -> one frame of it, read from the encoder's output at the last frame.

    Nothing but the temporal modules' state connects that output with earlier frames, so what the drawn frame has of
    them the state has kept (paper, arXiv 2412.14294, section on memorisation; its decoder is not described).

    Args:
        config: of the encoder; its head, classifier and ``frames_per_clip`` are left out. Every ``temporal`` will do.
        decoder_depth: ViT blocks between the last frame's tokens and the linear layer to pixels, of the encoder's size.

    Raises:
        TypeError: config is no TRecViTConfig, or decoder_depth no int. ValueError: decoder_depth below 0.
    """

    def __init__(self, config: TRecViTConfig, decoder_depth: int = 0) -> None:
        super().__init__()
        if not isinstance(config, TRecViTConfig):
            raise TypeError(f"Memoriser: config must be a TRecViTConfig, got {type(config).__name__}")
        if isinstance(decoder_depth, bool) or not isinstance(decoder_depth, int):
            raise TypeError(f"Memoriser: decoder_depth must be an int, got {type(decoder_depth).__name__}")
        if decoder_depth < 0:
            raise ValueError(f"Memoriser: decoder_depth must be at least 0, got {decoder_depth}")
        self.encoder = TRecViT(config.replace(head_width=0, num_classes=0, frames_per_clip=None))
        config = self.encoder.config
        self.decoder = nn.Sequential(
            *(
                SpatialBlock(config.width, config.mlp_dim, config.num_heads, dropout=config.dropout)
                for _ in range(decoder_depth)
            )
        )
        if decoder_depth:
            self.decoder.append(nn.LayerNorm(config.width, eps=1e-6))
        rows, columns = config.patch_size
        self.to_pixels = Linear(config.width, 3 * rows * columns)
        _init.truncated_normal_(self.to_pixels.weight, config.width)
        nn.init.constant_(self.to_pixels.bias, 0.5)  # the middle of [0, 1]

    def set_activation_checkpointing(self, enabled: bool = True) -> None:
        """As in ``TRecViT``."""
        self.encoder.set_activation_checkpointing(enabled)

    def forward(self, video: Tensor) -> Tensor:
        """The frame that the model was trained to remember, from a video of any length.

        Args:
            video: (B, T, 3, H, W), as in ``TRecViT.forward``.

        Returns:
            (B, 3, H, W), values about [0, 1], not clamped; without the pixels that fill no patch.

        Raises:
            TypeError, ValueError: a video that does not fit the encoder.
        """
        return self._draw(self.encoder.forward_features(video)[:, -1])

    def init_state(self, batch_size: int) -> TRecViTState:
        """The state before the first frame."""
        return self.encoder.init_state(batch_size)

    def step(self, frame: Tensor, state: TRecViTState) -> tuple[Tensor, TRecViTState]:
        """Take the next frame (B, 3, H, W), or chunk (B, t, 3, H, W): what ``forward`` gives for the video so far.

        Arguments and errors as in ``TRecViT.step``.
        """
        encoded, state = self.encoder.step_features(frame, state)
        return self._draw(encoded[:, -1]), state

    def pixels(self, frame: Tensor) -> Tensor:
        """A frame (B, 3, H, W), floating or uint8, as ``forward`` should give it: float, in [0, 1], whole patches."""
        (down, across), (rows, columns) = self.encoder.config.grid, self.encoder.config.patch_size
        frame = frame[..., : down * rows, : across * columns]
        if frame.dtype == torch.uint8:
            return frame.float() / 255
        return frame if frame.dtype == torch.float64 else frame.float()

    def _draw(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, width) of the last frame -> (B, 3, H, W)."""
        config = self.encoder.config
        patches = self.to_pixels(self.decoder(tokens)[:, tokens.shape[1] - config.grid[0] * config.grid[1] :])
        return join_patches(patches.unsqueeze(1), config.grid, config.patch_size)[:, 0]
