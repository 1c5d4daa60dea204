"""Ground truth in COCO's form from label files, one a image, and the sizes of images as they are decoded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.errors import DataError

_ROTATED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_TURNED_FORMATS = {"JPEG", "MPO", "PNG", "AVIF"}  # formats whose orientation OpenCV applies when it decodes
_TOLERANCE = 0.01  # how far outside [0, 1] the host accepts a label's coordinates


@dataclass(frozen=True)
class LabelRow:
    """One object of a label file, relative to the image.

    Attributes:
        box: Class index, centre x, centre y, width and height.
        polygon: x and y of each corner in turn; empty where the row is a box.
        keypoints: The numbers after the box of a pose data set; empty in others.
    """

    box: tuple[int, float, float, float, float]
    polygon: tuple[float, ...] = ()
    keypoints: tuple[float, ...] = ()


def image_size(path: Path | str) -> tuple[int, int]:
    """Read an image's width and height in pixels from its header, EXIF orientation applied.

    Raises:
        DataError: The file is missing or not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.format in _TURNED_FORMATS and image.getexif().get(274) in _ROTATED
    except (OSError, ImportError) as error:  # ImportError: a format that needs a plug-in
        raise DataError(f"cannot read the image {path}: {error}.") from error
    return (height, width) if turned else (width, height)


def coco_from_yolo(
    image_files: Sequence[Path | str],
    label_files: Sequence[Path | str],
    names: Mapping[int, str],
    *,
    keypoint_columns: int = 0,
    keypoint_size: int = 0,
    size_of: Callable[[Path], tuple[int, int]] = image_size,
) -> dict[str, Any]:
    """Build a COCO ground truth from YOLO label files.

    A row is ``class x y width height``, in a pose data set followed by its key points, or ``class x1 y1 x2 y2 x3 y3
    ...`` (a polygon, of which the box around it is taken), all relative to the image. Polygons become
    ``segmentation``, key points ``keypoints`` and ``num_keypoints``. Rows that repeat another are dropped, as trainers
    drop them. An image whose label file is missing or empty is background.

    Args:
        image_files: The images; the first gets id 1.
        label_files: One path per image.
        names: Class index -> class name; class 0 becomes category 1.
        keypoint_columns: How many numbers of a pose data set follow the box in each row.
        keypoint_size: How many of them are of one key point: x, y and visibility (0: not labelled), or 2, where a
            negative coordinate says so. With 0 they are ignored.
        size_of: Gives width and height in pixels of an image as it is decoded.

    Returns:
        A COCO dictionary with ``images``, ``annotations`` and ``categories``; lengths in pixels.

    Raises:
        DataError: A row is malformed (named by file and line), an image is unreadable or listed twice.
    """
    files = [os.fspath(path) for path in image_files]
    for path, count in Counter(files).items():
        if count > 1:
            raise DataError(f"the image {path} is listed {count} times.")
    root = os.path.commonpath([os.path.dirname(path) for path in files]) if files else ""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, label) in enumerate(zip(image_files, label_files, strict=True), start=1):
        width, height = size_of(Path(image))
        name = Path(os.path.relpath(image, root)).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for row in read_label_rows(label, len(names), keypoint_columns, keypoint_size > 0):
            where = {"id": len(annotations) + 1, "image_id": number, "category_id": row.box[0] + 1}
            annotations.append({**where, **_in_pixels(row, width, height, keypoint_size)})
    categories = [{"id": index + 1, "name": name} for index, name in sorted(names.items())]
    return {"images": images, "annotations": annotations, "categories": categories}


def _in_pixels(row: LabelRow, width: int, height: int, keypoint_size: int) -> dict[str, Any]:
    """Return what COCO says of an object, but for its numbers."""
    _, x, y, w, h = row.box
    box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
    found: dict[str, Any] = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    if row.polygon:
        scale = (width, height)
        found["segmentation"] = [[value * scale[at % 2] for at, value in enumerate(row.polygon)]]
    if row.keypoints:
        points = [
            row.keypoints[at : at + keypoint_size] for at in range(0, len(row.keypoints), keypoint_size)
        ]
        seen = [point[2] if len(point) > 2 else 2.0 * (min(point) >= 0) for point in points]
        triples = [(p[0] * width, p[1] * height, v) for p, v in zip(points, seen, strict=True)]
        found["keypoints"] = [value for triple in triples for value in triple]
        found["num_keypoints"] = sum(1 for visible in seen if visible > 0)
    return found


def class_sizes(ground_truth: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of boxes of each class of a COCO ground truth, by its name."""
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    sizes = dict.fromkeys(names.values(), 0)
    for annotation in ground_truth["annotations"]:
        sizes[names[annotation["category_id"]]] += 1
    return sizes


def read_yolo_labels(
    path: Path | str, classes: int, keypoint_columns: int = 0
) -> list[tuple[int, float, float, float, float]]:
    """Return class index, centre x, centre y, width and height of each row: see :func:`read_label_rows`."""
    return [row.box for row in read_label_rows(path, classes, keypoint_columns)]


def read_label_rows(
    path: Path | str, classes: int, keypoint_columns: int = 0, with_keypoints: bool = False
) -> list[LabelRow]:
    """Read one YOLO label file.

    Args:
        path: The label file; a missing one means background.
        classes: Number of classes of the data set.
        keypoint_columns: How many numbers follow the box in each row of a pose data set.
        with_keypoints: Keep them; else rows that differ in them alone are one.

    Returns:
        Each different row.

    Raises:
        DataError: A row is malformed; the text names file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the label file {path}: {error}.") from error
    rows: dict[tuple[float, ...], LabelRow] = {}
    lengths: set[bool] = set()
    for number, line in enumerate(lines, start=1):
        if not line.split():
            continue
        try:
            row, keypoints = [float(word) for word in line.split()], list[float]()
            if keypoint_columns and len(row) == 5 + keypoint_columns:
                row, keypoints = row[:5], row[5:] if with_keypoints else []
            polygon = () if len(row) == 5 else tuple(row[1:])
            found = LabelRow(_box_of_row(row, classes), polygon, tuple(keypoints))
            lengths.add(len(row) == 5)
            if len(lengths) == 2:
                raise ValueError("boxes and polygons are mixed in one file")
            key = tuple(np.asarray([*row, *keypoints], dtype=np.float32).tolist())
            rows.setdefault(key, found)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}.") from error
    return list(rows.values())


def _box_of_row(row: list[float], classes: int) -> tuple[int, float, float, float, float]:
    """Turn the numbers of one label row into class and box; ValueError says what is wrong with them."""
    index, *numbers = row
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError(f"expected 5 columns, or a class and at least 3 points, got {len(row)} columns")
    if not 0 <= index < classes or index != int(index):
        raise ValueError(f"class {row[0]:g} is not one of 0 to {classes - 1}")
    outside = [number for number in numbers if not -_TOLERANCE <= number <= 1 + _TOLERANCE]
    if outside:
        raise ValueError(f"coordinate {outside[0]:g} is outside the image: coordinates go from 0 to 1")
    if len(numbers) == 4:
        x, y, width, height = numbers
        if min(width, height) < 0:
            raise ValueError(f"width {width:g} and height {height:g} must not be negative")
        return int(index), x, y, width, height
    left, right, top, bottom = min(numbers[::2]), max(numbers[::2]), min(numbers[1::2]), max(numbers[1::2])
    return int(index), (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
