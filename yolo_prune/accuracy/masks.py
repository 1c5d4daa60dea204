"""Masks in run lengths, as COCO compares them: made of the part inside a box, without the empty image around it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def run_lengths(part: NDArray[np.bool_], left: int, top: int, shape: tuple[int, int]) -> dict[str, Any]:
    """Return a mask in COCO's compressed run lengths.

    Args:
        part: The mask's pixels in a window of the image, shape (rows, columns); all others are empty.
        left: Column of the image at which the window begins.
        top: Its row.
        shape: Height and width of the image, in pixels.

    Returns:
        ``size`` (height, width) and ``counts`` (bytes: lengths of empty and filled runs, column by column).

    Example:
        >>> run_lengths(np.ones((2, 1), dtype=bool), left=1, top=0, shape=(3, 2))
        {'size': [3, 2], 'counts': b'321'}
    """
    from pycocotools.mask import frPyObjects

    height, width = shape
    rows, columns = part.shape
    canvas = np.zeros((columns, height), dtype=bool)
    canvas[:, top : top + rows] = part.T
    flat, begin = canvas.ravel(), left * height
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + begin + 1
    first, last = [begin] * bool(flat[:1].any()), [begin + len(flat)] * bool(flat[-1:].any())
    counts = np.diff(np.concatenate([[0], first, changes, last, [height * width]]).astype(np.int64))
    counts = counts[: len(counts) - (counts[-1] == 0)]  # it reaches the last pixel
    found: dict[str, Any] = frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return found


def pixels_between(low: float, high: float, side: int) -> tuple[int, int]:
    """Return the range of pixels whose centres lie between two coordinates of an image."""
    first = min(max(math.ceil(low - 0.5), 0), side)
    return first, min(max(math.ceil(high - 0.5), first), side)


def as_run_lengths(segmentation: Any, shape: tuple[int, int]) -> Any:
    """Return an annotation's mask in COCO's compressed run lengths.

    Args:
        segmentation: Polygons, or run lengths, compressed or not.
        shape: Height and width of the image, in pixels.
    """
    from pycocotools import mask

    if isinstance(segmentation, Mapping):
        compressed = isinstance(segmentation["counts"], (bytes, str))
        return segmentation if compressed else mask.frPyObjects(segmentation, *shape)
    return mask.merge(mask.frPyObjects(segmentation, *shape))


def filled(segmentation: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of an annotation's mask.

    Args:
        segmentation: Polygons, or run lengths, compressed or not.
        shape: Height and width of the image, in pixels.
    """
    from pycocotools import mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its arrays are made in NumPy 1's way
        pixels: NDArray[np.bool_] = mask.decode(as_run_lengths(segmentation, shape)).astype(bool)
    return pixels
