"""How sure the host's own mAP is: what it matched in each image, and its interpolation for any weighting of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolo_prune.accuracy.bootstrap import RECALLS, ClassMatches, FloatArray, IntArray, image_f1

Matched = tuple[Any, Any, Any, Any]
"""Of one image: right (D, T), score (D,) and class (D,) of the detections, and class (G,) of the objects."""
_EPSILON = 1e-16  # the host's, in a recall


@dataclass(frozen=True, eq=False)
class HostMatches:
    """What the host matched in each image of a split: its mAP of every resample without matching again."""

    images: int
    classes: tuple[ClassMatches, ...]

    @classmethod
    def from_images(cls, matched: Sequence[Matched]) -> HostMatches:
        """Put the matches of all images together, class by class.

        Args:
            matched: One entry an image.
        """
        number = np.repeat(np.arange(len(matched)), [len(each[1]) for each in matched])
        right, scores, kinds, objects = (np.concatenate([each[at] for each in matched]) for at in range(4))
        of_image = np.repeat(np.arange(len(matched)), [len(each[3]) for each in matched])
        order = np.argsort(-scores)  # as the host sorts
        number, right, kinds, scores = number[order], right[order], kinds[order], scores[order]
        classes = []
        for kind in np.unique(objects):
            mine = kinds == kind
            hits = right[mine].T.astype(bool)
            counts = np.bincount(of_image[objects == kind], minlength=len(matched))
            classes.append(ClassMatches(number[mine], hits, np.zeros_like(hits), counts, scores[mine]))
        return cls(len(matched), tuple(classes))

    def accuracy(self, weights: IntArray) -> FloatArray:
        """Return the host's mAP50-95; the mean is over the classes that a resample has an object of."""
        total, present = np.zeros(len(weights)), np.zeros(len(weights))
        for one in self.classes:
            objects = weights @ one.objects
            hits = [np.flatnonzero(right) for right in one.right]
            for draw in np.flatnonzero(objects):
                counted = weights[draw][one.image]
                seen = np.cumsum(counted)
                found = [_interpolated(counted[at], seen[at], int(objects[draw])) for at in hits]
                total[draw] += sum(found) / len(hits)
            present += objects > 0
        result: FloatArray = np.divide(total, present, out=np.full(len(weights), np.nan), where=present > 0)
        return result

    def correctness(self) -> FloatArray:
        """Return F1 of each image."""
        return image_f1(self.classes, self.images)


def _interpolated(counted: IntArray, seen: IntArray, objects: int) -> float:
    """Return the area under one curve of precision against recall, as the host interpolates it.

    Its corners are at right detections: precision rises to one, and falls at the same recall to that of the next where
    wrong ones lie between; behind the last it falls to zero.

    Args:
        counted: How often each right detection counts, best score first, shape (H,).
        seen: Detections up to and with it.
        objects: How many there are to find.
    """
    drawn = counted > 0
    counted, seen = counted[drawn], seen[drawn]
    if not len(counted):
        return 0.0
    found = np.cumsum(counted)
    best = np.maximum.accumulate((found / seen)[::-1])[::-1]
    missed = np.diff(seen, prepend=0) > counted  # wrong ones lie before it
    falls = np.where(missed, best, np.concatenate(([1.0], best[:-1])))
    recalls = np.repeat(np.concatenate(([0.0], found / (objects + _EPSILON))), 2)
    precisions = np.concatenate(([1.0], np.stack([falls, best], axis=1).ravel(), [0.0]))
    read = np.interp(RECALLS, np.append(recalls, 1.0), np.append(precisions, 0.0))
    return float((read[1:] + read[:-1]).sum() / 2 / (len(RECALLS) - 1))
