"""Ground truth in COCO's form from label files, one a image, and the sizes of images as they are decoded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.errors import DataError

_ROTATED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_TURNED_FORMATS = {"JPEG", "MPO", "PNG", "AVIF"}  # formats whose orientation OpenCV applies when it decodes
_TOLERANCE = 0.01  # how far outside [0, 1] the host accepts a label's coordinates


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
    size_of: Callable[[Path], tuple[int, int]] = image_size,
) -> dict[str, Any]:
    """Build a COCO ground truth from YOLO label files.

    A row is ``class x y width height`` or ``class x1 y1 x2 y2 x3 y3 ...`` (a polygon, turned into the box
    around it), all relative to the image. Rows that repeat another are dropped, as trainers drop them.
    An image whose label file is missing or empty is background.

    Args:
        image_files: The images; the first gets id 1.
        label_files: One path per image.
        names: Class index -> class name; class 0 becomes category 1.
        keypoint_columns: How many numbers of a pose data set follow the box in each row; they are ignored.
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
        for index, x, y, w, h in read_yolo_labels(label, len(names), keypoint_columns):
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": index + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index + 1, "name": name} for index, name in sorted(names.items())]
    return {"images": images, "annotations": annotations, "categories": categories}


def read_yolo_labels(
    path: Path | str, classes: int, keypoint_columns: int = 0
) -> list[tuple[int, float, float, float, float]]:
    """Read one YOLO label file.

    Args:
        path: The label file; a missing one means background.
        classes: Number of classes of the data set.
        keypoint_columns: How many numbers follow the box in each row of a pose data set.

    Returns:
        Class index, centre x, centre y, width and height (relative to the image) of each different row.

    Raises:
        DataError: A row is malformed; the text names file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the label file {path}: {error}.") from error
    boxes: dict[tuple[float, ...], tuple[int, float, float, float, float]] = {}
    lengths: set[bool] = set()
    for number, line in enumerate(lines, start=1):
        if not line.split():
            continue
        try:
            row = [float(word) for word in line.split()]
            if keypoint_columns and len(row) == 5 + keypoint_columns:
                row = row[:5]
            box = _box_of_row(row, classes)
            lengths.add(len(row) == 5)
            if len(lengths) == 2:
                raise ValueError("boxes and polygons are mixed in one file")
            key = tuple(np.asarray(row, dtype=np.float32).tolist())
            boxes.setdefault(key, box)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}.") from error
    return list(boxes.values())


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
