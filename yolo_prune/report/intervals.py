"""How sure the accuracies of a report are: 95 % intervals of models and of their differences, from its resamples.

NumPy is imported where it computes: help and errors in options come by here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolo_prune.accuracy.bootstrap import FloatArray, Interval
    from yolo_prune.report.rows import Row, RunReport

PERCENT = "95 %"
METHOD = "percentile bootstrap over the images"


def resamples_of(report: RunReport, row: Row) -> FloatArray | None:
    """Return the accuracy of a row's model in every resample; None in reports that have none."""
    asked = (row.model, row.imgsz, row.precision)
    found = (
        one
        for one in report.resamples
        if (one.model, one.imgsz, one.precision) == asked and one.runtime in (None, row.runtime)
    )
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


def paired_interval(one: tuple[RunReport, Row], other: tuple[RunReport, Row]) -> Interval | None:
    """Return the interval of the accuracy of one model minus another's, of two reports on the same images.

    Returns:
        The interval; None where one has no resamples, or another number of them.
    """
    ours, theirs = (resamples_of(report, row) for report, row in (one, other))
    return None if ours is None or theirs is None or len(ours) != len(theirs) else _bounds(ours - theirs)


def _bounds(values: FloatArray | None) -> Interval | None:
    from yolo_prune.accuracy.bootstrap import interval_of

    return None if values is None else interval_of(values)


def signed(interval: Interval | None) -> str:
    """Say an interval of a difference inside a sentence."""
    return f"{PERCENT} interval {interval.low:+.3f} to {interval.high:+.3f}" if interval else "no interval"
