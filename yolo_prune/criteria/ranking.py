"""Every criterion that gives each channel a score, by name: from weights alone, or on images."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from yolo_prune.cost import FloatArray
from yolo_prune.criteria import LABELLED, RECONSTRUCTION
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.felt import score_by_activation, score_by_fisher, score_by_taylor
from yolo_prune.criteria.svm import check_svm, score_by_svm
from yolo_prune.criteria.torch_pruning import check_foreign, is_foreign, score_by_foreign
from yolo_prune.criteria.weights import find_criterion
from yolo_prune.graph.groups import ChannelGraph

ImageCriterion = Callable[[nn.Module, ChannelGraph, Calibration], FloatArray]

IMAGE_SCORES: dict[str, ImageCriterion] = {
    "taylor": score_by_taylor,
    "fisher": score_by_fisher,
    "activation": score_by_activation,
    "svm": score_by_svm,
}


def check_scores(name: str, *, images: bool, labels: bool = True) -> None:
    """Refuse a criterion that is unknown, or that measures on images where there are none.

    Args:
        name: Of the criterion; no ``reconstruction``, which gives no scores.
        images: Whether there are images.
        labels: Whether it is known what is in them.

    Raises:
        ConfigError: It cannot rank anything here.
        MissingRuntimeError: What it needs is not installed.
    """
    if is_foreign(name):
        check_foreign(name, images=images)
    elif name in LABELLED and images:
        check_svm(labels=labels)
    elif name not in IMAGE_SCORES or not images:
        find_criterion(name)


def check_criterion(name: str) -> None:
    """Refuse what ``criterion=`` of a run on images names before anything starts: all but ``auto`` may be unknown.

    Raises:
        ConfigError: There is no such criterion.
        MissingRuntimeError: What it needs is not installed.
    """
    if name not in ("auto", RECONSTRUCTION):
        check_scores(name, images=True)


def score_channels(
    name: str, module: nn.Module, graph: ChannelGraph, calibration: Calibration, seed: int
) -> FloatArray:
    """Return what each channel is worth, larger is worth more, shape (channels,).

    Args:
        name: Of the criterion.
        module: The traced module; left as it was.
        graph: Its channels.
        calibration: Images, for the criteria that measure on them.
        seed: Of ``random``.

    Raises:
        ConfigError: The criterion is unknown, or there are no images to measure on.
        DataError: The model makes no numbers of the images.
    """
    check_scores(name, images=bool(calibration.batches), labels=calibration.labels is not None)
    if is_foreign(name):
        return score_by_foreign(name, module, graph, calibration, seed)
    if name in IMAGE_SCORES:
        return IMAGE_SCORES[name](module, graph, calibration)
    return find_criterion(name)(module, graph, seed)
