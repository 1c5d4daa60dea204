"""How sure the host's own mAP is: what it matched in each image, and its interpolation for any weighting of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolo_prune.accuracy.bootstrap import RECALLS, ClassMatches, FloatArray, IntArray

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
        number, right, kinds = number[order], right[order], kinds[order]
        classes = []
        for kind in np.unique(objects):
            mine = kinds == kind
            hits = right[mine].T.astype(bool)
            counts = np.bincount(of_image[objects == kind], minlength=len(matched))
            classes.append(ClassMatches(number[mine], hits, np.zeros_like(hits), counts))
        return cls(len(matched), tuple(classes))

    def accuracy(self, weights: IntArray) -> FloatArray:
        """Return the host's mAP50-95; the mean is over the classes that a resample has an object of."""
        total, present = np.zeros(len(weights)), np.zeros(len(weights))
        for one in self.classes:
            objects = weights @ one.objects
            for draw in np.flatnonzero(objects):
                total[draw] += _class_ap(one, weights[draw], int(objects[draw]))
            present += objects > 0
        result: FloatArray = np.divide(total, present, out=np.full(len(weights), np.nan), where=present > 0)
        return result


def _class_ap(one: ClassMatches, weights: IntArray, objects: int) -> float:
    """Return one class's AP in one resample, averaged over the thresholds, interpolated as the host does.

    A detection that counts twice is two at the same place: its curve has the same corners but for those that the
    envelope hides.
    """
    counted = weights[one.image]
    drawn = counted > 0
    if not drawn.any():
        return 0.0
    counted = counted[drawn]
    seen = np.cumsum(counted)
    total = 0.0
    for right in one.right[:, drawn]:
        found = np.cumsum(counted * right)
        recall, precision = found / (objects + _EPSILON), found / seen
        recalls = np.concatenate(([0.0], recall, [recall[-1], 1.0]))
        precisions = np.concatenate(([1.0], precision, [0.0, 0.0]))
        precisions = np.maximum.accumulate(precisions[::-1])[::-1]
        read = np.interp(RECALLS, recalls, precisions)
        total += float((read[1:] + read[:-1]).sum() / 2 / (len(RECALLS) - 1))
    return total / len(one.right)
