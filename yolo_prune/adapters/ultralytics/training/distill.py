"""Hang the parent's help on a model of the host: the loss of this one instance, nothing global."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.ultralytics.anatomy import smallest_image
from yolo_prune.errors import ConfigError
from yolo_prune.train.distill import anchor_weights, box_loss, class_loss, score_loss


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


class DistilledCriterion:
    """The host's criterion of one model plus the distance to a teacher.

    It is no module and owns no parameter of the model; pickled or copied it is the host's own criterion
    again, so the teacher reaches neither the EMA nor a checkpoint.
    """

    def __init__(self, criterion: Any, teacher: nn.Module, weights: DistillationWeights) -> None:
        self.criterion, self.teacher, self.weights = criterion, teacher, weights

    def __getattr__(self, name: str) -> Any:
        """Answer like the host's criterion for what is not ours (``update`` of end-to-end heads)."""
        return getattr(self.criterion, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.criterion.__reduce_ex__(1)  # later protocols insist that the class be the object's own

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return the host's losses with ours appended, and the named parts with "distill_loss" added.

        Before the host named its parts (8.4.0) they were one tensor of fixed length: it stays as it is.
        """
        loss, items = self.criterion(outputs, batch)
        if not torch.is_grad_enabled():
            return loss, items
        with torch.no_grad():
            targets = raw_outputs(self.teacher(batch["img"]))
        distance = self.distance(raw_outputs(outputs), targets)
        images = 1 if "logits" in targets[0] else len(batch["img"])
        total = torch.cat([loss.reshape(-1) * self.weights.labels, (distance * images).reshape(1)])
        return total, {**items, "distill_loss": distance.detach()} if isinstance(items, dict) else items

    def distance(self, student: list[dict[str, Any]], teacher: list[dict[str, Any]]) -> Tensor:
        """Return the weighted distance, the mean over the detection heads."""
        parts = []
        for ours, theirs in zip(student, teacher, strict=True):
            if "logits" in theirs:
                parts.append(class_loss(ours["logits"], theirs["logits"]) * self.weights.scores)
                continue
            importance = anchor_weights(theirs["scores"])
            parts.append(
                score_loss(ours["scores"], theirs["scores"]) * self.weights.scores
                + box_loss(ours["boxes"], theirs["boxes"], importance) * self.weights.boxes
            )
        return torch.stack(parts).mean()


def distil_(model: nn.Module, teacher: nn.Module, weights: DistillationWeights) -> None:
    """Let ``model`` learn from ``teacher`` beside its labels, from now on.

    Args:
        model: A model of the host; its ``criterion`` is replaced, on this instance alone.
        teacher: A model of the host with the same heads and classes; it is set to evaluation mode and frozen.
        weights: How much each part counts.

    Raises:
        ConfigError: The teacher has outputs of another kind (RT-DETR: its queries have no fixed places to compare).
    """
    teacher.eval().float().requires_grad_(False)
    with torch.no_grad():
        raw_outputs(teacher(smallest_image(teacher).to(next(teacher.parameters()))))
    criterion = getattr(model, "criterion", None) or model.init_criterion()  # type: ignore[operator]
    model.criterion = DistilledCriterion(criterion, teacher, weights)  # type: ignore[assignment]
