"""What a detector's task feels: a random projection of its decoded predictions, no labels needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TaskLoss = Callable[[Any], Tensor]


def detection_projection(imgsz: int, seed: int = 0, box_weight: float = 1.0) -> TaskLoss:
    """Return a scalar whose squared gradient says how much the detections change.

    Every class probability of every location counts alike, so background counts only where it could become a
    detection; box coordinates count relative to the box's size and by the location's probability.

    Args:
        imgsz: Image size, pixels.
        seed: Of the random signs.
        box_weight: How much boxes count beside class probabilities.

    Returns:
        A function from a host model's output in evaluation mode to a scalar.
    """
    generator = torch.Generator().manual_seed(seed)

    def signs(like: Tensor) -> Tensor:
        drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
        return (drawn.to(like.device, like.dtype) * 2) - 1

    def project(outputs: Any) -> Tensor:
        decoded = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        boxes, scores = decoded[:, :4], decoded[:, 4:]
        with torch.no_grad():
            best = scores.amax(1, keepdim=True)
            size = boxes[:, 2:3].mul(boxes[:, 3:4]).clamp(min=1.0).sqrt()
        loss = (signs(scores) * scores).sum()
        total: Tensor = loss + box_weight * (signs(boxes) * boxes / size * best).sum()
        return total

    return project
