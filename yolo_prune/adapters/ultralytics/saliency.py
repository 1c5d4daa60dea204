"""What a model's task feels: a random projection of its decoded predictions, no labels needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from yolo_prune.criteria.projection import BOX_WEIGHT, balanced_signs, signed_sum
from yolo_prune.imgsz import ImageSize, height_width

TaskLoss = Callable[[Any], Tensor]
_MASKS = 16  # locations of an image whose masks count: the likeliest to be an object, and as many others


@dataclass(frozen=True)
class Predictions:
    """One head's decoded predictions at A locations.

    Attributes:
        scores: Class probabilities, shape (B, classes, A).
        boxes: Coordinates in any unit, shape (B, 4, A).
        corners: Left, top, right and bottom of the box in the same unit, from any point, shape (B, 4, A); of an
            oriented one before it is turned.
        size: Side of the box in the same unit, shape (B, 1, A).
        points: Key points in the same unit, shape (B, C, A), or None.
        angle: Of an oriented box, rad, shape (B, 1, A), or None.
        masks: Coefficients, shape (B, M, A), and prototypes, shape (B, M, h, w), or None.
    """

    scores: Tensor
    boxes: Tensor
    corners: Tensor
    size: Tensor
    points: Tensor | None = None
    angle: Tensor | None = None
    masks: tuple[Tensor, Tensor] | None = None


def detection_projection(
    imgsz: ImageSize, seed: int = 0, *, classes: int | None = None, box_weight: float = BOX_WEIGHT
) -> TaskLoss:
    """Return a scalar whose squared gradient says how much the predictions change.

    Every class probability of every location counts alike, so background counts only where it could become a
    detection; boxes and key points count relative to the box's size and by the location's probability, as do
    angles and the masks of the likeliest locations. Heads with two branches count both: what only the branch that
    is dropped later reads would be invisible otherwise. Of a classifier the probabilities count.

    Args:
        imgsz: Image size, pixels.
        seed: Of the random signs.
        classes: Number of classes; None: everything behind the box is a class (plain detection).
        box_weight: How much boxes, and what else says where an object is, count beside class probabilities.

    Returns:
        A function from a host model's output in evaluation mode to a scalar.
    """
    generator = torch.Generator().manual_seed(seed)
    signed = partial(signed_sum, generator=generator)

    def project(outputs: Any) -> Tensor:
        decoded = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        if isinstance(decoded, Tensor) and decoded.dim() == 2:
            return (balanced_signs(decoded, generator) * decoded).sum()
        total = torch.zeros(())
        for found in branches(outputs, imgsz, classes):
            best = found.scores.detach().amax(1, keepdim=True)
            total = total.to(best.device) + signed(found.scores)
            total = total + box_weight * signed(found.boxes / found.size * best)
            if found.points is not None:
                total = total + box_weight * signed(found.points / found.size * best)
            if found.angle is not None:
                total = total + box_weight * signed(found.angle * best)
            if found.masks is not None:
                total = total + box_weight * signed(masks_at(*found.masks, best))
        return total

    return project


def branches(outputs: Any, imgsz: ImageSize, classes: int | None) -> Iterator[Predictions]:
    """Yield the decoded predictions of every branch of the head."""
    raw = outputs[1] if isinstance(outputs, (tuple, list)) and len(outputs) == 2 else None
    if isinstance(raw, dict) and "one2one" in raw:
        shared = raw["one2many"].get("proto") if isinstance(raw["one2many"], dict) else None
        for branch in (raw["one2one"], raw["one2many"]):
            yield _from_raw(branch, shared)
        return
    if isinstance(raw, tuple):  # queries of a decoder: layers first, boxes as shares of the image last
        height, width = height_width(imgsz)
        boxes = raw[0][-1] * raw[0][-1].new_tensor([width, height] * 2)
        decoded = torch.cat([boxes, raw[1][-1].sigmoid()], -1).transpose(1, 2)
        yield _from_decoded(decoded, {}, None, None)
        return
    decoded = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    proto = None
    if isinstance(decoded, (tuple, list)):
        decoded, proto = decoded[0], decoded[1]
    yield _from_decoded(decoded, raw if isinstance(raw, dict) else {}, proto, classes)


def _from_decoded(
    decoded: Tensor, kinds: Mapping[str, Any], proto: Tensor | None, classes: int | None
) -> Predictions:
    """Take apart a tensor (B, 4 + classes + what the task adds, A) of boxes in pixels and probabilities."""
    count = decoded.shape[1] - 4 if classes is None else classes
    boxes, scores, extra = decoded[:, :4], decoded[:, 4 : 4 + count], decoded[:, 4 + count :]
    half = boxes[:, 2:].clamp(min=0.0) / 2
    return Predictions(
        scores=scores,
        boxes=boxes,
        corners=torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1),
        size=boxes.detach()[:, 2:3].mul(boxes.detach()[:, 3:4]).clamp(min=1.0).sqrt(),
        points=extra if "kpts" in kinds else None,
        angle=extra if "angle" in kinds else None,
        masks=(extra, proto) if proto is not None else None,
    )


def _from_raw(branch: dict[str, Any], proto: Any) -> Predictions:
    """Decode one branch of a two-branch head: distances to the four sides, in strides, and class logits."""
    distances: Tensor = branch["boxes"]
    if distances.shape[1] > 4:  # a distribution over distances for each side
        bins = distances.reshape(len(distances), 4, -1, distances.shape[-1]).softmax(2)
        distances = (bins * torch.arange(bins.shape[2]).to(bins).view(1, 1, -1, 1)).sum(2)
    outwards, sides = distances.clamp(min=0.0), distances.detach()
    area = (sides[:, 0:1] + sides[:, 2:3]).clamp(min=0.0) * (sides[:, 1:2] + sides[:, 3:4]).clamp(min=0.0)
    proto = proto[0] if isinstance(proto, (tuple, list)) else proto
    return Predictions(
        scores=branch["scores"].sigmoid(),
        boxes=distances,
        corners=torch.cat([-outwards[:, :2], outwards[:, 2:]], 1),
        size=area.clamp(min=0.25).sqrt(),
        points=branch.get("kpts"),
        angle=branch.get("angle"),
        masks=(branch["mask_coefficient"], proto) if proto is not None else None,
    )


def masks_at(coefficients: Tensor, proto: Tensor, best: Tensor) -> Tensor:
    """Return masks weighted by their probability, so that an image's pixels together count as one.

    They are those of the likeliest locations, and of others evenly spread, so that every level of the head is felt.
    """
    count = best.shape[-1]
    likely = best.squeeze(1).topk(min(_MASKS, count), dim=1).indices
    spread = torch.linspace(0, count - 1, min(_MASKS, count), device=best.device).long().expand(len(best), -1)
    index = torch.cat([likely, spread], 1)[:, None]
    chosen = coefficients.gather(2, index.expand(-1, coefficients.shape[1], -1))
    masks = torch.einsum("bma,bmhw->bahw", chosen, proto).sigmoid()
    weight = best.gather(2, index).squeeze(1)[..., None, None]
    weighted: Tensor = masks * weight / (masks.shape[-1] * masks.shape[-2]) ** 0.5
    return weighted
