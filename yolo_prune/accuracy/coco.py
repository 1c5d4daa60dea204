"""From predictions to COCO AP of boxes, masks or key points; the numbers are those of pycocotools, bit for bit."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from yolo_prune.accuracy.bootstrap import ImageMatches
from yolo_prune.accuracy.matching import quick_evaluation
from yolo_prune.accuracy.shapes import BOXES, Compared, Keypoints
from yolo_prune.errors import DataError

_AREAS = ("all", "small", "medium", "large")  # the third axis from the end of pycocotools' precision array


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
        evaluator: Name and version of the package that computed the numbers.
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
    """Score detections against COCO ground truth with pycocotools (boxes, at most 100 per class and image).

    Boxes marked ``iscrowd`` are regions: detections inside them count neither as right nor as wrong.
    Annotation ids are renumbered from 1: pycocotools takes a match with an annotation of id 0 for no match.

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
        by_size: Match small, medium and large boxes too, each for itself: that is three quarters of the time. Without
            it there is no AP of theirs.
        compared: Boxes, masks or key points.

    Raises:
        DataError: As for :func:`coco_ap`, or an object or a detection lacks what is compared.
    """
    annotations = _checked_annotations(ground_truth, compared)
    _check_detections(ground_truth, detections, compared)
    objects = sum(1 for each in annotations if not each["iscrowd"] and compared.counts(each))
    if not objects:
        raise DataError(
            f"no ground-truth {compared.name} in {len(ground_truth['images'])} images: AP is not defined."
        )
    areas = _AREAS if by_size else _AREAS[:1]
    evaluation = _evaluated(ground_truth, annotations, detections, areas, compared)
    precision, category_ids = np.asarray(evaluation.eval["precision"]), list(evaluation.params.catIds)
    names = {each["id"]: str(each.get("name", each["id"])) for each in ground_truth["categories"]}
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    per_class: dict[str, float] = {}
    for index, category in enumerate(category_ids):
        value = _mean(precision[:, :, index, 0, -1])
        if value is not None:
            name = names[category]
            per_class[f"{name} (id {category})" if name in repeated else name] = value
    areas = evaluation.params.areaRngLbl
    sizes = {area: _mean(precision[:, :, :, index, -1]) for index, area in enumerate(areas)}
    at = {0.5: precision[0], 0.75: precision[5]}
    result = CocoResult(
        ap=sizes["all"] or 0.0,
        ap50=_mean(at[0.5][:, :, 0, -1]) or 0.0,
        ap75=_mean(at[0.75][:, :, 0, -1]) or 0.0,
        ap_small=sizes.get("small"),
        ap_medium=sizes.get("medium"),
        ap_large=sizes.get("large"),
        per_class=per_class,
        images=len(ground_truth["images"]),
        boxes=objects,
        evaluator=f"pycocotools {version('pycocotools')}",
    )
    return result, ImageMatches.from_coco(evaluation)


def _mean(precision: np.ndarray[Any, Any]) -> float | None:
    """Average the entries that are defined; pycocotools marks classes without boxes by -1."""
    defined = precision[precision > -1]
    return float(np.mean(defined)) if defined.size else None


def _evaluated(
    ground_truth: Mapping[str, Any],
    annotations: list[dict[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    areas: Sequence[str],
    compared: Compared,
) -> Any:
    """Run pycocotools quietly on objects of some sizes.

    The precision array of what it returns is (IoU, recall, class, area, limit).
    """
    from pycocotools.coco import COCO

    base = {"images": list(ground_truth["images"]), "categories": list(ground_truth["categories"])}
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = {**base, "annotations": annotations}
        truth.createIndex()
        if detections:
            keys = ("image_id", "category_id", compared.key, "score")
            found = truth.loadRes([{key: each[key] for key in keys} for each in detections])
        else:  # loadRes reads the first detection to learn the task, so it cannot take an empty list
            found.dataset = {**base, "annotations": []}
            found.createIndex()
        evaluation = quick_evaluation()(truth, found, iouType=compared.iou_type)
        known = dict(zip(evaluation.params.areaRngLbl, evaluation.params.areaRng, strict=True))
        evaluation.params.areaRngLbl = [area for area in areas if area in known]
        evaluation.params.areaRng = [known[area] for area in evaluation.params.areaRngLbl]
        if isinstance(compared, Keypoints):
            evaluation.params.kpt_oks_sigmas = np.array(compared.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _checked_annotations(ground_truth: Mapping[str, Any], compared: Compared) -> list[dict[str, Any]]:
    """Check the ground truth and return its objects, renumbered, with area and iscrowd filled in."""
    missing = [key for key in ("images", "annotations", "categories") if key not in ground_truth]
    if missing:
        raise DataError(f"the COCO ground truth has no {' and no '.join(repr(key) for key in missing)}.")
    images = _unique_ids(ground_truth["images"], "image")
    categories = _unique_ids(ground_truth["categories"], "category")
    _unique_ids((each for each in ground_truth["annotations"] if "id" in each), "annotation")
    by_id = {each["id"]: each for each in ground_truth["images"]}
    annotations: list[dict[str, Any]] = []
    for number, each in enumerate(ground_truth["annotations"], start=1):
        what = f"annotation {each.get('id', number)}"
        _check_box(each, what, images, categories)
        x, y, width, height = each["bbox"]
        area = each.get("area")
        annotations.append(
            {
                "id": number,
                "image_id": each["image_id"],
                "category_id": each["category_id"],
                "bbox": [x, y, width, height],
                "area": width * height if area is None else area,
                "iscrowd": int(each.get("iscrowd") or 0),
                **compared.of_annotation(each, what, by_id[each["image_id"]]),
            }
        )
    return annotations


def _unique_ids(entries: Iterable[Mapping[str, Any]], kind: str) -> set[Any]:
    """Return the ids of ``entries``; every entry needs one of its own."""
    ids: set[Any] = set()
    for each in entries:
        if "id" not in each:
            raise DataError(f"the COCO ground truth has an {kind} without 'id': {dict(each)}.")
        if each["id"] in ids:
            raise DataError(f"the COCO ground truth has {kind} id {each['id']} more than once.")
        ids.add(each["id"])
    return ids


def _check_detections(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], compared: Compared
) -> None:
    """Check that every detection names a known image and class and holds finite numbers."""
    images = {each["id"] for each in ground_truth["images"]}
    categories = {each["id"] for each in ground_truth["categories"]}
    for index, each in enumerate(detections):
        what = f"detection {index}"
        _check_box(each, what, images, categories)
        if not math.isfinite(each.get("score", math.nan)):
            raise DataError(f"{what} has score {each.get('score')}; a finite number is needed.")
        compared.check_detection(each, what)


def _check_box(box: Mapping[str, Any], what: str, images: set[Any], categories: set[Any]) -> None:
    """Check one annotation or detection against the known ids."""
    if box.get("image_id") not in images:
        raise DataError(
            f"{what} refers to image_id {box.get('image_id')}, which the ground truth does not list."
        )
    if box.get("category_id") not in categories:
        raise DataError(
            f"{what} refers to category_id {box.get('category_id')}, which the ground truth does not list."
        )
    numbers = box.get("bbox", ())
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
        raise DataError(f"{what} has bbox {numbers}; four finite numbers (x, y, width, height) are needed.")
