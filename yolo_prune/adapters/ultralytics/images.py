"""Images as the host's validation sees them, from a list of files: no label scan and no cache file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.data.dataset import YOLODataset
from ultralytics.models.rtdetr.val import RTDETRDataset

from yolo_prune.accuracy.labels import read_label_rows
from yolo_prune.errors import DataError
from yolo_prune.imgsz import ImageSize, plain_size


class _Listed:
    """Mixin for the host's datasets: given images instead of searched ones, and given labels or none."""

    def __init__(
        self,
        files: Sequence[Path],
        sizes: Sequence[tuple[int, int]] | None,
        labels: Sequence[Mapping[str, Any]] | None,
        **options: Any,
    ) -> None:
        self.files = [os.fspath(path) for path in files]
        self.given = labels or [{}] * len(self.files)
        self.sizes = sizes or [(0, 0)] * len(self.files)
        super().__init__(self.files, augment=False, **options)  # type: ignore[call-arg]

    def get_img_files(self, img_path: list[str]) -> list[str]:
        """Return the list as it is, where the host would search folders."""
        return list(img_path)

    def get_labels(self) -> list[dict[str, Any]]:
        """Return the given labels, or an empty one for each image, where the host would scan and cache label files."""
        return [
            {
                "im_file": path,
                "shape": size,
                "cls": np.zeros((0, 1), dtype=np.float32),
                "bboxes": np.zeros((0, 4), dtype=np.float32),
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
                **given,
            }
            for path, size, given in zip(self.files, self.sizes, self.given, strict=True)
        ]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load one image; an unreadable one is named."""
        host: Any = super()
        try:
            return dict(host.__getitem__(index))
        except FileNotFoundError as error:
            path = self.im_files[index]  # type: ignore[attr-defined]
            raise DataError(f"cannot read the image {path}.") from error


class LetterboxedImages(_Listed, YOLODataset):  # type: ignore[misc]
    """Resized with their proportions kept, and padded."""


class StretchedImages(_Listed, RTDETRDataset):  # type: ignore[misc]
    """Stretched to the size of the input, as RT-DETR takes them."""


def listed(
    files: Sequence[Path],
    imgsz: ImageSize,
    yaml: Mapping[str, Any],
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    stretched: bool = False,
    labels: Sequence[Mapping[str, Any]] | None = None,
    **rules: Any,
) -> YOLODataset:
    """Return a dataset of the host over a list of images; ``img`` is uint8 (channels, height, width).

    Args:
        files: The images.
        imgsz: Size of the input, in pixels; of rectangular batches the longest side.
        yaml: What ``read_data_yaml`` returned.
        sizes: Height and width in pixels of each image; needed for rectangular batches.
        stretched: Stretch to that size instead of padding.
        labels: Of each image what :func:`oriented_labels` gives, where the host's own metrics need them.
        rules: The host's ``rect``, ``batch_size``, ``stride`` and ``pad``; without them, all have the size ``imgsz``.
    """
    kind = StretchedImages if stretched else LetterboxedImages
    task = {"task": "obb"} if labels else {}
    return kind(files, sizes, labels, **task, data=dict(yaml), imgsz=plain_size(imgsz), **rules)


def oriented_labels(label_files: Sequence[Path], classes: int) -> list[dict[str, Any]]:
    """Read oriented boxes as the host does, as polygons.

    Args:
        label_files: One path an image; a missing file is background.
        classes: Number of classes.

    Returns:
        Class indices and corners, and the upright boxes around them, relative to the image.

    Raises:
        DataError: A row is malformed.
    """
    found = []
    for file in label_files:
        rows = [row for row in read_label_rows(file, classes) if row.polygon]
        found.append(
            {
                "cls": np.array([row.box[:1] for row in rows], dtype=np.float32).reshape(-1, 1),
                "bboxes": np.array([row.box[1:] for row in rows], dtype=np.float32).reshape(-1, 4),
                "segments": [np.array(row.polygon, dtype=np.float32).reshape(-1, 2) for row in rows],
            }
        )
    return found


def load_framed(file: Path, imgsz: ImageSize, yaml: Mapping[str, Any]) -> torch.Tensor | None:
    """Return one letterboxed image, uint8 (channels, height, width); None when the host cannot decode it."""
    try:
        image: torch.Tensor = listed([file], imgsz, yaml)[0]["img"]
    except DataError:
        return None
    return image
