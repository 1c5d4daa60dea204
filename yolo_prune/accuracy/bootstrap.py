"""How sure an accuracy is: draw the images again and again with replacement, and see what comes out each time.

Models that were evaluated on the same images see the same draws (same seed, same number of images), so the k-th
accuracy of one and the k-th of another are a pair, and their difference has an interval of its own: much narrower than
the two intervals suggest, because an image that is hard for one model is hard for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

CONFIDENCE = 0.95
RESAMPLES = 1000
SEED = 0
SURE = 0.25
"""Score from which a detection counts, where an image is judged by itself."""
RECALLS = np.linspace(0.0, 1.0, 101)  # where COCO reads precision
_NEXT_RECALL = np.append(RECALLS, np.inf)
_CELLS, _NARROWEST = 500_000, 16  # numbers in memory at once, and resamples of which they are at least


class ImageSample(Protocol):
    """What an evaluation found in each image: enough to say what the accuracy of any weighting of them is."""

    @property
    def images(self) -> int:
        """Number of images."""

    def accuracy(self, weights: IntArray) -> FloatArray:
        """Return the accuracy on images that count several times, or not at all.

        Args:
            weights: How often each image counts, shape (B, images).

        Returns:
            Accuracy in [0, 1], shape (B,); NaN where nothing is left to find.
        """

    def correctness(self) -> FloatArray:
        """Return how right the results of each image are by themselves, in [0, 1], shape (images,).

        Of detections F1 at an overlap of 0.5, of those with a score of ``SURE`` or more; of a classifier 0 or 1.
        """


@dataclass(frozen=True)
class Interval:
    """Bounds of what chance in the choice of images explains, at ``CONFIDENCE``."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """What was matched of one class, best score first.

    Attributes:
        image: Index of each detection's image, shape (D,).
        right: Whether it is right at each IoU threshold, shape (T, D).
        ignored: Whether it counts neither as right nor as wrong, shape (T, D).
        objects: Number of ground-truth boxes of each image, shape (images,).
        score: Of each detection, shape (D,).
    """

    image: IntArray
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: IntArray
    score: FloatArray


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """Detections of a split, matched once: COCO AP of every resample without matching again."""

    images: int
    classes: tuple[ClassMatches, ...]

    def accuracy(self, weights: IntArray) -> FloatArray:
        """Return COCO AP; the mean is over the classes that a resample has a box of."""
        total, present = np.zeros(len(weights)), np.zeros(len(weights))
        for one in self.classes:
            objects = weights @ one.objects
            there = objects > 0
            total[there] += _class_ap(one, weights[there], objects[there])
            present += there
        result: FloatArray = np.divide(total, present, out=np.full(len(weights), np.nan), where=present > 0)
        return result

    def correctness(self) -> FloatArray:
        """Return F1 of each image."""
        return image_f1(self.classes, self.images)


@dataclass(frozen=True, eq=False)
class ImageHits:
    """Whether a classifier was right on each image."""

    right: NDArray[np.bool_]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.right)

    def accuracy(self, weights: IntArray) -> FloatArray:
        """Return the share of right images."""
        return np.asarray(weights @ self.right.astype(np.int64) / weights.sum(axis=1), dtype=np.float64)

    def correctness(self) -> FloatArray:
        """Return 1 for right images."""
        return self.right.astype(np.float64)


def image_f1(classes: Sequence[ClassMatches], images: int) -> FloatArray:
    """Return F1 of each image: ``2 * right / (found + objects)``, 1 where nothing is there and nothing was found."""
    right, found, objects = np.zeros(images), np.zeros(images), np.zeros(images)
    for one in classes:
        counted = (one.score >= SURE) & ~one.ignored[0]
        right += np.bincount(one.image[counted & one.right[0]], minlength=images)
        found += np.bincount(one.image[counted], minlength=images)
        objects += one.objects
    total = found + objects
    result: FloatArray = np.divide(2 * right, total, out=np.ones(images), where=total > 0)
    return result


def draw_images(images: int, resamples: int = RESAMPLES, seed: int = SEED) -> IntArray:
    """Draw ``images`` of ``images`` with replacement, and return how often each came, shape (resamples, images)."""
    drawn = np.random.default_rng(seed).integers(images, size=(resamples, images))
    cells = (drawn + images * np.arange(resamples)[:, None]).ravel()
    return np.bincount(cells, minlength=resamples * images).reshape(resamples, images).astype(np.int32)


def resampled_accuracy(sample: ImageSample, resamples: int = RESAMPLES, seed: int = SEED) -> FloatArray:
    """Return the accuracy of every resample, shape (resamples,): the same draws for every model on these images."""
    return sample.accuracy(draw_images(sample.images, resamples, seed))


def interval_of(values: FloatArray, confidence: float = CONFIDENCE) -> Interval | None:
    """Return the percentile interval of resampled accuracies, or of their differences.

    Args:
        values: Shape (resamples,); NaN where a resample had nothing to find.
        confidence: Coverage, in (0, 1).

    Returns:
        The interval, None when there are no values.

    Note:
        The truth is inside less often than promised where images are few (``scripts/check_intervals.py``, 50 to 100
        images, 3 classes): 91 to 95 times in 100 for a difference, 87 to 94 for an AP, which so few overestimate.

    Source:
        Efron, Bootstrap methods: another look at the jackknife, 1979: images are the units that are drawn.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    tail = 50 * (1 - confidence)
    low, high = np.percentile(known, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _class_ap(one: ClassMatches, weights: IntArray, objects: IntArray) -> FloatArray:
    """Return one class's AP over all IoU thresholds, shape (B,), in pieces that fit into a cache.

    Resamples are the last axis inside: whole rows are gathered and added up, five times as fast as columns.
    """
    result = np.zeros(len(weights))
    step = max(_NARROWEST, _CELLS // max(len(one.image), 1))
    ignored = [np.flatnonzero(each) for each in one.ignored]
    rights = [np.flatnonzero(right) for right in one.right & ~one.ignored]
    for start in range(0, len(weights) if any(map(len, rights)) else 0, step):
        part = slice(start, start + step)
        drawn = np.ascontiguousarray(weights[part].T)[one.image]
        all_seen = np.cumsum(drawn, axis=0, dtype=np.int32)
        for threshold, hits in enumerate(rights):
            if not len(hits):
                continue
            seen = all_seen[hits]
            left_out = ignored[threshold]
            if len(left_out):  # few: subtracted where they lie before a hit, in place of adding up all others
                before = np.searchsorted(left_out, hits)
                counts = np.cumsum(drawn[left_out], axis=0, dtype=np.int32)
                seen[before > 0] -= counts[before[before > 0] - 1]
            result[part] += _interpolated(drawn[hits], seen, objects[part])
    return result / len(one.right)


def _interpolated(hits: IntArray, seen: IntArray, objects: IntArray) -> FloatArray:
    """Return the mean precision at COCO's 101 recalls, shape (B,).

    Precision is highest, and recall rises, at right detections alone, so no others need to be looked at.

    Args:
        hits: How often each right detection counts, shape (H, B).
        seen: Detections up to and with it, shape (H, B).
        objects: Boxes to find, shape (B,).
    """
    found = np.cumsum(hits, axis=0, dtype=np.int32)
    precision = found / (seen + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = found / objects
    passed = (recall * 100).astype(np.int32) + 1  # number of the 101 recalls reached, but for rounding
    passed += _NEXT_RECALL[passed] <= recall
    passed -= RECALLS[passed - 1] > recall
    passed[1:] -= passed[:-1].copy()
    return np.asarray(np.einsum("hb,hb->b", passed, precision) / len(RECALLS), dtype=np.float64)
