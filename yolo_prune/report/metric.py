"""The words for the accuracy that a report compares models by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a number is called, and the second one that is shown beside it.

    Attributes:
        field: Of ``Row``.
        short: In the middle of a sentence.
        title: At the head of a column.
        definition: What exactly it is.
        second: Field of the number beside it.
        second_title: At the head of that one's column.
    """

    field: str
    short: str
    title: str
    definition: str
    second: str
    second_title: str

    def sentence(self, scores: Mapping[str, float | None]) -> str:
        """Return both numbers in words, for example ``COCO AP 0.5123, AP50 0.8000``."""
        pairs = ((self.title, scores.get(self.field)), (self.second_title, scores.get(self.second)))
        return ", ".join(f"{title} {value:.4f}" for title, value in pairs if value is not None)


AP = Metric(
    field="ap",
    short="AP",
    title="COCO AP",
    definition="COCO AP (IoU 0.50 to 0.95, 100 boxes an image)",
    second="ap50",
    second_title="AP50",
)
TOP1 = Metric(
    field="top1",
    short="top-1",
    title="top-1",
    definition="Top-1 and top-5 (share of the images whose best class, or one of the best five, is right)",
    second="top5",
    second_title="top-5",
)
METRICS = {metric.field: metric for metric in (AP, TOP1)}
