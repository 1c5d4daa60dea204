"""Resizing without an image library: OpenCV's bilinear pixels and Pillow's antialiased ones, computed by NumPy.

On random pixels they differ by at most 1 of 255 from ``cv2.resize`` with ``INTER_LINEAR``, which rounds its weights to
1/2048, and by nothing or 1 from Pillow's ``BILINEAR``, whose weights are rounded here as there.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.imgsz import height_width

Pixels = NDArray[np.uint8]
_ONE = float(1 << 22)  # Pillow's weights are whole numbers of this many parts


def resize_linear(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize by linear interpolation between the nearest pixels: by OpenCV where it is installed, else by NumPy.

    Args:
        image: uint8 [height, width, channels].
        size: New height and width in pixels.

    Returns:
        uint8 [*size, channels].
    """
    height, width = height_width(size)
    if has_cv2():
        import cv2

        resized: Any = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized, dtype=np.uint8).reshape(height, width, image.shape[2])
    return linear_by_numpy(image, (height, width))


def resize_smoothly(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize by linear interpolation over all pixels that a new one covers: by Pillow where it is, else by NumPy.

    Args:
        image: uint8 [height, width, channels].
        size: New height and width in pixels.

    Returns:
        uint8 [*size, channels].
    """
    try:
        from PIL import Image as Pillow
    except ImportError:
        return smooth_by_numpy(image, size)
    planes = [image] if image.shape[2] == 3 else np.split(image, image.shape[2], axis=2)
    drawn = [
        Pillow.fromarray(np.squeeze(plane, axis=2) if plane.shape[2] == 1 else plane) for plane in planes
    ]
    resized = [np.asarray(each.resize(size[::-1], Pillow.Resampling.BILINEAR)) for each in drawn]
    return np.dstack(resized)


@functools.cache
def has_cv2() -> bool:
    """Tell whether OpenCV is installed and can be imported: on a bare server its libraries may be missing."""
    try:
        import cv2
    except ImportError:
        return False
    return hasattr(cv2, "resize")


def resized_by() -> str:
    """Return the name and version of what :func:`resize_linear` resizes with: it is part of what is timed."""
    if not has_cv2():
        return f"NumPy {np.__version__}"
    import cv2

    return f"OpenCV {cv2.__version__}"


def linear_by_numpy(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Do as ``cv2.resize`` with ``INTER_LINEAR`` does, rows first."""
    low, high, share = _neighbours(image.shape[0], size[0])
    rows = _between(image[low], image[high], share[:, None, None])
    low, high, share = _neighbours(image.shape[1], size[1])
    mixed = _between(rows[:, low], rows[:, high], share[None, :, None])
    pixels: Pixels = (mixed + np.float32(0.5)).astype(np.uint8)
    return pixels


def _between(first: NDArray[Any], second: NDArray[Any], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return first + share * (second - first) as float32."""
    start = first.astype(np.float32)
    mixed: NDArray[np.float32] = start + share * (second.astype(np.float32) - start)
    return mixed


@functools.lru_cache(maxsize=64)
def _neighbours(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return for every new pixel the two old ones that it lies between, and how far it is on the way."""
    at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.intp)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)


def smooth_by_numpy(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Do as Pillow's ``BILINEAR`` does: columns first, rounded to bytes, then rows."""
    found = image
    if size[1] != image.shape[1]:
        found = _rows_weighed(found.transpose(1, 0, 2), size[1]).transpose(1, 0, 2)
    return found if size[0] == image.shape[0] else _rows_weighed(found, size[0])


def _rows_weighed(image: Pixels, new: int) -> Pixels:
    """Give an image another number of rows."""
    sums = _coverage(len(image), new) @ image.reshape(len(image), -1).astype(np.float64)
    return _weighed(sums).reshape(new, *image.shape[1:])


def _weighed(sums: NDArray[np.float64]) -> Pixels:
    """Round sums of bytes times whole weights, all of them exact in float64, half up."""
    pixels: Pixels = np.clip(np.floor(sums / _ONE + 0.5), 0, 255).astype(np.uint8)
    return pixels


@functools.lru_cache(maxsize=64)
def _coverage(old: int, new: int) -> NDArray[np.float64]:
    """Return what every old pixel counts in every new one: a triangle as wide as the new pixels, shape (new, old)."""
    scale = max(old / new, 1.0)
    centre = (np.arange(new) + 0.5) * (old / new)
    distance = np.abs(np.arange(old)[None] + 0.5 - centre[:, None]) / scale
    weights = np.maximum(1.0 - distance, 0.0)
    counted: NDArray[np.float64] = np.floor(weights / weights.sum(axis=1, keepdims=True) * _ONE + 0.5)
    return counted
