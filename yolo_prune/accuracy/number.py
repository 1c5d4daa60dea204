"""One accuracy, and what it is of."""

from __future__ import annotations

from dataclasses import dataclass, field

from yolo_prune.accuracy.bootstrap import ImageSample
from yolo_prune.accuracy.coco import CocoResult


@dataclass(frozen=True)
class Accuracy:
    """One number, and what it is of.

    Attributes:
        metric: ``ap`` or ``top1``, fields of a report's row.
        value: In [0, 1].
        images: Number of images.
        source: What it was computed from and by.
        sample: What was found in each image.
        notes: What a reader has to know, in sentences.
    """

    metric: str
    value: float
    images: int
    source: str
    sample: ImageSample | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()


def accuracy_of_boxes(
    coco: CocoResult, source: str, sample: ImageSample | None, notes: tuple[str, ...]
) -> Accuracy:
    """Return AP of boxes, whose ground truth came from ``source``."""
    return Accuracy("ap", coco.ap, coco.images, f"{coco.evaluator}, {source}", sample, notes)


def of_boxes_alone(ap_of: str, metric: str) -> tuple[str, ...]:
    """Say which boxes AP is of where the task is judged by something else, a field of a report's row."""
    return (f"AP is of {ap_of}. The {metric} of the checkpoint is another number: 'yolo-prune eval' has it.",)
