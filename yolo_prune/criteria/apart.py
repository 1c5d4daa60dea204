"""How far a network's outputs are from its teacher's on images: what both run on, and what decides for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.criteria.calibration import Calibration, images_in, placed_batch
from yolo_prune.criteria.distance import output_distance
from yolo_prune.graph.decisions import Decisions


def outputs_apart(student: nn.Module, teacher: nn.Module, calibration: Calibration, batch: Any) -> Tensor:
    """Return the distance between two networks' outputs on a batch, a scalar with the student's gradient.

    Args:
        student: Both are in the mode that they are run in.
        teacher: What is right.
        calibration: How they run, and what distance is; its batches do not count.
        batch: Images.

    Raises:
        ConfigError: The outputs of the two cannot be compared.
    """
    batch, forward = placed_batch(batch, student), calibration.forward
    distance = calibration.distance or output_distance
    if not calibration.paired:
        with torch.no_grad():
            theirs = forward(teacher, batch)
        return distance(forward(student, batch), theirs)
    decided = Decisions()  # the same proposals for both, or nothing could be compared
    with torch.no_grad(), decided:
        theirs = forward(teacher, batch)
    with Decisions(decided.made):
        ours = forward(student, batch)
    return distance(ours, theirs)


def mean_distance(
    student: nn.Module, teacher: nn.Module, calibration: Calibration, batches: Sequence[Any]
) -> float:
    """Return the mean over images of :func:`outputs_apart`, without gradient."""
    with torch.no_grad():
        each = [
            (float(outputs_apart(student, teacher, calibration, batch)), images_in(batch))
            for batch in batches
        ]
    return sum(value * images for value, images in each) / sum(images for _, images in each)
