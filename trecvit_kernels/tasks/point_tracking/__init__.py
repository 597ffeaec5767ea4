"""Point tracking in the manner of TAPNext: model, official checkpoints, losses, TAP-Vid's metrics."""

from trecvit_kernels.tasks.point_tracking.checkpoint import (
    load_tapnext_checkpoint,
    save_tapnext_checkpoint,
    tapnext_state_dict,
)
from trecvit_kernels.tasks.point_tracking.config import PointTrackerConfig
from trecvit_kernels.tasks.point_tracking.losses import LossWeights, TrackingLoss, tracking_loss
from trecvit_kernels.tasks.point_tracking.metrics import (
    TapVidMetrics,
    evaluation_mask,
    tapvid_metrics,
    tapvid_queries,
)
from trecvit_kernels.tasks.point_tracking.model import PointTracker
from trecvit_kernels.tasks.point_tracking.readout import PointTracks, certainty
from trecvit_kernels.tasks.point_tracking.state import PointTrackerState

__all__ = [
    "LossWeights",
    "PointTracker",
    "PointTrackerConfig",
    "PointTrackerState",
    "PointTracks",
    "TapVidMetrics",
    "TrackingLoss",
    "certainty",
    "evaluation_mask",
    "load_tapnext_checkpoint",
    "save_tapnext_checkpoint",
    "tapnext_state_dict",
    "tapvid_metrics",
    "tapvid_queries",
    "tracking_loss",
]
