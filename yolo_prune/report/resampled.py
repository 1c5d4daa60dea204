"""Accuracy of a model on images drawn again and again: what intervals are made of.

NumPy is imported where it computes: help and errors in options come by here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolo_prune.imgsz import ImageSize

if TYPE_CHECKING:
    from yolo_prune.accuracy.bootstrap import FloatArray, ImageSample


@dataclass(frozen=True)
class Resampled:
    """Accuracy of one model on images drawn with replacement; number k of every model is on the same images.

    Attributes:
        model: As in its row.
        imgsz: As in its row.
        low: Lower bound of the 95 % interval, in [0, 1].
        high: Upper bound.
        values: Accuracy of every resample in order, in [0, 1], with blanks between; ``nan`` where nothing was to find.
        precision: As in its row.
        runtime: That the weights are made for; None where several share them.
    """

    model: str
    imgsz: ImageSize | None = None
    low: float | None = None
    high: float | None = None
    values: str = ""
    precision: str | None = None
    runtime: str | None = None

    @classmethod
    def from_sample(
        cls,
        model: str,
        imgsz: ImageSize | None,
        sample: ImageSample,
        precision: str | None = None,
        runtime: str | None = None,
    ) -> Resampled:
        """Draw the images of an evaluation again and again, always in the same way."""
        from yolo_prune.accuracy.bootstrap import interval_of, resampled_accuracy

        values = resampled_accuracy(sample)
        found = interval_of(values)
        text = " ".join(f"{value:.6f}" for value in values)
        low, high = (found.low, found.high) if found else (None, None)
        return cls(model, imgsz, low, high, text, precision, runtime)

    @property
    def accuracies(self) -> FloatArray:
        """The values as numbers, shape (resamples,)."""
        import numpy as np

        return np.array(self.values.split(), dtype=np.float64)
