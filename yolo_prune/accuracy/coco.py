"""From predictions to COCO AP of boxes, masks or key points; the numbers are those of pycocotools, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.accuracy.bootstrap import RECALLS, FloatArray, ImageMatches, IntArray
from yolo_prune.accuracy.coco_input import check_detections, checked_annotations
from yolo_prune.accuracy.matching import (
    THRESHOLDS,
    FoundOfClass,
    ObjectsOfClass,
    Pairs,
    match,
    matches_of,
    precision_of,
)
from yolo_prune.accuracy.shapes import BOXES, SIZES, Compared
from yolo_prune.errors import DataError


@dataclass(frozen=True)
class CocoResult:
    """COCO average precision of one set of detections.

    Attributes:
        ap: AP averaged over IoU 0.50 to 0.95 and over classes, in [0, 1].
        ap50: AP at IoU 0.50, in [0, 1].
        ap75: AP at IoU 0.75, in [0, 1].
        ap_small: AP of boxes under 32 x 32 pixels, or None where the ground truth has none or it was not asked for.
        ap_medium: AP of boxes from 32 x 32 to 96 x 96 pixels, or None where there are none.
        ap_large: AP of boxes over 96 x 96 pixels, or None where there are none.
        per_class: AP (IoU 0.50 to 0.95) of every class that has a box in the ground truth.
        images: Number of images evaluated.
        boxes: Number of ground-truth boxes (masks, objects with key points) that count; crowd regions do not.
        evaluator: What computed the numbers, with the version of what their overlaps are from.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    per_class: dict[str, float]
    images: int
    boxes: int
    evaluator: str


def coco_ap(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> CocoResult:
    """Score detections against COCO ground truth: boxes, at most 100 per class and image.

    Boxes marked ``iscrowd`` are regions: detections inside them count neither as right nor as wrong.
    Every number is that of pycocotools, whose overlaps are taken; what is matched is found here, class by class for
    all images at once (5000 images, 80 classes: seconds in place of minutes), and memory grows with the objects and
    detections alone. Ids of annotations do not matter: pycocotools takes a match with one of id 0 for no match.

    Args:
        ground_truth: A COCO dictionary: ``images`` (id), ``annotations`` (image_id, category_id, bbox as x,
            y, width, height in pixels; area and iscrowd where known) and ``categories`` (id, name).
        detections: COCO results: image_id, category_id, bbox (x, y, width, height in pixels) and score.

    Returns:
        The twelve-number summary's AP part and the AP of every class, each in [0, 1].

    Raises:
        DataError: Ids are duplicated or unknown, a number is not finite, or there is no box to find.

    Example:
        >>> boxes = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}]
        >>> truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cell"}], "annotations": boxes}
        >>> round(coco_ap(truth, [{**boxes[0], "score": 0.9}]).ap50, 6)
        1.0
    """
    return coco_ap_by_image(ground_truth, detections)[0]


def coco_ap_by_image(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    by_size: bool = True,
    compared: Compared = BOXES,
) -> tuple[CocoResult, ImageMatches]:
    """Score detections as :func:`coco_ap` does, and return the matches of each image as well.

    Masks are scored with at most 100 detections per class and image as boxes are, key points with at most 20, by OKS in
    place of IoU and without small objects, as COCO defines it. Objects without a labelled key point are ignored.

    Args:
        ground_truth: As for :func:`coco_ap`; with ``segmentation`` (and height and width of the images) for masks, with
            ``keypoints`` (x, y, visibility of each) for key points.
        detections: As for :func:`coco_ap`, with the same keys; masks as compressed run lengths.
        by_size: Match small, medium and large boxes too, each for itself; without it there is no AP of theirs.
        compared: Boxes, masks or key points.

    Raises:
        DataError: As for :func:`coco_ap`, or an object or a detection lacks what is compared.
    """
    annotations = checked_annotations(ground_truth, compared)
    check_detections(ground_truth, detections, compared)
    objects = sum(1 for each in annotations if not each["iscrowd"] and compared.counts(each))
    if not objects:
        raise DataError(
            f"no ground-truth {compared.name} in {len(ground_truth['images'])} images: AP is not defined."
        )
    images = _numbered(ground_truth["images"])
    categories = _numbered(ground_truth["categories"])
    sizes = compared.sizes if by_size else compared.sizes[:1]
    precision, matches = _evaluated(
        _Columns.of(annotations, images, categories),
        _Columns.of(detections, images, categories, compared.limit),
        *(len(images), len(categories)),
        np.array([SIZES[name] for name in sizes]),
        compared,
    )
    names = {each["id"]: str(each.get("name", each["id"])) for each in ground_truth["categories"]}
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    per_class: dict[str, float] = {}
    for category, index in categories.items():
        value = _mean(precision[:, :, index, 0])
        if value is not None:
            name = names[category]
            per_class[f"{name} (id {category})" if name in repeated else name] = value
    by_name = {name: _mean(precision[..., index]) for index, name in enumerate(sizes)}
    result = CocoResult(
        ap=by_name["all"] or 0.0,
        ap50=_mean(precision[0, :, :, 0]) or 0.0,
        ap75=_mean(precision[5, :, :, 0]) or 0.0,
        ap_small=by_name.get("small"),
        ap_medium=by_name.get("medium"),
        ap_large=by_name.get("large"),
        per_class=per_class,
        images=len(images),
        boxes=objects,
        evaluator=f"pycocotools {version('pycocotools')} (overlaps; matched by yolo_prune)",
    )
    return result, matches


def _numbered(entries: Sequence[Mapping[str, Any]]) -> dict[Any, int]:
    """Return the ids in ascending order, each with its place among them."""
    return {each: index for index, each in enumerate(sorted(each["id"] for each in entries))}


def _mean(precision: FloatArray) -> float | None:
    """Average the entries that are defined; classes without boxes are marked by -1."""
    defined = precision[precision > -1]
    return float(np.mean(defined)) if defined.size else None


def _evaluated(
    truth: _Columns, found: _Columns, images: int, categories: int, sizes: FloatArray, compared: Compared
) -> tuple[FloatArray, ImageMatches]:
    """Match class by class, so that memory holds what was found and the matches of one class.

    Returns:
        Precision (IoU, recall, class, size), and the matches at the first size.
    """
    precision = np.full((len(THRESHOLDS), len(RECALLS), categories, len(sizes)), -1.0)
    classes = []
    for kind in range(categories):
        mine, theirs = truth.of_class(kind), found.of_class(kind)
        objects = [truth.entries[index] for index in mine]
        known = ObjectsOfClass(
            truth.image[mine],
            np.array([each["area"] for each in objects], dtype=np.float64),
            np.array([each["iscrowd"] for each in objects], dtype=bool),
            np.array([each["iscrowd"] or not compared.counts(each) for each in objects], dtype=bool),
        )
        column = compared.column([found.entries[index] for index in theirs])
        seen = FoundOfClass(found.image[theirs], found.score[theirs], compared.areas(column))
        matched = match(seen, known, _pairs(seen, known, column, objects, compared), sizes)
        precision[:, :, kind] = precision_of(seen, matched)
        classes.append(matches_of(seen, known, matched, images))
    return precision, ImageMatches(images, tuple(classes))


def _pairs(
    found: FoundOfClass,
    objects: ObjectsOfClass,
    column: NDArray[Any],
    entries: Sequence[Mapping[str, Any]],
    compared: Compared,
) -> Pairs:
    """Compare what was found in each image with its objects, and keep the pairs that may match."""
    both = np.intersect1d(found.image, objects.image)
    ends = [np.searchsorted(one.image, both, side) for one in (found, objects) for side in ("left", "right")]
    numbers, places, overlaps = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for begin, end, first, last in zip(*(each.tolist() for each in ends), strict=True):
        overlap = compared.overlaps(column[begin:end], entries[first:last])
        rows, columns = np.nonzero(overlap >= THRESHOLDS[0])
        numbers.append(rows + begin)
        places.append(columns + first)
        overlaps.append(overlap[rows, columns])
    return Pairs(np.concatenate(numbers), np.concatenate(places), np.concatenate(overlaps))


@dataclass(frozen=True, eq=False)
class _Columns:
    """Annotations or detections, ordered by class, by image and, best first, by score.

    Attributes:
        entries: As they came.
        image: Index of the image of each of them, shape (N,).
        score: Shape (N,); ones for annotations.
        order: Their indices in that order.
        starts: Where each class begins in it.
    """

    entries: Sequence[Mapping[str, Any]]
    image: IntArray
    score: FloatArray
    order: IntArray
    starts: IntArray

    @classmethod
    def of(
        cls,
        entries: Sequence[Mapping[str, Any]],
        images: Mapping[Any, int],
        kinds: Mapping[Any, int],
        limit: int | None = None,
    ) -> _Columns:
        """Sort entries, and leave out all but so many of an image and class."""
        count = len(entries)
        image = np.fromiter((images[each["image_id"]] for each in entries), np.int64, count)
        kind = np.fromiter((kinds[each["category_id"]] for each in entries), np.int64, count)
        score = np.fromiter((each.get("score", 1.0) for each in entries), np.float64, count)
        order = np.lexsort((-score, image, kind))
        group = kind[order] * len(images) + image[order]
        if limit is not None:
            order = order[np.arange(count) - np.searchsorted(group, group) < limit]
        starts = np.searchsorted(kind[order], np.arange(len(kinds) + 1))
        return cls(entries, image, score, order, starts)

    def of_class(self, kind: int) -> IntArray:
        """Return the indices of one class's entries."""
        return self.order[self.starts[kind] : self.starts[kind + 1]]
