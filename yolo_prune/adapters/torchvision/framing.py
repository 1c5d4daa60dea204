"""From image files to the batches that a network sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yolo_prune.accuracy.box_data import BoxData
from yolo_prune.criteria.calibration import Labels
from yolo_prune.errors import DataError
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes.framing import Frame, framed
from yolo_prune.runtimes.images import Image, centre_crop, read_image


def as_tensor(images: Sequence[Image]) -> Tensor:
    """Return BGR images of one size as float32 (B, 3, H, W), RGB in [0, 1]."""
    planes = np.stack(images)[..., ::-1].transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(planes)).float() / 255


def load_framed(files: Sequence[Path], imgsz: ImageSize, stretched: bool) -> tuple[Tensor, list[Frame]]:
    """Load images for a detector: float32 (B, 3, H, W), RGB in [0, 1], and where each of them lies."""
    pairs = [framed(read_image(file, 3), imgsz, stretched=stretched) for file in files]
    return as_tensor([image for image, _ in pairs]), [frame for _, frame in pairs]


def load_cropped(files: Sequence[Path], imgsz: ImageSize) -> Tensor:
    """Load images for a classifier: shorter side to the input, cut at the centre; float32 (B, 3, H, W) in [0, 1]."""
    return as_tensor([centre_crop(read_image(file, 3), imgsz) for file in files])


def drawn(files: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Draw images at random without repetition; all of them where there are fewer.

    Raises:
        DataError: There are none.
    """
    if not files:
        raise DataError("there are no training images to measure on.")
    order = np.random.default_rng(seed).permutation(len(files))[:count]
    return [files[index] for index in order.tolist()]


def box_labels(data: BoxData, imgsz: ImageSize, images: int, seed: int, *, stretched: bool) -> list[Labels]:
    """Return the objects of images that :func:`drawn` chooses, where they lie in the input."""
    found, targets = [], dict(zip(data.image_files, data.targets, strict=True))
    for file in drawn(data.image_files, images, seed):
        boxes, classes = targets[file][:2]
        frame = framed(read_image(file, 3), imgsz, stretched=stretched)[1]
        height, width = height_width(imgsz)
        inside = frame.into(np.asarray(boxes, np.float32).reshape(-1, 4)) / np.array([width, height] * 2)
        found.append(Labels(np.asarray(classes), inside))
    return found
