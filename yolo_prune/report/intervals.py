"""How sure the accuracies of a report are: 95 % intervals of models and of their differences, from its resamples.

NumPy is imported where it computes: help and errors in options come by here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolo_prune.imgsz import ImageSize

if TYPE_CHECKING:
    from yolo_prune.accuracy.bootstrap import FloatArray, ImageSample, Interval
    from yolo_prune.report.rows import Row, RunReport

PERCENT = "95 %"
METHOD = "percentile bootstrap over the images"


@dataclass(frozen=True)
class Resampled:
    """Accuracy of one model on images drawn with replacement; number k of every model is on the same images.

    Attributes:
        model: As in its row.
        imgsz: As in its row.
        low: Lower bound of the 95 % interval, in [0, 1].
        high: Upper bound.
        values: Accuracy of every resample in order, in [0, 1], with blanks between; ``nan`` where nothing was to find.
    """

    model: str
    imgsz: ImageSize | None = None
    low: float | None = None
    high: float | None = None
    values: str = ""

    @classmethod
    def from_sample(cls, model: str, imgsz: ImageSize | None, sample: ImageSample) -> Resampled:
        """Draw the images of an evaluation again and again, always in the same way."""
        from yolo_prune.accuracy.bootstrap import interval_of, resampled_accuracy

        values = resampled_accuracy(sample)
        found = interval_of(values)
        text = " ".join(f"{value:.6f}" for value in values)
        return cls(model, imgsz, found.low if found else None, found.high if found else None, text)

    @property
    def accuracies(self) -> FloatArray:
        """The values as numbers, shape (resamples,)."""
        import numpy as np

        return np.array(self.values.split(), dtype=np.float64)


def resamples_of(report: RunReport, row: Row) -> FloatArray | None:
    """Return the accuracy of a row's model in every resample; None in reports that have none."""
    found = (one for one in report.resamples if (one.model, one.imgsz) == (row.model, row.imgsz))
    return next((one.accuracies for one in found if one.values), None)


def count_resamples(report: RunReport) -> int:
    """Return how many resamples the intervals of a report come from; 0 where it has none."""
    return max((len(one.accuracies) for one in report.resamples), default=0)


def accuracy_interval(report: RunReport, row: Row) -> Interval | None:
    """Return the interval of a model's accuracy."""
    return _bounds(resamples_of(report, row))


def difference_interval(report: RunReport, row: Row, others: Sequence[tuple[Row, float]]) -> Interval | None:
    """Return the interval of a model's accuracy minus that of others, all on the same images.

    Args:
        report: A run.
        row: A model.
        others: What it is compared with: one model with weight 1, or several whose weights add up to 1.

    Returns:
        The interval; None where a model has no resamples, or another number of them.
    """
    values = resamples_of(report, row)
    for other, weight in others:
        theirs = resamples_of(report, other)
        if values is None or theirs is None or len(theirs) != len(values):
            return None
        values = values - weight * theirs
    return _bounds(values)


def _bounds(values: FloatArray | None) -> Interval | None:
    from yolo_prune.accuracy.bootstrap import interval_of

    return None if values is None else interval_of(values)


def signed(interval: Interval | None) -> str:
    """Say an interval of a difference inside a sentence."""
    return f"{PERCENT} interval {interval.low:+.3f} to {interval.high:+.3f}" if interval else "no interval"
