"""A point tracker: query tokens beside the frame's patches through TRecViT blocks, as in TAPNext (arXiv 2504.05579).

Tokens keep one layout, (B, T, N, C): patches row by row, then queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trecvit_kernels._checks import check_device, check_dtype, check_tensor
from trecvit_kernels.models.encoder import encode
from trecvit_kernels.models.state import LayerState
from trecvit_kernels.modules import _init
from trecvit_kernels.modules._residual import add_residual
from trecvit_kernels.modules.linear import Linear
from trecvit_kernels.ops._dtypes import REAL
from trecvit_kernels.tasks.point_tracking.blocks import TrackerBlock
from trecvit_kernels.tasks.point_tracking.config import PointTrackerConfig
from trecvit_kernels.tasks.point_tracking.queries import check_query_points, query_tokens
from trecvit_kernels.tasks.point_tracking.readout import BINS, PointTracks, expected_coordinates
from trecvit_kernels.tasks.point_tracking.state import PointTrackerState


class PointTracker(nn.Module):
    """Tracks any points of a video, online or offline: frame by frame, in chunks or at once it gives the same numbers.

    The blocks are TRecViT's with a gated MLP between the recurrence and the ViT block. The numbers are those of
    the official PyTorch port of TAPNext (GELU: tanh in recurrent block and gated MLP, erf in ViT block and heads).

    Query points are (t, y, x): the frame, and pixels of ``config.image_size`` whatever the size of the video, with
    pixel centres at +0.5. Before its frame a query is not yet known to the model; one whose t is negative, or no
    whole number, is never shown to it.

    Raises:
        TypeError: config is no PointTrackerConfig.
    """

    def __init__(self, config: PointTrackerConfig) -> None:
        super().__init__()
        if not isinstance(config, PointTrackerConfig):
            raise TypeError(f"PointTracker: config must be a PointTrackerConfig, got {type(config).__name__}")
        self.config = config
        self.activation_checkpointing = False
        width, (down, across), patch = config.width, config.grid, config.patch_size
        # The patch convolution as a matrix product on patches flattened as (row, column, colour).
        self.embedding = Linear(3 * patch[0] * patch[1], width)
        self.pos_embedding = nn.Parameter(torch.empty(1, down * across, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, 1, width))
        self.unknown_token = nn.Parameter(torch.empty(1, 1, width))
        self.point_query_token = nn.Parameter(torch.empty(1, 1, 1, width))
        self.blocks = nn.ModuleList(TrackerBlock(config) for _ in range(config.depth))
        self.encoder_norm = nn.LayerNorm(width)  # eps 1e-5 here and in the heads, as in the official port
        self.coordinate_head = _head(width, config.head_width, 2 * BINS)
        self.visible_head = _head(width, config.head_width, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal layers, positions and tokens N(0, 1 / width); the blocks initialise themselves."""
        for linear in (self.embedding, *self.coordinate_head, *self.visible_head):
            if isinstance(linear, nn.Linear):
                _init.truncated_normal_(linear.weight, linear.in_features)
                nn.init.zeros_(linear.bias)
        for token in (self.pos_embedding, self.mask_token, self.unknown_token, self.point_query_token):
            _init.normal_(token, self.config.width)

    def set_activation_checkpointing(self, enabled: bool = True) -> None:
        """In training, keep only each block's input and run the block again in the backward pass."""
        self.activation_checkpointing = enabled

    def forward(self, video: Tensor, query_points: Tensor) -> PointTracks:
        """Track points through a whole video.

        Args:
            video: (B, T, 3, H, W), RGB, floating in [0, 1] or uint8 in [0, 255]; H and W are multiples of the patch
                size and need not be ``config.image_size``: the learned positions are interpolated (see
                ``position_table``). The model computes with 2 * video - 1, taken in float32 at least; a video that is
                already in [-1, 1], such as the official code takes, goes in as ``(video.double() + 1) / 2``, which
                loses no bit.
            query_points: (B, Q, 3), (t, y, x) as above, float32 or float64.

        Returns:
            Tracks, their logits and visibility, of every query in every frame.

        Raises:
            TypeError, ValueError: an argument whose type, dtype, shape or device does not fit, or query points that are
            not finite.
        """
        where = "PointTracker.forward"
        self._check_video(where, "video", video, 5)
        check_query_points(where, query_points, video.device, video.shape[0])
        return self._read(self._encode(self._tokens(video, query_points, 0)), query_points.shape[1])

    def forward_features(self, video: Tensor, query_points: Tensor) -> dict[str, Tensor]:
        """Everything between the layers, for comparison with other code.

        Arguments and errors as in ``forward``. Every value is (B, T, N, C): ``tokens``, ``blocks.i.time`` (after
        recurrent block and gated MLP), ``blocks.i.space``, ``encoded`` (after the last norm).
        """
        where = "PointTracker.forward_features"
        self._check_video(where, "video", video, 5)
        check_query_points(where, query_points, video.device, video.shape[0])
        tokens = self._tokens(video, query_points, 0)
        between = [f"blocks.{i}.{part}" for i in range(len(self.blocks)) for part in ("time", "space")]
        kept = {"tokens": tokens, **dict.fromkeys(between, tokens)}  # keys to fill
        kept["encoded"] = self._encode(tokens, kept=kept)
        return kept

    def init_state(
        self, query_points: Tensor, video_size: tuple[int, int] | None = None
    ) -> PointTrackerState:
        """The state before the first frame of a stream.

        Args:
            query_points: (B, Q, 3), on the model's device; t counts from the stream's first frame and may lie ahead.
            video_size: (height, width) of the frames to come; None means ``config.image_size``.

        Raises:
            TypeError, ValueError: as in ``forward``.
        """
        where = "PointTracker.init_state"
        weight, config = self.embedding.weight, self.config
        check_query_points(where, query_points, weight.device, None)
        if video_size is not None and (not isinstance(video_size, (tuple, list)) or len(video_size) != 2):
            raise TypeError(f"{where}: video_size must be (height, width), got {video_size!r}")
        grid = self._grid(where, "video_size", config.image_size if video_size is None else video_size)
        batch, queries, _ = query_points.shape
        if batch < 1:
            raise ValueError(f"{where}: query_points must have a batch of at least 1, got {batch}")
        tokens = grid[0] * grid[1] + queries
        layers = tuple(block.time.init_state(batch, tokens) for block in self._blocks())
        return PointTrackerState(config, layers, query_points, grid)

    def step(
        self, frame: Tensor, state: PointTrackerState, query_points: Tensor | None = None
    ) -> tuple[PointTracks, PointTrackerState]:
        """Take the next frame, or the next few, of a stream.

        Args:
            frame: (B, 3, H, W), or a chunk (B, t, 3, H, W); values as in ``forward``.
            state: from ``init_state`` or a former call; it is not changed.
            query_points: (B, Q, 3), as many as the state's, in place of the state's in these frames only, t counted
                from the stream's first frame. The new state keeps its own (as in the official code).

        Returns:
            Tracks in these frames, T = 1 or t, and the new state.

        Raises:
            TypeError, ValueError: as in ``forward``; or state belongs to another model, batch size, size of frames or
            device.
        """
        where = "PointTracker.step"
        check_tensor(where, "frame", frame, ndim_at_least=4)
        self._check_video(where, "frame", frame, 4 if frame.ndim == 4 else 5)
        if not isinstance(state, PointTrackerState):
            raise TypeError(f"{where}: state must be a PointTrackerState, got {type(state).__name__}")
        video = frame.unsqueeze(1) if frame.ndim == 4 else frame
        batch, frames = video.shape[:2]
        grid = self._grid(where, "frame", video.shape[-2:])
        state.check(where, self.config, batch, grid, self.embedding.weight.device)
        queries = state.query_points.shape[1]
        if query_points is None:
            query_points = state.query_points
        else:
            check_query_points(where, query_points, video.device, batch)
            if query_points.shape[1] != queries:
                raise ValueError(
                    f"{where}: query_points must be {queries}, as many as the state's, got"
                    f" {query_points.shape[1]}"
                )
        # Without a state the blocks start a sequence: that is the reset of the first frame.
        layers: list[LayerState] = []
        tokens = self._tokens(video, query_points, state.step)
        encoded = self._encode(tokens, state.layers if state.step else None, layers)
        new_state = PointTrackerState(
            self.config, tuple(layers), state.query_points, grid, state.step + frames
        )
        return self._read(encoded, queries), new_state

    def position_table(self, grid: tuple[int, int]) -> Tensor:
        """Learned positions (1, down * across, C) for frames of ``grid`` = (down, across) patches.

        A grid with as many patches as the learned one takes its rows in order, whatever its shape (as the official
        code does); others are interpolated from ``config.grid``: bicubic, corners not aligned, no anti-aliasing.
        (The official code takes the learned grid for a square one, whatever the image it was made for.)
        """
        table = self.pos_embedding
        if grid[0] * grid[1] == table.shape[1]:
            return table
        image = table.unflatten(1, self.config.grid).permute(0, 3, 1, 2)
        if image.dtype in (torch.bfloat16, torch.float16):
            image = image.float()
        image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
        return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)

    def _tokens(self, video: Tensor, query_points: Tensor, first_frame: int) -> Tensor:
        """Patches and queries (B, T, N, C) of video (B, T, 3, H, W); flattened patches times a matrix move no token."""
        (height, width), weight = self.config.patch_size, self.embedding.weight
        patches = video.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))
        grid = (patches.shape[-4], patches.shape[-2])
        patches = patches.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(2, 3)
        patches = patches.to(torch.promote_types(video.dtype, torch.float32))
        if video.dtype == torch.uint8:
            patches = patches / 255
        patches = patches * 2 - 1
        image = add_residual(self.embedding(patches.to(weight.dtype)), self.position_table(grid))
        points = query_tokens(
            query_points,
            first_frame,
            video.shape[1],
            self.config.image_size,
            query=self.point_query_token,
            mask=self.mask_token,
            unknown=self.unknown_token,
        )
        return torch.cat([image, points.to(image.dtype)], dim=2)

    def _encode(
        self,
        x: Tensor,
        layers: Sequence[LayerState] | None = None,
        new_layers: list[LayerState] | None = None,
        kept: dict[str, Tensor] | None = None,
    ) -> Tensor:
        checkpointing = self.activation_checkpointing and self.training
        return encode(
            self.blocks, self.encoder_norm, x, layers, new_layers, kept=kept, checkpointing=checkpointing
        )

    def _read(self, encoded: Tensor, queries: int) -> PointTracks:
        """Both heads on the last ``queries`` tokens of every frame."""
        points = encoded[:, :, encoded.shape[2] - queries :].contiguous()
        track_logits = self.coordinate_head(points)
        return PointTracks(expected_coordinates(track_logits), track_logits, self.visible_head(points))

    def _blocks(self) -> list[TrackerBlock]:
        return [block for block in self.blocks if isinstance(block, TrackerBlock)]

    def _check_video(self, where: str, name: str, video: object, ndim: int) -> None:
        """TypeError or ValueError unless this is a video (``ndim=5``) or frame (4) for this model."""
        check_tensor(where, name, video)
        assert isinstance(video, Tensor)
        check_dtype(where, name, video, (*REAL, torch.uint8))
        shape = "(B, T, 3, H, W)" if ndim == 5 else "(B, 3, H, W)"
        if video.ndim != ndim or video.shape[-3] != 3:
            raise ValueError(f"{where}: {name} must have shape {shape}, got {tuple(video.shape)}")
        if min(video.shape[:-3]) < 1:
            raise ValueError(
                f"{where}: {name} must have at least one frame and video, got {tuple(video.shape)}"
            )
        self._grid(where, name, video.shape[-2:])
        check_device(where, name, video, self.embedding.weight.device)

    def _grid(self, where: str, name: str, size: Sequence[int]) -> tuple[int, int]:
        """Patches (down, across) of frames of this size."""
        patch, (height, width) = self.config.patch_size, size
        if min(height, width) < 1 or height % patch[0] or width % patch[1]:
            raise ValueError(
                f"{where}: {name} must have height and width in whole patches of {patch} pixels, got"
                f" {height} x {width}"
            )
        return height // patch[0], width // patch[1]


def _head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Two hidden layers with LayerNorm (eps 1e-5) and erf GELU; the indices are those of the official heads."""
    return nn.Sequential(
        Linear(width, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        Linear(hidden, out),
    )
