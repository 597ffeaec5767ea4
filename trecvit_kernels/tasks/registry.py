"""The tasks by the names that configuration files use."""

from __future__ import annotations

from trecvit_kernels.tasks.classification.task import ClassificationTask
from trecvit_kernels.tasks.masked_autoencoding.task import MaskedAutoencodingTask
from trecvit_kernels.tasks.memorisation.task import MemorisationTask
from trecvit_kernels.tasks.point_tracking.task import PointTrackingTask
from trecvit_kernels.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": ClassificationTask,
    "masked_autoencoding": MaskedAutoencodingTask,
    "memorisation": MemorisationTask,
    "point_tracking": PointTrackingTask,
}
