"""From the heads' logits to coordinates, visibility and certainty."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trecvit_kernels._checks import check_dtype, check_shape, check_tensor
from trecvit_kernels.ops._dtypes import REAL, state_dtype

BINS = 256  # of each axis, one pixel wide: coordinates live in a raster of 256 x 256
SHARPNESS = 0.5  # factor on the logits (the official code calls it a temperature)
REACH = 20  # bins on either side of the best one that count
CERTAINTY_FORMS = ("exact", "published")


class PointTracks(NamedTuple):
    """What a tracker says about Q points in T frames.

    Attributes:
        tracks: (B, T, Q, 2), (y, x) in the raster of 256 x 256 pixels that the whole image is mapped to, pixel centres
            at +0.5, from 0.5 to 255.5; float32 (float64 for a float64 model).
        track_logits: (B, T, Q, 512), 256 bins of y, then 256 of x.
        visible_logits: (B, T, Q, 1).
    """

    tracks: Tensor
    track_logits: Tensor
    visible_logits: Tensor

    @property
    def visible(self) -> Tensor:
        """bool (B, T, Q): logit above 0, that is a probability above one half."""
        return self.visible_logits.squeeze(-1) > 0

    def in_pixels(self, height: int, width: int) -> Tensor:
        """Tracks (B, T, Q, 2), (y, x) in pixels of an image of this size."""
        return self.tracks * self.tracks.new_tensor([height / BINS, width / BINS])

    def tapvid(self) -> tuple[Tensor, Tensor]:
        """Points (B, Q, T, 2), (x, y) in 256 x 256, and occluded, bool (B, Q, T): what TAP-Vid's metrics take."""
        return self.tracks.flip(-1).transpose(1, 2), ~self.visible.transpose(1, 2)


def expected_coordinates(track_logits: Tensor) -> Tensor:
    """Logits (..., 512) -> coordinates (..., 2): per axis the mean bin centre around the best bin.

    Per axis softmax of half the logits over the bins at most 20 away from the best one, expected index, plus 0.5.
    Gradients reach the logits of these bins; the choice of the best bin has none.
    """
    bins = track_logits.to(state_dtype(track_logits.dtype)).unflatten(-1, (2, BINS))
    index = torch.arange(BINS, device=bins.device)
    near = (index - bins.argmax(dim=-1, keepdim=True)).abs() <= REACH
    weights = (SHARPNESS * bins).masked_fill(~near, -math.inf).softmax(dim=-1)
    return (weights * index).sum(dim=-1) + 0.5


def certainty(tracks: Tensor, track_logits: Tensor, radius: int = 8, *, form: str = "exact") -> Tensor:
    """How much of the heads' probability lies near the prediction.

    The sum of the product of the two axes' softmaxes over all pairs of bins whose centres are at most ``radius`` pixels
    from the prediction (TAPNext's ``tracker_certainty``). A point may be called visible where
    ``sigmoid(visible_logits) * certainty > 0.5``.

    Args:
        tracks: (..., 2), (y, x) in 256 x 256. track_logits: (..., 512). Floating.
        radius: in pixels, 1 to 127.
        form: ``"exact"`` is the sentence above. ``"published"`` is what the official PyTorch code computes: its grid of
            bin centres is transposed against the probabilities, so that the pair (i-th row, j-th column of the window)
            is tested at the j-th row and i-th column.

    Returns:
        (..., 1), float32 (float64 for float64), from 0 to 1.

    Raises:
        TypeError, ValueError: an argument whose type, dtype or shape does not fit, or an unknown form.
    """
    where = "certainty"
    check_tensor(where, "tracks", tracks, ndim_at_least=1)
    check_tensor(where, "track_logits", track_logits)
    for name, tensor in (("tracks", tracks), ("track_logits", track_logits)):
        check_dtype(where, name, tensor, REAL)
    check_shape(where, "tracks", tracks, (*tracks.shape[:-1], 2))
    check_shape(where, "track_logits", track_logits, (*tracks.shape[:-1], 2 * BINS))
    if isinstance(radius, bool) or not isinstance(radius, int):
        raise TypeError(f"{where}: radius must be an int, got {type(radius).__name__}")
    if not 1 <= radius < BINS // 2:
        raise ValueError(f"{where}: radius must be between 1 and {BINS // 2 - 1}, got {radius}")
    if form not in CERTAINTY_FORMS:
        raise ValueError(f"{where}: form must be one of {', '.join(CERTAINTY_FORMS)}, got {form!r}")
    dtype = state_dtype(track_logits.dtype)
    tracks = tracks.to(dtype)
    softmax = track_logits.to(dtype).unflatten(-1, (2, BINS)).softmax(dim=-1)
    # A window of 2 r + 1 bins holds every bin that can be inside; at the upper border it is moved inward.
    start = (tracks - radius - 0.5).floor().clamp(0, BINS - (2 * radius + 1)).long()
    index = start.unsqueeze(-1) + torch.arange(2 * radius + 1, device=tracks.device)  # (..., 2, 2 r + 1)
    near_y, near_x = softmax.gather(-1, index).unbind(-2)
    squared_y, squared_x = (index + 0.5 - tracks.unsqueeze(-1)).square().unbind(-2)
    if form == "published":
        squared_y, squared_x = squared_x, squared_y
    inside = squared_y.unsqueeze(-1) + squared_x.unsqueeze(-2) <= radius**2 + 1e-8
    return (near_y.unsqueeze(-1) * near_x.unsqueeze(-2) * inside).sum(dim=(-2, -1)).unsqueeze(-1)
