"""TRecViT (arXiv 2412.14294): time by gated linear recurrences, space by attention, channels by MLPs.

Tokens keep one layout, (B, T, N, C) contiguous, from the first kernel to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from trecvit_kernels._checks import check_device, check_dtype, check_like, check_tensor
from trecvit_kernels.models import positions
from trecvit_kernels.models.config import SIZES, TRecViTConfig
from trecvit_kernels.models.encoder import encode, keep
from trecvit_kernels.models.state import AnyLayerState, StateLike, TRecViTState
from trecvit_kernels.modules import SpatialBlock, _init, temporal
from trecvit_kernels.modules._residual import Residual, add_residual
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.ops._dtypes import REAL, state_dtype


class Block(nn.Module):
    """One layer of TRecViT: ``time`` mixes along each tube of tokens, ``space`` inside each frame."""

    def __init__(self, config: TRecViTConfig) -> None:
        super().__init__()
        self.time: temporal.TemporalModule = temporal.create(
            config.temporal,
            config.width,
            config.lru_width,
            config.num_heads,
            conv1d_width=config.conv1d_width,
            complex_lru=config.complex_lru,
            min_radius=config.min_radius,
            max_radius=config.max_radius,
            gates=config.lru_gates,
            normalizer=config.lru_normalizer,
            skip=config.temporal_skip,
            window=config.temporal_window,
            out_variance=2.0 / config.depth,
        )
        self.space = SpatialBlock(config.width, config.mlp_dim, config.num_heads, dropout=config.dropout)

    def forward(self, x: Tensor, state: AnyLayerState | None = None) -> tuple[Tensor, Tensor, AnyLayerState]:
        """x (B, T, N, width) -> x after time, x after space, state after the last frame."""
        after_time, state = self.time(x, state=state)
        return after_time, self.space(after_time), state

    def mix(self, stream: Residual, state: AnyLayerState | None = None) -> tuple[Residual, AnyLayerState]:
        """``forward`` on a stream whose last addition is still to be made, and so on."""
        stream, state = self.time.mix(stream, state=state)
        return self.space.mix(stream), state


class TRecViT(
    nn.Module,
    ModelHubMixin,
    library_name="trecvit-kernels",
    paper_url="https://arxiv.org/abs/2412.14294",
    license="apache-2.0",
    tags=["video-classification", "trecvit"],
):
    """Causal recurrent video transformer with a classifier on the temporal mean of its pre-logits.

    ``save_pretrained(folder)`` writes model.safetensors and config.json; ``from_pretrained(folder or Hub id,
    **overrides)`` reads them, where overrides are fields of the configuration: another ``image_size``
    interpolates learned positions, another ``num_classes`` starts a new classifier (with a warning).
    """

    pos_embedding: Tensor
    _state_like: StateLike | None = None

    def __init__(self, config: TRecViTConfig) -> None:
        super().__init__()
        if not isinstance(config, TRecViTConfig):
            raise TypeError(f"TRecViT: config must be a TRecViTConfig, got {type(config).__name__}")
        self.config, self.activation_checkpointing = config, False
        width, (down, across) = config.width, config.grid
        # The patch convolution as a matrix product on patches flattened as (row, column, colour).
        self.embedding = Linear(3 * config.patch_size[0] * config.patch_size[1], width)
        if config.posemb == "learned":
            self.pos_embedding = nn.Parameter(torch.empty(1, down * across, width))
        else:
            self.register_buffer("pos_embedding", positions.sincos2d(down, across, width), persistent=False)
        self.cls = nn.Parameter(torch.empty(1, 1, width)) if config.pool == "cls" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.pre_logits = Linear(width, config.head_width) if config.head_width else None
        self.cls_head = Linear(config.feature_width, config.num_classes) if config.num_classes else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Official initialisation of what is outside the blocks; those initialise themselves."""
        reset_linear(self.embedding)
        if self.pre_logits is not None:
            reset_linear(self.pre_logits)
        self.reset_classifier()
        if self.config.posemb == "learned":
            _init.normal_(self.pos_embedding, self.config.width)
        if self.cls is not None:
            nn.init.zeros_(self.cls)

    def reset_classifier(self) -> None:
        """A new classifier for the same number of classes."""
        if self.cls_head is not None:
            reset_linear(self.cls_head)

    def set_activation_checkpointing(self, enabled: bool = True) -> None:
        """In training, keep only each block's input and run the block again in the backward pass."""
        self.activation_checkpointing = enabled

    @property
    def intermediate_names(self) -> tuple[str, ...]:
        """Names that ``forward`` takes in ``intermediates``."""
        blocks = [f"blocks.{i}.{part}" for i in range(self.config.depth) for part in ("time", "space")]
        return (*blocks, "head_input")

    def forward(
        self, video: Tensor, *, return_dict: bool = False, intermediates: Sequence[str] = ()
    ) -> Tensor | dict[str, Tensor]:
        """Classify a video.

        Args:
            video: (B, T, 3, H, W), RGB, floating in [0, 1] or uint8 in [0, 255]; H and W give the patch grid
                of ``config.image_size``. It counts as max(T // frames_per_clip, 1) clips, which must
                divide T.
            return_dict: also return what leads to the logits.
            intermediates: names out of ``intermediate_names`` to add to the dictionary.

        Returns:
            Logits (B, num_classes), averaged over the clips; with ``num_classes=0`` the pre-logits (B,
            head_width). With ``return_dict`` a dictionary, in the official shapes (N counts the cls token,
            which comes first): tokens and encoded (B * clips, T / clips, N, C), batch-major; pre_logits (B,
            clips, head_width), after tanh and temporal mean; logits and probs (B, num_classes).
            ``blocks.i.time`` and ``blocks.i.space`` are shaped like tokens, ``head_input`` (B * clips, T /
            clips, C).

        Raises:
            TypeError: video is not a tensor of a supported dtype. ValueError: its shape or device does not
            fit, or an unknown intermediate.
        """
        self.check_video("TRecViT.forward", "video", video, ndim=5)
        if isinstance(intermediates, str):  # else it would be taken letter by letter
            raise TypeError(f"TRecViT.forward: intermediates must be a list of names, got {intermediates!r}")
        if unknown := [name for name in intermediates if name not in self.intermediate_names]:
            raise ValueError(
                f"TRecViT.forward: intermediates must be among {', '.join(self.intermediate_names)},"
                f" got {', '.join(unknown)}"
            )
        if intermediates and not return_dict:
            raise ValueError("TRecViT.forward: intermediates need return_dict=True, got False")
        kept: dict[str, Tensor] = dict.fromkeys(intermediates, video)  # keys to fill
        clips = self._split_clips("TRecViT.forward", video)
        tokens = self._embed(clips)
        encoded = self._encode(tokens, kept=kept)
        pre_logits = self._frame_features(encoded, kept).mean(dim=1)
        pre_logits = F.dropout(pre_logits, self.config.dropout, self.training)
        pre_logits = pre_logits.unflatten(0, (video.shape[0], video.shape[1] // clips.shape[1]))
        if self.cls_head is None:
            if not return_dict:
                return pre_logits.mean(dim=1)
            return {**kept, "tokens": tokens, "encoded": encoded, "pre_logits": pre_logits}
        logits = self.cls_head(pre_logits)
        if not return_dict:
            return logits.mean(dim=1)
        return {
            **kept,
            "tokens": tokens,
            "encoded": encoded,
            "pre_logits": pre_logits,
            "logits": logits.mean(dim=1),
            "probs": logits.softmax(dim=-1).mean(dim=1),
        }

    def forward_features(self, video: Tensor, *, kept: Tensor | None = None) -> Tensor:
        """Encoder output (B * clips, T / clips, N, C), N counting the cls token, which comes first.

        Args:
            video: as in ``forward``.
            kept: int64 (B, K), the patches of each video that the encoder sees, the same ones in every frame,
                row by row from 0; the others cost nothing and N is K, or K + 1 with a cls token. None: all.

        Raises:
            TypeError, ValueError: as in ``forward``, or ``kept`` does not fit or has no patch of that number.
        """
        where = "TRecViT.forward_features"
        self.check_video(where, "video", video, ndim=5)
        clips = self._split_clips(where, video)
        if kept is not None:
            check_tensor(where, "kept", kept, ndim_at_least=2)
            shape, patches = (video.shape[0], *kept.shape[1:2]), self.config.grid[0] * self.config.grid[1]
            check_like(where, "kept", kept, shape=shape, dtypes=(torch.int64,), device=video.device)
            if not kept.shape[1] or kept.min() < 0 or kept.max() >= patches:
                got = f"{int(kept.min())} to {int(kept.max())}" if kept.numel() else "none"
                raise ValueError(f"{where}: kept must be patches 0 to {patches - 1}, got {got}")
            kept = kept.repeat_interleave(clips.shape[0] // video.shape[0], dim=0)
        return self._encode(self._embed(clips, kept))

    def init_state(self, batch_size: int) -> TRecViTState:
        """The state before the first frame of ``batch_size`` streams, on the model's device."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"TRecViT.init_state: batch_size must be an int, got {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"TRecViT.init_state: batch_size must be at least 1, got {batch_size}")
        return self._start(batch_size)

    def _start(self, batch_size: int) -> TRecViTState:
        layers = tuple(block.time.init_state(batch_size, self.config.tokens) for block in self._blocks())
        weight = self.embedding.weight
        mean = weight.new_zeros((batch_size, self.config.feature_width), dtype=state_dtype(weight.dtype))
        return TRecViTState(self.config, layers, mean)

    def state_like(self) -> StateLike:
        """What a state of this model looks like; kept, as every step looks at it."""
        dtype = self.embedding.weight.dtype
        if self._state_like is None or self._state_like.weights != dtype:
            self._state_like = StateLike.of(self._start(0), dtype)  # no stream: nothing is allocated
        return self._state_like

    def step(self, frame: Tensor, state: TRecViTState) -> tuple[Tensor, TRecViTState]:
        """Take the next frame, or the next few, of a stream.

        Frames one by one or in chunks of any lengths give what the whole clip gives. The stream counts as one
        clip, whatever ``frames_per_clip`` is.

        Args:
            frame: (B, 3, H, W), or a chunk (B, t, 3, H, W); values as in ``forward``.
            state: from ``init_state`` or a former call; it is not changed.

        Returns:
            Logits (B, num_classes) of the clip so far (``num_classes=0``: its pre-logits) and the new state.

        Raises:
            TypeError: frame or state is of a wrong type. ValueError: frame's shape or device does not fit the
            model, or state belongs to another model, batch size, dtype or device.
        """
        _, state = self.step_features(frame, state)
        return self._classify(state.mean), state

    def step_features(self, frame: Tensor, state: TRecViTState) -> tuple[Tensor, TRecViTState]:
        """As ``step``, but returns the encoder output (B, t, N, C) of these frames instead of the logits."""
        check_tensor("TRecViT.step", "frame", frame, ndim_at_least=4)
        self.check_video("TRecViT.step", "frame", frame, ndim=4 if frame.ndim == 4 else 5)
        if not isinstance(state, TRecViTState):
            raise TypeError(f"TRecViT.step: state must be a TRecViTState, got {type(state).__name__}")
        state.check("TRecViT.step", self.state_like(), frame.shape[0], frame.device)
        video = frame.unsqueeze(1) if frame.ndim == 4 else frame
        frames = state.frames + video.shape[1]
        # Without a state the blocks start a sequence: that is the reset of the first frame.
        layers: list[AnyLayerState] = []
        encoded = self._encode(self._embed(video), state.layers if state.frames else None, layers)
        mean = self._running_mean(state.mean, encoded, frames)
        return encoded, TRecViTState(self.config, tuple(layers), mean, frames)

    def advance(
        self, video: Tensor, layers: Sequence[AnyLayerState], mean: Tensor, frames: Tensor
    ) -> tuple[Tensor, tuple[AnyLayerState, ...], Tensor]:
        """``step`` on bare tensors and without checks, for CUDA graphs; never a stream's first frame.

        video (B, t, 3, H, W); layers and mean as in ``TRecViTState``; frames: scalar tensor, their number
        with these. Returns logits, layers, mean.
        """
        new_layers: list[AnyLayerState] = []
        encoded = self._encode(self._embed(video), layers, new_layers)
        mean = self._running_mean(mean, encoded, frames)
        return self._classify(mean), tuple(new_layers), mean

    def _running_mean(self, mean: Tensor, encoded: Tensor, frames: int | Tensor) -> Tensor:
        new = self._frame_features(encoded).to(mean.dtype)
        return mean + (new - mean.unsqueeze(1)).sum(dim=1) / frames

    def _classify(self, mean: Tensor) -> Tensor:
        features = mean.to(self.embedding.weight.dtype)
        return features if self.cls_head is None else self.cls_head(features)

    def patches(self, video: Tensor) -> Tensor:
        """Pixels (B, T, N, rows * columns * 3) of the patches of video (B, T, 3, H, W), in its dtype; no checks."""
        (down, across), (height, width) = self.config.grid, self.config.patch_size
        patches = video[..., : down * height, : across * width]
        patches = patches.unflatten(-1, (across, width)).unflatten(-3, (down, height))
        return patches.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(2, 3)

    def _embed(self, video: Tensor, kept: Tensor | None = None) -> Tensor:
        """Tokens (B, T, N, C) of video (B, T, 3, H, W), or of its patches ``kept`` (B, K) alone.

        Flattened patches times a matrix move no token.
        """
        weight, patches, pos_embedding = self.embedding.weight, self.patches(video), self.pos_embedding
        if kept is not None:
            patches = patches.take_along_dim(kept[:, None, :, None], dim=2)
            pos_embedding = pos_embedding[0][kept].unsqueeze(1)
        patches = (
            patches.to(weight.dtype).div_(255) if video.dtype == torch.uint8 else patches.to(weight.dtype)
        )
        x = add_residual(self.embedding(patches), pos_embedding)
        if self.cls is None:
            return x
        return torch.cat([self.cls.to(x.dtype).expand(*x.shape[:2], 1, -1), x], dim=2)

    def _encode(
        self,
        x: Tensor,
        layers: Sequence[AnyLayerState] | None = None,
        new_layers: list[AnyLayerState] | None = None,
        kept: dict[str, Tensor] | None = None,
    ) -> Tensor:
        checkpointing = self.activation_checkpointing and self.training
        return encode(
            self.blocks, self.encoder_norm, x, layers, new_layers, kept=kept, checkpointing=checkpointing
        )

    def _frame_features(self, encoded: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        """Pre-logits of every frame (B, T, head_width), before the temporal mean."""
        pooled = encoded[:, :, 0] if self.config.pool == "cls" else encoded.mean(dim=2)
        if pooled.requires_grad:
            pooled = pooled.contiguous()  # kept for the backward pass, where a view would keep all tokens
        keep(kept, "head_input", pooled)
        return pooled if self.pre_logits is None else self.pre_logits(pooled).tanh()

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _split_clips(self, where: str, video: Tensor) -> Tensor:
        frames, per_clip = video.shape[1], self.config.frames_per_clip
        clips = 1 if per_clip is None else max(frames // per_clip, 1)
        if frames % clips:
            raise ValueError(
                f"{where}: video must have a number of frames that {clips} clips divide (frames_per_clip ="
                f" {per_clip}), got {frames}"
            )
        return video.reshape(video.shape[0] * clips, frames // clips, *video.shape[2:])

    def check_video(self, where: str, name: str, video: object, ndim: int) -> None:
        """TypeError or ValueError unless this is a video (``ndim=5``) or frame (4) for this model."""
        check_tensor(where, name, video)
        assert isinstance(video, Tensor)
        check_dtype(where, name, video, (*REAL, torch.uint8))
        shape = "(B, T, 3, H, W)" if ndim == 5 else "(B, 3, H, W)"
        if video.ndim != ndim or video.shape[-3] != 3:
            raise ValueError(f"{where}: {name} must have shape {shape}, got {tuple(video.shape)}")
        if ndim == 5 and video.shape[1] < 1:
            raise ValueError(f"{where}: {name} must have at least one frame, got shape {tuple(video.shape)}")
        (down, across), patch = self.config.grid, self.config.patch_size
        if (video.shape[-2] // patch[0], video.shape[-1] // patch[1]) != (down, across):
            raise ValueError(
                f"{where}: {name} must have {down} x {across} patches of {patch} pixels, as images of"
                f" {self.config.image_size}, got shape {tuple(video.shape)}"
            )
        check_device(where, name, video, self.embedding.weight.device)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """As in ``ModelHubMixin``, which would remove config.json before the weights are written."""
        from trecvit_kernels.models import pretrained

        return pretrained.save_pretrained(self, save_directory, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> TRecViT:
        """As in ``ModelHubMixin``, which would read config.json unchecked."""
        from trecvit_kernels.models import pretrained

        return pretrained.load(pretrained_model_name_or_path, **options)


def reset_linear(linear: nn.Linear) -> None:
    """LeCun normal weights, zero bias: official for all that is outside the blocks."""
    _init.truncated_normal_(linear.weight, linear.in_features)
    nn.init.zeros_(linear.bias)


def create_model(
    name: str, num_classes: int = 400, pretrained: str | Path | None = None, **overrides: Any
) -> TRecViT:
    """A TRecViT by name: trecvit_tiny, trecvit_small, trecvit_base, trecvit_large or trecvit_base_k400.

    Args:
        name: the first four are as in the paper (LRU width = width, radius from 0.6), trecvit_base_k400 is as
            released (LRU width doubled, radius from 0.5, clips of 32 frames).
        num_classes: of the classifier; 0 for none.
        pretrained: None for random weights; a folder of ``save_pretrained``, a Hub id, or an official .npz.
        overrides: other fields of ``TRecViTConfig``.

    Raises:
        ValueError: an unknown name or field, a value that does not fit, or weights of another size.
    """
    if name not in SIZES:
        raise ValueError(f"create_model: name must be one of {', '.join(SIZES)}, got {name!r}")
    config = SIZES[name].replace("create_model", num_classes=num_classes, **overrides)
    if pretrained is None:
        return TRecViT(config)
    from trecvit_kernels.models import pretrained as weights

    return weights.load_for(name, config, pretrained, {"num_classes": num_classes, **overrides})
