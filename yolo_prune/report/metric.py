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
        of: What is found, where that is more than boxes.
    """

    field: str
    short: str
    title: str
    definition: str
    second: str
    second_title: str
    of: str = ""

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
MASK_AP = Metric(
    field="mask_ap",
    short="mask AP",
    title="mask AP",
    definition="COCO AP of masks (IoU 0.50 to 0.95, 100 masks a class and image)",
    second="ap",
    second_title="box AP",
    of="masks",
)
KEYPOINT_AP = Metric(
    field="keypoint_ap",
    short="keypoint AP",
    title="keypoint AP",
    definition="COCO AP of key points (OKS 0.50 to 0.95, 20 objects a class and image)",
    second="ap",
    second_title="box AP",
    of="key points",
)
ORIENTED_AP = Metric(
    field="oriented_ap",
    short="oriented AP",
    title="oriented AP (the host's)",
    definition="Oriented AP is the host's own mAP50-95 of oriented boxes, matched by its probabilistic IoU",
    second="ap",
    second_title="upright box AP",
    of="oriented boxes",
)
METRICS = {metric.field: metric for metric in (TOP1, MASK_AP, KEYPOINT_AP, ORIENTED_AP, AP)}
"""By field, in the order in which a row is asked for them: the AP of its boxes is what is left."""
