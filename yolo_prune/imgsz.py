"""An image size: the side of a square in pixels, or (height, width), as hosts and exporters write it."""

from __future__ import annotations

import math
from typing import Any

from yolo_prune.errors import ConfigError

ImageSize = int | tuple[int, int]
"""A square is always its one side, never a pair, so that equal sizes are equal values."""


def read_size(value: Any) -> ImageSize:
    """Read an image size.

    Args:
        value: 640, "640", (height, width), [height, width], "320,640" or "320x640".

    Returns:
        The side of a square, or (height, width), in pixels.

    Raises:
        ConfigError: It is none of these.

    Example:
        >>> read_size("320x640"), read_size([640, 640])
        ((320, 640), 640)
    """
    parts = value.lower().strip("[]() ").replace("x", ",").split(",") if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    sides = [_side(part) for part in parts]
    if len(sides) not in (1, 2) or None in sides:
        raise ConfigError(
            f"imgsz must be a number of pixels such as 640, or height and width such as 320,640, got '{value}'."
        )
    height, width = int(sides[0] or 0), int(sides[-1] or 0)
    return height if height == width else (height, width)


def _side(part: Any) -> int | None:
    """Return one side in pixels, None where it is no whole number."""
    if isinstance(part, bool) or not isinstance(part, (int, float, str)):
        return None
    try:
        number = float(part)
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and number == int(number) and number >= 0 else None


def height_width(size: ImageSize) -> tuple[int, int]:
    """Return height and width in pixels."""
    return size if isinstance(size, tuple) else (size, size)


def is_square(size: ImageSize) -> bool:
    """Tell whether height and width are equal."""
    return len(set(height_width(size))) == 1


def longer_side(size: ImageSize) -> int:
    """Return the larger of height and width in pixels."""
    return max(height_width(size))


def pixels(size: ImageSize) -> int:
    """Return height times width."""
    height, width = height_width(size)
    return height * width


def size_text(size: ImageSize) -> str:
    """Return a size for a reader and for names of files: ``640``, or height times width as in ``320x640``."""
    return "x".join(str(side) for side in height_width(size)[: 1 if is_square(size) else 2])


def plain_size(size: ImageSize) -> int | list[int]:
    """Return a size as JSON, YAML and the host hold it: a number, or [height, width]."""
    return list(size) if isinstance(size, tuple) else size


def rounded_up(size: ImageSize, stride: int) -> ImageSize:
    """Return the next size whose sides are multiples of ``stride``, as the host rounds it."""
    return read_size([math.ceil(side / stride) * stride for side in height_width(size)])


def with_longer_side(size: ImageSize, side: int, stride: int) -> ImageSize:
    """Return the size of nearly the same shape whose longer side is ``side``, the other a multiple of ``stride``.

    Example:
        >>> with_longer_side((320, 640), 448, 32)
        (224, 448)
    """
    height, width = height_width(size)
    shorter = math.floor(min(height, width) * side / max(height, width) / stride + 0.5) * stride
    shorter = min(max(shorter, stride), side)
    return read_size([shorter, side] if width > height else [side, shorter] if height > width else side)
