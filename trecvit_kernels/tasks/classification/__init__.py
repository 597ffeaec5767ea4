"""Classification: cross-entropy with label smoothing, several views of a video, a start from an image ViT."""

from trecvit_kernels.tasks.classification.metrics import check_labels, top_k_accuracy, top_k_correct
from trecvit_kernels.tasks.classification.task import ClassificationTask
from trecvit_kernels.tasks.classification.views import evaluate_views, multi_view, predict_views
from trecvit_kernels.tasks.classification.vit import VitInitialisation, initialise_from_vit

__all__ = [
    "ClassificationTask",
    "VitInitialisation",
    "check_labels",
    "evaluate_views",
    "initialise_from_vit",
    "multi_view",
    "predict_views",
    "top_k_accuracy",
    "top_k_correct",
]
