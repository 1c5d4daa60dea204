"""How far a student's predictions are from its teacher's, as the host's own losses weigh them; no labels needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from yolo_prune.adapters.ultralytics.saliency import Predictions, branches, detection_projection, masks_at
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.predictions import OVERLAP, bernoulli_divergence, missed_overlap
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.train.distill import anchor_weights, box_loss, class_loss, score_loss

_KNEE = 0.1  # in sizes of a box: beyond it the distance of a coordinate grows linearly


@dataclass(frozen=True)
class DistillationWeights:
    """How much each part of the imitation counts beside the host's own loss.

    Attributes:
        scores: Class probabilities (the host's gain for its own classification loss is 0.5).
        boxes: Box distributions (the host's gain for its own distribution loss is 1.5).
        labels: The host's own loss, from the labels.
    """

    scores: float = 0.5
    boxes: float = 1.5
    labels: float = 1.0


def raw_outputs(outputs: Any) -> list[dict[str, Any]]:
    """Return the raw outputs of a host's model, one dictionary for each detection head.

    Args:
        outputs: What the model returned, in training or in evaluation mode.

    Returns:
        Dictionaries with "scores" (B, C, A) and "boxes" (B, 4 K, A), or with "logits" (B, C).

    Raises:
        ConfigError: The model has outputs of another kind.
    """
    if isinstance(outputs, tuple | list) and len(outputs) == 2:
        outputs = outputs[1]
    if isinstance(outputs, Tensor) and outputs.ndim == 2:
        return [{"logits": outputs}]
    if isinstance(outputs, dict):
        heads = [outputs[key] for key in ("one2many", "one2one") if key in outputs] or [outputs]
        if all({"scores", "boxes", "feats"} <= head.keys() for head in heads):
            return heads
    raise ConfigError(
        "distillation does not know the outputs of this model: it learns from the labels alone."
    )


def raw_distance(
    student: Sequence[dict[str, Any]], teacher: Sequence[dict[str, Any]], weights: DistillationWeights
) -> Tensor:
    """Return the weighted distance of what :func:`raw_outputs` returned, the mean over the detection heads."""
    parts = []
    for ours, theirs in zip(student, teacher, strict=True):
        if "logits" in theirs:
            parts.append(class_loss(ours["logits"], theirs["logits"]) * weights.scores)
            continue
        importance = anchor_weights(theirs["scores"])
        parts.append(
            score_loss(ours["scores"], theirs["scores"]) * weights.scores
            + box_loss(ours["boxes"], theirs["boxes"], importance) * weights.boxes
        )
    return torch.stack(parts).mean()


def calibration_of(
    module: nn.Module, batches: Sequence[Tensor], *, imgsz: ImageSize, classes: int, seed: int
) -> Calibration:
    """Return what a model of the host is measured on.

    Args:
        module: The model.
        batches: Images as :func:`yolo_prune.adapters.ultralytics.data.calibration_batches` returns them.
        imgsz: Image size, pixels.
        classes: Number of classes.
        seed: Of the random signs.
    """
    return Calibration(
        batches,
        detection_projection(imgsz, seed, classes=classes),
        seed=seed,
        distance=PredictionDistance(imgsz, classes),
        paired=chooses_queries(module),
    )


def chooses_queries(module: nn.Module) -> bool:
    """Tell whether a model's decoder picks the locations that it looks at, as RT-DETR's does."""
    layers: Any = getattr(module, "model", None)
    return isinstance(layers, nn.Sequential) and hasattr(layers[-1], "num_queries")


def _missed(ours: Predictions, theirs: Predictions) -> Tensor:
    """Return 1 less the generalised intersection over union of the boxes, shape (B, 1, A)."""
    one, other = (boxes.corners.transpose(1, 2) for boxes in (ours, theirs))
    return missed_overlap(one, other)[:, None]


@dataclass(frozen=True)
class PredictionDistance:
    """The distance between the outputs of two models of the host in evaluation mode.

    Scores and boxes count as in distillation, and boxes by their overlap as well: the distributions that they are read
    from agree long before a box is good enough for AP at high overlaps. What else the task predicts (key points and
    angles as a smooth L1 distance in sizes of the box and in rad, masks of the likeliest locations by their squared
    difference) counts beside the boxes. Queries of a decoder count by their decoded boxes: both models have to have
    chosen the same ones.

    Attributes:
        imgsz: Image size, pixels.
        classes: Number of classes.
        weights: How much each part counts.
        overlap: How much 1 less the generalised intersection over union counts.
    """

    imgsz: ImageSize
    classes: int
    weights: DistillationWeights = DistillationWeights()
    overlap: float = OVERLAP

    def __call__(self, ours: Any, theirs: Any) -> Tensor:
        """Return a scalar with gradient with respect to ``ours``; zero where they agree."""
        raw = theirs[1] if isinstance(theirs, (tuple, list)) and len(theirs) == 2 else None
        if isinstance(raw, tuple):
            return self._beside(ours, theirs, decoded=True)
        known = raw_outputs(theirs)
        distance = raw_distance(raw_outputs(ours), known, self.weights)
        return distance if "logits" in known[0] else distance + self._beside(ours, theirs)

    def _beside(self, ours: Any, theirs: Any, *, decoded: bool = False) -> Tensor:
        """Return the distance of what stands beside scores and boxes, and of these as well where they are decoded."""
        pairs = zip(
            branches(ours, self.imgsz, self.classes), branches(theirs, self.imgsz, self.classes), strict=True
        )
        return torch.stack([self._of_branch(*pair, decoded=decoded) for pair in pairs]).mean()

    def _of_branch(self, ours: Predictions, theirs: Predictions, *, decoded: bool) -> Tensor:
        best = theirs.scores.detach().float().amax(1, keepdim=True)
        total = best.sum().clamp(min=1.0)

        def apart(one: Tensor, other: Tensor, unit: Tensor | float = 1.0) -> Tensor:
            each = F.smooth_l1_loss(
                one.float() / unit, other.detach().float() / unit, reduction="none", beta=_KNEE
            )
            return (each.mean(1, keepdim=True) * best).sum() / total

        beside = best.new_zeros(())
        if decoded:
            beside = beside + apart(ours.boxes, theirs.boxes, theirs.size)
        if ours.points is not None and theirs.points is not None:
            beside = beside + apart(ours.points, theirs.points, theirs.size)
        if ours.angle is not None and theirs.angle is not None:
            beside = beside + apart(ours.angle, theirs.angle)
        if ours.masks is not None and theirs.masks is not None:
            seen, wanted = masks_at(*ours.masks, best), masks_at(*theirs.masks, best).detach()
            beside = beside + (seen - wanted).square().sum() / total
        distance = beside * self.weights.boxes + self.overlap * (_missed(ours, theirs) * best).sum() / total
        if not decoded:
            return distance
        scores = bernoulli_divergence(ours.scores.float(), theirs.scores.detach().float())
        return distance + scores.sum() / total * self.weights.scores
