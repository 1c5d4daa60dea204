"""COCO ground truth and detections, checked: what cannot be scored is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from yolo_prune.accuracy.shapes import BOXES, Compared
from yolo_prune.errors import DataError


def checked_annotations(ground_truth: Mapping[str, Any], compared: Compared) -> list[dict[str, Any]]:
    """Check the ground truth and return its objects, with area and iscrowd filled in."""
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


def check_detections(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], compared: Compared
) -> None:
    """Check that every detection names a known image and class and holds finite numbers."""
    images = {each["id"] for each in ground_truth["images"]}
    categories = {each["id"] for each in ground_truth["categories"]}
    sound = _sound_boxes(detections)
    for index, each in enumerate(detections):
        if not sound or each["image_id"] not in images or each["category_id"] not in categories:
            what = f"detection {index}"
            _check_box(each, what, images, categories)
            if not math.isfinite(each.get("score", math.nan)):
                raise DataError(f"{what} has score {each.get('score')}; a finite number is needed.")
        if compared is not BOXES:
            compared.check_detection(each, f"detection {index}")


def _sound_boxes(detections: Sequence[Mapping[str, Any]]) -> bool:
    """Tell quickly whether all detections have their keys, four finite numbers and a finite score."""
    keys = {"image_id", "category_id", "bbox", "score"}
    if not all(keys <= each.keys() for each in detections):
        return False
    try:
        boxes = np.array([each["bbox"] for each in detections], dtype=np.float64)
        scores = np.array([each["score"] for each in detections], dtype=np.float64)
    except (TypeError, ValueError):  # of several lengths, or no numbers
        return False
    shaped = boxes.shape == (len(detections), 4) and scores.shape == (len(detections),)
    return shaped and bool(np.isfinite(boxes).all() and np.isfinite(scores).all())


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
