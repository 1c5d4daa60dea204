"""What the heads of a detector say of every location before anything is filtered: scores and boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from yolo_prune.criteria.heads import Reader
from yolo_prune.criteria.predictions import Predictions

_LONGEST = math.log(1000 / 16)  # of a side, in those of its anchor: the library's


def _of_proposals(output: tuple[Sequence[Tensor], Sequence[Tensor]], *, coder: Any) -> Predictions:
    """Return how sure it is of an object at every anchor, all levels together, and the boxes."""
    logits = [level.permute(0, 2, 3, 1).flatten(1) for level in output[0]]
    deltas = [
        level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # type: ignore[no-untyped-call]
        for level in output[1]
    ]
    boxes = torch.cat(deltas, 1)
    return Predictions(torch.cat(logits, 1)[..., None].sigmoid(), boxes, _corners(boxes, coder))


def _of_regions(output: tuple[Tensor, Tensor], *, coder: Any) -> Predictions:
    """Return the probability of every class of every region, and its box: each pair is a location of its own."""
    logits, boxes = output
    scores = logits.softmax(1)[:, 1:]
    boxes = boxes.view(len(boxes), -1, 4)[:, 1:].reshape(1, -1, 4)
    return Predictions(scores.reshape(1, -1, 1), boxes, _corners(boxes, coder))


def _of_masks(logits: Tensor) -> Predictions:
    """Return how likely every pixel is part of what was found, of every class."""
    return _maps(logits.sigmoid())


def _of_key_points(logits: Tensor) -> Predictions:
    """Return where every key point of what was found is likely to be."""
    return _maps(logits.flatten(2).softmax(2))


def _maps(likely: Tensor) -> Predictions:
    """Return every pixel of every map as a location of its own: a map counts by what it covers."""
    scores = likely.reshape(1, -1, 1)
    return Predictions(scores, scores[..., :0])


def _of_locations(output: Mapping[str, Tensor], *, exclusive: bool, coder: Any) -> Predictions:
    logits, boxes = output["cls_logits"], output["bbox_regression"]
    corners = _corners(boxes, coder)
    if exclusive:
        return Predictions(logits.softmax(2)[..., 1:], boxes, corners)
    scores = logits.sigmoid()
    if "bbox_ctrness" in output:  # the score of a box is the geometric mean
        scores = (scores * output["bbox_ctrness"].sigmoid()).clamp(min=1e-12).sqrt()
    return Predictions(scores, boxes, corners)


def _corners(boxes: Tensor, coder: Any) -> Tensor:
    """Return left, top, right and bottom from the middle of a location's anchor, in its sides."""
    weights = getattr(coder, "weights", None)
    if weights is None:  # distances to the four sides
        outwards = boxes.clamp(min=0)
        return torch.cat([-outwards[..., :2], outwards[..., 2:]], -1)
    middle = boxes[..., :2] / boxes.new_tensor(weights[:2])
    half = (boxes[..., 2:] / boxes.new_tensor(weights[2:])).clamp(max=_LONGEST).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


def _two_stages(detector: Any) -> dict[str, Reader]:
    """Return the heads of a region proposal network and of the second stage, masks and key points among them."""
    second = detector.roi_heads
    readers: dict[str, Reader] = {
        "rpn.head": partial(_of_proposals, coder=detector.rpn.box_coder),
        "roi_heads.box_predictor": partial(_of_regions, coder=second.box_coder),
    }
    beside = {"mask_predictor": _of_masks, "keypoint_predictor": _of_key_points}
    kept = {key: read for key, read in beside.items() if getattr(second, key, None) is not None}
    return readers | {f"roi_heads.{key}": read for key, read in kept.items()}


def _one_stage(detector: Any, *, exclusive: bool = False) -> dict[str, Reader]:
    """Return the head; with ``exclusive`` its scores are a softmax over classes and background."""
    return {"head": partial(_of_locations, exclusive=exclusive, coder=detector.box_coder)}


_LIBRARY = "torchvision.models.detection"
HEADS: dict[str, Callable[[Any], dict[str, Reader]]] = {
    f"{_LIBRARY}.faster_rcnn.FasterRCNN": _two_stages,
    f"{_LIBRARY}.retinanet.RetinaNet": _one_stage,
    f"{_LIBRARY}.fcos.FCOS": _one_stage,
    f"{_LIBRARY}.ssd.SSD": partial(_one_stage, exclusive=True),
}
"""Where the class of a detector is defined -> names of its heads, and what to make of what each returns."""
