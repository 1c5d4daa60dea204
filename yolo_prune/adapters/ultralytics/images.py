"""Images as the host's validation sees them, from a list of files: no label scan and no cache file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.dataset import YOLODataset

from yolo_prune.errors import DataError


class ListedImages(YOLODataset):  # type: ignore[misc]
    """The host's dataset for a given list of images: its loading and letterbox, and no labels."""

    def __init__(self, files: Sequence[Path], sizes: Mapping[str, tuple[int, int]], **options: Any) -> None:
        """Keep the list; ``sizes``, (height, width) by path in pixels, serves rectangular batches."""
        self._sizes = sizes
        super().__init__([os.fspath(path) for path in files], augment=False, **options)

    def get_img_files(self, img_path: list[str]) -> list[str]:
        """Return the list as it is, where the host would search folders."""
        return list(img_path)

    def get_labels(self) -> list[dict[str, Any]]:
        """Return one empty label for each image, where the host would scan and cache label files."""
        return [
            {
                "im_file": path,
                "shape": self._sizes.get(path, (0, 0)),
                "cls": np.zeros((0, 1), dtype=np.float32),
                "bboxes": np.zeros((0, 4), dtype=np.float32),
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for path in self.im_files
        ]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load one image; an unreadable one is named."""
        try:
            return dict(super().__getitem__(index))
        except FileNotFoundError as error:
            raise DataError(f"cannot read the image {self.im_files[index]}.") from error


def letterboxed(files: Sequence[Path], imgsz: int, yaml: Mapping[str, Any]) -> ListedImages:
    """Return the images as square uint8 tensors, resized and padded as for validation.

    Args:
        files: The images.
        imgsz: Side of the square, in pixels.
        yaml: What ``read_data_yaml`` returned.
    """
    return ListedImages(files, {}, data=dict(yaml), imgsz=imgsz, task="detect")


def rectangular(
    files: Sequence[Path],
    sizes: Mapping[str, tuple[int, int]],
    imgsz: int,
    yaml: Mapping[str, Any],
    *,
    batch: int,
    stride: int,
) -> ListedImages:
    """Return the images in the order and the padded shapes of the host's rectangular validation batches.

    Args:
        files: The images.
        sizes: Height and width in pixels of each image, by path.
        imgsz: Longest side of the input, in pixels.
        yaml: What ``read_data_yaml`` returned.
        batch: Images per batch; images of one batch share a shape.
        stride: The model's largest stride, in pixels.
    """
    return ListedImages(
        files,
        sizes,
        data=dict(yaml),
        imgsz=imgsz,
        task="detect",
        rect=True,
        batch_size=batch,
        stride=stride,
        pad=0.5,
    )
