"""From what a network puts out to boxes: layouts, thresholds, suppression. NumPy alone, the same for every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import DataError

CONFIDENCE = 0.25
IOU = 0.7
MAX_DETECTIONS = 300
MAX_CANDIDATES = 30_000

Detections = NDArray[np.float32]


@dataclass(frozen=True)
class Thresholds:
    """What counts as found.

    Attributes:
        confidence: A score counts when it is larger.
        every_class: A box counts once for every class whose score is, not for its best class alone.
    """

    confidence: float
    every_class: bool = False


SHOWN = Thresholds(CONFIDENCE)
"""What a deployed detector shows."""
SCORED = Thresholds(0.001, every_class=True)
"""What average precision is computed of."""


ANCHORS, QUERIES, RANKED, CLASSES = "anchors", "queries", "ranked", "classes"


def detect(
    output: NDArray[np.float32], classes: int | None = None, thresholds: Thresholds = SHOWN
) -> list[Detections]:
    """Turn the raw output of a detector (or classifier) into its results.

    The layout is read from the shape: [B, 4 + C (+ extra), anchors] needs suppression; [B, N, 6] is end to
    end and needs a threshold only; [B, N, 4 + C] are the queries of a transformer; [B, C] are class scores.

    Args:
        output: The network's first output.
        classes: C; taken from the shape when None.
        thresholds: What counts as found.

    Returns:
        Per image float32 [n, 6]: x1, y1, x2, y2, score, class, in input pixels, best first; for a classifier
        [5, 2]: score, class.

    Raises:
        DataError: There is no room for so many classes, or it is laid out in no such way.
    """
    return decode(output, layout_of(output.shape, classes), classes, thresholds)


def layout_of(shape: Sequence[int], classes: int | None = None) -> str:
    """Return how an output of such a shape is laid out; with two classes queries look like ranked boxes.

    Raises:
        DataError: It has neither two dimensions nor three.
    """
    if len(shape) == 2:
        return CLASSES
    if len(shape) != 3:
        raise DataError(
            f"the network's first output has the shape {tuple(shape)}: expected [B, 4 + classes, anchors], "
            "[B, boxes, 6], [B, queries, 4 + classes] or, of a classifier, [B, classes]."
        )
    if shape[2] == 6 and classes != 2:
        return RANKED
    return QUERIES if classes is not None and holds_queries(shape, classes) else ANCHORS


def decode(
    output: NDArray[np.float32], layout: str, classes: int | None = None, thresholds: Thresholds = SHOWN
) -> list[Detections]:
    """Turn an output of a known layout into results; see :func:`detect`.

    Args:
        output: The network's first output.
        layout: ``ANCHORS``, ``QUERIES``, ``RANKED`` or ``CLASSES``.
        classes: C; taken from the shape when None.
        thresholds: What counts as found.
    """
    if layout == CLASSES:
        return [top_classes(scores) for scores in output]
    if layout == RANKED:
        return [rows[rows[:, 4] > thresholds.confidence, :6][:MAX_DETECTIONS] for rows in output]
    if layout == QUERIES and holds_labels(output, classes):
        return [_corners(rows[rows[:, 4] > thresholds.confidence][:MAX_DETECTIONS]) for rows in output]
    if classes is not None and output.shape[2 if layout == QUERIES else 1] < 4 + classes:
        raise DataError(f"the output {output.shape} is too small for {classes} classes.")
    if layout == QUERIES:
        return [likely_boxes(rows, Thresholds(thresholds.confidence)) for rows in output]
    count = output.shape[1] - 4 if classes is None else classes
    return [suppress(likely_boxes(planes[: 4 + count].T, thresholds)) for planes in output]


def holds_queries(shape: Sequence[int], classes: int) -> bool:
    """Tell [B, N, 4 + C] from [B, 4 + C, anchors]: small inputs have as few anchors as there are channels."""
    return shape[2] == 4 + classes and shape[1] > shape[2]


def holds_labels(queries: NDArray[np.float32], classes: int | None) -> bool:
    """Tell queries [B, N, 6] that end in score and class, as newer exporters write them, from two class scores."""
    return queries.shape[2] == 6 and (classes != 2 or bool((queries[..., 5] % 1 == 0).all()))


def _corners(rows: NDArray[np.float32]) -> Detections:
    """Return rows that begin with centre and size as rows that begin with two corners."""
    half = rows[:, 2:4] / 2
    return np.concatenate([rows[:, :2] - half, rows[:, :2] + half, rows[:, 4:6]], axis=1).astype(np.float32)


def top_classes(scores: NDArray[np.float32], count: int = 5) -> Detections:
    """Return the best classes of one image as float32 [count, 2]: score, class."""
    best = np.argsort(-scores)[:count]
    return np.stack([scores[best], best], axis=1).astype(np.float32)


def likely_boxes(rows: NDArray[np.float32], thresholds: Thresholds = SHOWN) -> Detections:
    """Keep the boxes that some class passes the threshold in.

    Args:
        rows: float32 [n, 4 + C]: centre x, centre y, width, height, class scores.
        thresholds: What counts as found.

    Returns:
        float32 [m, 6]: x1, y1, x2, y2, score, class, best first, at most 30,000.
    """
    if thresholds.every_class:
        box, label = np.nonzero(rows[:, 4:] > thresholds.confidence)
    else:
        box = np.flatnonzero(rows[:, 4:].max(axis=1) > thresholds.confidence)
        label = rows[box, 4:].argmax(axis=1)
    score = rows[box, 4 + label]
    order = np.argsort(-score, kind="stable")[:MAX_CANDIDATES]
    centre, half = rows[box[order], :2], rows[box[order], 2:4] / 2
    columns = (centre - half, centre + half, score[order, None], label[order, None])
    return np.concatenate(columns, axis=1).astype(np.float32)


def suppress(boxes: Detections, iou: float = IOU) -> Detections:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: float32 [n, 6]: x1, y1, x2, y2, score, class, best first.
        iou: A box that overlaps a better one of its class by more than this is dropped.

    Returns:
        float32 [m, 6], best first, at most 300.
    """
    low, high, label = boxes[:, :2], boxes[:, 2:4], boxes[:, 5]
    area = (high - low).prod(axis=1)
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and len(kept) < MAX_DETECTIONS:
        best, left = left[0], left[1:]
        kept.append(int(best))
        side = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
        shared = side.clip(0).prod(axis=1)
        overlap = shared / (area[best] + area[left] - shared + 1e-9)
        left = left[(overlap <= iou) | (label[left] != label[best])]
    return boxes[kept]
