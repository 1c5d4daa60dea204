"""Hang the parent's help on a model of the host: the loss of this one instance, nothing global."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.ultralytics.anatomy import smallest_image
from yolo_prune.adapters.ultralytics.closeness import DistillationWeights, raw_distance, raw_outputs


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
        distance = raw_distance(raw_outputs(outputs), targets, self.weights)
        images = 1 if "logits" in targets[0] else len(batch["img"])
        total = torch.cat([loss.reshape(-1) * self.weights.labels, (distance * images).reshape(1)])
        return total, {**items, "distill_loss": distance.detach()} if isinstance(items, dict) else items


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
