"""Where an image lies in the canvas that a network sees, and boxes there and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes.images import Image, letterbox, placed, stretch


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
        image: uint8 (height, width, channels).
        imgsz: Size of the canvas in pixels.
        stretched: Fill it.

    Returns:
        uint8 (*imgsz, channels), and where the image is.
    """
    height, width = image.shape[:2]
    tall, wide = height_width(imgsz)
    if stretched:
        return stretch(image, imgsz), Frame((wide / width, tall / height), (0, 0), (width, height))
    (new_height, new_width), (top, left) = placed((height, width), imgsz)
    frame = Frame((new_width / width, new_height / height), (left, top), (width, height))
    return letterbox(image, imgsz), frame
