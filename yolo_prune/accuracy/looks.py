"""What a model finds in single images beside what is there: for eyes, not for numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.accuracy.bootstrap import SURE, ImageSample


@dataclass(frozen=True)
class Thing:
    """One object, there or found.

    Attributes:
        label: Name of its class.
        score: How sure the model is, in [0, 1]; None of what is there.
        box: x, y, width and height in pixels of the image; None of a whole image's class.
        mask: Polygons or run lengths as COCO writes them, None where there are none.
        points: x, y and visibility of each key point in turn.
    """

    label: str
    score: float | None = None
    box: tuple[float, ...] | None = None
    mask: Any = None
    points: tuple[float, ...] = ()


@dataclass(frozen=True)
class Look:
    """One image, what is there and what a model finds."""

    file: Path
    truth: tuple[Thing, ...]
    found: tuple[Thing, ...]


def looks_of(
    files: Mapping[int, Path],
    ground_truth: Mapping[str, Any],
    detections: Iterable[Mapping[str, Any]],
    shape: str | None = None,
) -> list[Look]:
    """Put annotations and detections of some images beside each other.

    Args:
        files: Id of an image in the ground truth -> its file.
        ground_truth: A COCO dictionary.
        detections: COCO results; those of a score below ``SURE`` are left out.
        shape: What is shown beside the box: ``segmentation``, ``keypoints`` or nothing.
    """
    names = {each["id"]: str(each["name"]) for each in ground_truth["categories"]}
    sure = [each for each in detections if each["score"] >= SURE]
    there, found = (
        {
            number: tuple(_thing(e, names, shape) for e in entries if e["image_id"] == number)
            for number in files
        }
        for entries in (ground_truth["annotations"], sorted(sure, key=lambda each: float(each["score"])))
    )
    return [Look(file, there[number], found[number]) for number, file in files.items()]


def _thing(entry: Mapping[str, Any], names: Mapping[Any, str], shape: str | None) -> Thing:
    extra = entry.get(shape) if shape else None
    return Thing(
        names[entry["category_id"]],
        entry.get("score"),
        tuple(entry["bbox"]),
        extra if shape == "segmentation" else None,
        tuple(extra) if extra and shape == "keypoints" else (),
    )


@dataclass(frozen=True)
class Differing:
    """An image on which two models differ: its place in their samples, and how right each of them is there."""

    index: int
    before: float
    after: float


def differing_images(before: ImageSample, after: ImageSample, most: int) -> list[Differing]:
    """Return the images on which two models differ most in :meth:`ImageSample.correctness`, largest difference first.

    Of equal differences those where the second model is worse come first.
    """
    ours, theirs = before.correctness(), after.correctness()
    change = theirs - ours
    order = np.lexsort((change, -np.abs(change)))
    chosen = [int(index) for index in order[:most] if change[index]]
    return [Differing(index, float(ours[index]), float(theirs[index])) for index in chosen]
