"""Which detection finds which object, by the rules of pycocotools and to the bit, for all images of a class at once.

pycocotools goes through all pairs of a detection and an object at every threshold and size, in Python. Here only pairs
that overlap enough for the lowest threshold are looked at, and the detections of all images that are first (second,
...) among those of their image choose at the same time: they cannot want the same object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_prune.accuracy.bootstrap import RECALLS, ClassMatches, FloatArray, IntArray

_HIGHEST = 1 - 1e-10  # pycocotools lets an overlap of this match at any threshold
_STEPS = 10
THRESHOLDS: FloatArray = np.minimum(np.linspace(0.5, 0.95, _STEPS), _HIGHEST)
"""Overlaps from which a detection may be right."""
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FoundOfClass:
    """Detections of one class, image by image and in an image the best score first.

    Attributes:
        image: Index of the image of each, ascending, shape (D,).
        score: Shape (D,).
        area: In pixels, shape (D,).
    """

    image: IntArray
    score: FloatArray
    area: FloatArray


@dataclass(frozen=True, eq=False)
class ObjectsOfClass:
    """Objects of one class, image by image.

    Attributes:
        image: Index of the image of each, ascending, shape (G,).
        area: In pixels, shape (G,).
        crowd: Whether it is a region that any number of detections may match, shape (G,).
        ignored: Whether what matches it counts neither as right nor as wrong, shape (G,).
    """

    image: IntArray
    area: FloatArray
    crowd: BoolArray
    ignored: BoolArray


@dataclass(frozen=True, eq=False)
class Pairs:
    """Detections and objects that overlap enough to match, ordered by detection, then by object; each of shape (E,)."""

    found: IntArray
    object: IntArray
    overlap: FloatArray


@dataclass(frozen=True, eq=False)
class Matched:
    """What became of the detections and the objects of one class, for every size of objects.

    Attributes:
        right: Whether a detection matches an object, shape (A, T, D).
        ignored: Whether it counts neither as right nor as wrong, shape (A, T, D).
        counted: Whether an object is one to find, shape (A, G).
    """

    right: BoolArray
    ignored: BoolArray
    counted: BoolArray


def match(found: FoundOfClass, objects: ObjectsOfClass, pairs: Pairs, sizes: FloatArray) -> Matched:
    """Give every detection, best first, the free object that it overlaps most.

    An object that is to be found comes before one that is ignored; of equal overlaps the last object wins.

    Args:
        found: Detections.
        objects: Objects.
        pairs: Of both, those whose overlap reaches the lowest threshold.
        sizes: Smallest and largest area of the objects to find, shape (A, 2); others are ignored.
    """
    ignored_objects = objects.ignored | _outside(objects.area, sizes)
    shape = (len(sizes), len(THRESHOLDS))
    right, ignored = (np.zeros((*shape, len(found.image)), dtype=bool) for _ in range(2))
    taken = np.zeros((*shape, len(objects.image)), dtype=bool)
    for number, of, overlap in _rounds(found.image, pairs):
        starts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
        free = (~taken[..., of] | objects.crowd[of]) & (overlap >= THRESHOLDS[:, None])
        secondary = ignored_objects[:, None, of]
        chosen = _closest(overlap, free & ~secondary, starts)
        chosen = np.where(chosen < 0, _closest(overlap, free & secondary, starts), chosen)
        size, threshold, place = np.nonzero(chosen >= 0)
        object_of, detection = of[chosen[size, threshold, place]], number[starts[place]]
        taken[size, threshold, object_of] = True
        right[size, threshold, detection] = True
        ignored[size, threshold, detection] = ignored_objects[size, object_of]
    ignored |= ~right & _outside(found.area, sizes)[:, None]
    return Matched(right, ignored, ~ignored_objects)


def _outside(area: FloatArray, sizes: FloatArray) -> BoolArray:
    found: BoolArray = (area < sizes[:, :1]) | (area > sizes[:, 1:])
    return found


def _rounds(image: IntArray, pairs: Pairs) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Yield the pairs of the detections that are first among those of their image, then of the second, and so on."""
    detections, position = np.unique(pairs.found, return_inverse=True)
    rank = np.arange(len(detections)) - np.searchsorted(image[detections], image[detections])
    order = np.argsort(rank[position], kind="stable")
    ends = np.cumsum(np.bincount(rank[position]))
    for part in np.split(order, ends[:-1]) if len(order) else ():
        yield pairs.found[part], pairs.object[part], pairs.overlap[part]


def _closest(overlap: FloatArray, allowed: BoolArray, starts: IntArray) -> IntArray:
    """Return which allowed pair of each detection overlaps most: the last one of equals, -1 where none is allowed.

    Args:
        overlap: Of the pairs, detection by detection, shape (E,).
        allowed: Shape (A, T, E).
        starts: Where the pairs of each detection begin, shape (N,).

    Returns:
        Indices of pairs, shape (A, T, N).
    """
    value = np.where(allowed, overlap, -1.0)
    highest = np.maximum.reduceat(value, starts, axis=-1)
    lengths = np.diff(np.append(starts, len(overlap)))
    best = allowed & (value == np.repeat(highest, lengths, axis=-1))
    found: IntArray = np.maximum.reduceat(np.where(best, np.arange(len(overlap)), -1), starts, axis=-1)
    return found


def matches_of(found: FoundOfClass, objects: ObjectsOfClass, matched: Matched, images: int) -> ClassMatches:
    """Return what was matched at the first of the sizes, best score of all images first."""
    order = np.argsort(-found.score, kind="mergesort")
    return ClassMatches(
        found.image[order],
        matched.right[0][:, order],
        matched.ignored[0][:, order],
        np.bincount(objects.image[matched.counted[0]], minlength=images),
        found.score[order],
    )


def precision_of(found: FoundOfClass, matched: Matched) -> FloatArray:
    """Return precision at COCO's 101 recalls, shape (T, 101, A); -1 where there is no object to find."""
    order = np.argsort(-found.score, kind="mergesort")
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(matched.counted)), -1.0)
    for size, counted in enumerate(matched.counted):
        objects = int(np.count_nonzero(counted))
        for threshold in range(len(THRESHOLDS)) if objects else ():
            right, ignored = matched.right[size, threshold, order], matched.ignored[size, threshold, order]
            precision[threshold, :, size] = _interpolated(right, ignored, objects)
    return precision


def _interpolated(right: BoolArray, ignored: BoolArray, objects: int) -> FloatArray:
    """Return the highest precision at each of the recalls or above; the operations are those of pycocotools."""
    hits = np.cumsum(right & ~ignored).astype(float)
    misses = np.cumsum(~right & ~ignored).astype(float)
    recall = hits / objects
    precision = np.maximum.accumulate((hits / (misses + hits + np.spacing(1)))[::-1])[::-1]
    reached = np.searchsorted(recall, RECALLS, side="left")
    found = np.zeros(len(RECALLS))
    inside = reached < len(recall)
    found[inside] = precision[reached[inside]]
    return found
