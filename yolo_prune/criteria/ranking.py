"""Every criterion that gives each channel a score, by name: from weights alone, or on images."""

from __future__ import annotations

from torch import nn

from yolo_prune.cost import FloatArray
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.felt import IMAGE_SCORES
from yolo_prune.criteria.torch_pruning import check_foreign, is_foreign, score_by_foreign
from yolo_prune.criteria.weights import find_criterion
from yolo_prune.graph.groups import ChannelGraph


def check_scores(name: str, *, images: bool) -> None:
    """Refuse a criterion that is unknown, or that measures on images where there are none.

    Args:
        name: Of the criterion; no ``reconstruction``, which gives no scores.
        images: Whether there are images.

    Raises:
        ConfigError: It cannot rank anything here.
        MissingRuntimeError: It is one of Torch-Pruning's, which is not installed.
    """
    if is_foreign(name):
        check_foreign(name, images=images)
    elif name not in IMAGE_SCORES or not images:
        find_criterion(name)


def check_criterion(name: str) -> None:
    """Refuse what ``criterion=`` of a run on images names before anything starts: all but ``auto`` may be unknown.

    Raises:
        ConfigError: There is no such criterion.
        MissingRuntimeError: It is one of Torch-Pruning's, which is not installed.
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
    check_scores(name, images=bool(calibration.batches))
    if is_foreign(name):
        return score_by_foreign(name, module, graph, calibration, seed)
    if name in IMAGE_SCORES:
        return IMAGE_SCORES[name](module, graph, calibration)
    return find_criterion(name)(module, graph, seed)
