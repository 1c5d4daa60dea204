"""From an image to the canvas that a network sees, and boxes there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_prune.errors import DataError
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes.images import Image, centre_crop, import_cv2, letterbox, read_image


@dataclass(frozen=True)
class Frame:
    """Where an image lies in a canvas.

    Attributes:
        scale: Canvas pixels per image pixel, across and down.
        corner: Its upper left corner in the canvas, x and y in pixels.
        size: Width and height of the image in pixels.
    """

    scale: tuple[float, float]
    corner: tuple[int, int]
    size: tuple[int, int]

    def into(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return boxes (n, 4) of the image, x1, y1, x2, y2 in its pixels, in pixels of the canvas."""
        scale, corner = np.array([*self.scale, *self.scale]), np.array([*self.corner, *self.corner])
        moved: NDArray[np.float32] = (boxes * scale + corner).astype(np.float32)
        return moved

    def back(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return boxes of the canvas in pixels of the image, clipped to it."""
        scale, corner = np.array([*self.scale, *self.scale]), np.array([*self.corner, *self.corner])
        limit = np.array([*self.size, *self.size])
        moved: NDArray[np.float32] = np.clip((boxes - corner) / scale, 0, limit).astype(np.float32)
        return moved


def framed(image: Image, imgsz: ImageSize, *, stretched: bool = False) -> tuple[Image, Frame]:
    """Put an image on a canvas: letterboxed, as every runtime here does it, or stretched to fill it.

    Args:
        image: uint8 (height, width, 3).
        imgsz: Size of the canvas in pixels.
        stretched: Fill it.

    Returns:
        uint8 (*imgsz, 3), and where the image is.
    """
    height, width = image.shape[:2]
    tall, wide = height_width(imgsz)
    if stretched:
        resized: Image = import_cv2().resize(image, (wide, tall))
        return resized, Frame((wide / width, tall / height), (0, 0), (width, height))
    scale = min(tall / height, wide / width)
    new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
    corner = round((wide - new_width) / 2 - 0.1), round((tall - new_height) / 2 - 0.1)
    frame = Frame((new_width / width, new_height / height), corner, (width, height))
    return letterbox(image, imgsz), frame


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
