"""What the heads of a detector say of every location before anything is filtered: scores and boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.criteria.calibration import call
from yolo_prune.criteria.distance import Predictions, prediction_distance
from yolo_prune.criteria.heads import HeadForward, Reader


def heads_of(module: nn.Module) -> HeadForward:
    """Return what to watch of a detector, and how far apart two are: by class scores, and boxes where things are.

    Args:
        module: A detector that a name builds, of one stage or two.
    """
    return HeadForward(call, _readers(module), prediction_distance)


def _readers(module: nn.Module) -> dict[str, Reader]:
    """Return names of heads, and what to make of what each returns."""
    detector: Any = module
    if hasattr(module, "roi_heads"):
        return {"rpn.head": _of_proposals, "roi_heads.box_predictor": _of_regions}
    exclusive = type(detector.head).__name__.startswith("SSD")  # a softmax over classes and background
    return {"head": partial(_of_locations, exclusive=exclusive)}


def _of_proposals(output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> Predictions:
    """Return how sure it is of an object at every anchor, all levels together, and the boxes."""
    logits = [level.permute(0, 2, 3, 1).flatten(1) for level in output[0]]
    boxes = [
        deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # type: ignore[no-untyped-call]
        for deltas in output[1]
    ]
    return Predictions(torch.cat(logits, 1)[..., None].sigmoid(), torch.cat(boxes, 1))


def _of_regions(output: tuple[Tensor, Tensor]) -> Predictions:
    """Return the probability of every class of every region, and its box: each pair is a location of its own."""
    logits, boxes = output
    scores = logits.softmax(1)[:, 1:]
    return Predictions(scores.reshape(1, -1, 1), boxes.view(len(boxes), -1, 4)[:, 1:].reshape(1, -1, 4))


def _of_locations(output: Mapping[str, Tensor], *, exclusive: bool) -> Predictions:
    logits = output["cls_logits"]
    if exclusive:
        return Predictions(logits.softmax(2)[..., 1:], output["bbox_regression"])
    scores = logits.sigmoid()
    if "bbox_ctrness" in output:  # the score of a box is the geometric mean
        scores = (scores * output["bbox_ctrness"].sigmoid()).clamp(min=1e-12).sqrt()
    return Predictions(scores, output["bbox_regression"])
