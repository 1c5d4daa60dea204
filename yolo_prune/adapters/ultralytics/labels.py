"""What is in the training images that recovery measures on, for criteria that have to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_prune.accuracy.classes import ClassificationData
from yolo_prune.accuracy.labels import read_yolo_labels
from yolo_prune.adapters.ultralytics.classify import cropped, resolve_classes
from yolo_prune.adapters.ultralytics.data import host_image_size, images_in_use
from yolo_prune.adapters.ultralytics.verify import label_files_of, load_drawn
from yolo_prune.cost import FloatArray
from yolo_prune.criteria.calibration import Labels
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes.images import placed


def calibration_labels(
    source: Mapping[str, Any] | ClassificationData,
    imgsz: ImageSize,
    *,
    images: int,
    seed: int = 0,
    task: str = "detect",
    files: Sequence[Path] | None = None,
) -> list[Labels]:
    """Return what is in the training images that recovery draws, where it lies in the input.

    Args:
        source: What ``read_data_yaml`` returned, or folders of a classifier's images.
        imgsz: Size of the input, in pixels.
        images: How many images are drawn.
        seed: Of the draw.
        task: The host's name for what the model does.
        files: The images to draw from, where the host has chosen them already.

    Raises:
        DataError: Images are missing or cannot be decoded, or a label file is malformed.
    """
    if isinstance(source, ClassificationData):
        train = resolve_classes(source.folder, "train")
        index = {name: number for number, name in train.names.items()}
        given = train.image_files if files is None else files
        return load_drawn(given, images, seed, lambda file: _class_of(file, train.root, index))
    given = images_in_use(source, "train", task) if files is None else files
    return load_drawn(given, images, seed, lambda file: _boxes_in(file, imgsz, source))


def _class_of(file: Path, root: Path, index: Mapping[str, int]) -> Labels | None:
    """Return the class of an image; None where it cannot be decoded: another one was measured in its place."""
    if cropped(file, lambda image: torch.ones(1)) is None:
        return None
    return Labels([index[file.relative_to(root).parts[0]]])


def _boxes_in(file: Path, imgsz: ImageSize, yaml: Mapping[str, Any]) -> Labels | None:
    """Return what is in an image; None where it cannot be decoded: another one was measured in its place."""
    from yolo_prune.adapters.ultralytics.images import load_framed

    if load_framed(file, imgsz, yaml) is None:
        return None
    points, numbers = yaml.get("kpt_shape") or (0, 0)
    rows = read_yolo_labels(label_files_of([file])[0], len(yaml["names"]), int(points) * int(numbers))
    values = np.array(rows, np.float64).reshape(-1, 5)
    width, height = host_image_size(file)
    return Labels(values[:, 0].astype(np.int64), letterboxed(values[:, 1:], (height, width), imgsz))


def letterboxed(boxes: FloatArray, size: tuple[int, int], imgsz: ImageSize) -> FloatArray:
    """Return boxes of an image as they lie in the letterboxed input.

    Args:
        boxes: Centre x and y, width and height as shares of the image, shape (N, 4).
        size: Height and width of the image, in pixels.
        imgsz: Of the input, in pixels.

    Returns:
        x1, y1, x2, y2 as shares of the input, shape (N, 4).
    """
    (tall, wide), (top, left) = placed(size, imgsz)
    height, width = height_width(imgsz)
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    inside: FloatArray = (corners * ([wide, tall] * 2) + ([left, top] * 2)) / ([width, height] * 2)
    return inside
