"""Small pictures of an image with what is there, or with what a model found, drawn into it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.accuracy.looks import Thing

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 300
"""Longest side of a picture, in pixels."""
THERE, RIGHT, WRONG = (255, 214, 10), (10, 200, 190), (255, 69, 58)
_MOST_NAMES, _OVERLAP = 12, 0.5


def draw(pixels: NDArray[np.uint8], things: Sequence[Thing], truth: Sequence[Thing] | None = None) -> Image:
    """Draw objects into a small copy of an image: box or corners, mask, key points, class and score.

    Args:
        pixels: uint8 [height, width, 3], RGB.
        things: What is drawn, the last one on top; those without a box are not.
        truth: What is there, for colours: right where the box of an object of the class overlaps by half, else wrong;
            None where the things are the truth.
    """
    from PIL import Image, ImageDraw

    height, width = pixels.shape[:2]
    scale = min(SIDE / max(height, width), 1.0)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    for thing in things:
        if thing.box is not None:
            colour = THERE if truth is None else RIGHT if _is_there(thing, truth) else WRONG
            picture = _with_mask(picture, thing, (height, width), colour)
            pen = ImageDraw.Draw(picture)
            _outline(pen, thing, scale, colour)
            if len(things) <= _MOST_NAMES:
                _name(pen, thing, scale, colour)
    return picture


def as_jpeg(picture: Image, quality: int) -> bytes:
    """Return a picture as a JPEG file."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality, optimize=True)
    return data.getvalue()


def _is_there(thing: Thing, truth: Sequence[Thing]) -> bool:
    return any(one.label == thing.label and _overlap(one.box, thing.box) >= _OVERLAP for one in truth)


def _overlap(one: Sequence[float] | None, other: Sequence[float] | None) -> float:
    """Return the intersection over the union of two boxes."""
    if one is None or other is None:
        return 0.0
    sides = [
        min(a + c, b + d) - max(a, b)
        for a, b, c, d in zip(one[:2], other[:2], one[2:], other[2:], strict=True)
    ]
    common = sides[0] * sides[1] if min(sides) > 0 else 0.0
    union = one[2] * one[3] + other[2] * other[3] - common
    return common / union if union > 0 else 0.0


def _with_mask(picture: Image, thing: Thing, shape: tuple[int, int], colour: tuple[int, int, int]) -> Image:
    """Tint the pixels of a mask in run lengths; polygons are drawn as lines."""
    from PIL import Image

    if not isinstance(thing.mask, dict):
        return picture
    from yolo_prune.accuracy.masks import filled

    where = Image.fromarray(filled(thing.mask, shape).astype(np.uint8) * 110).resize(picture.size)
    return Image.composite(Image.new("RGB", picture.size, colour), picture, where)


def _outline(pen: Any, thing: Thing, scale: float, colour: tuple[int, int, int]) -> None:
    x, y, width, height = (value * scale for value in thing.box or ())
    polygons = thing.mask if isinstance(thing.mask, list) else []
    for polygon in polygons:
        corners = [(a * scale, b * scale) for a, b in zip(polygon[::2], polygon[1::2], strict=True)]
        pen.line([*corners, corners[0]], fill=colour, width=2)
    if not polygons:
        pen.rectangle([x, y, x + max(width, 1), y + max(height, 1)], outline=colour, width=2)
    for a, b, seen in zip(thing.points[::3], thing.points[1::3], thing.points[2::3], strict=True):
        if seen > 0:
            pen.ellipse([a * scale - 2, b * scale - 2, a * scale + 2, b * scale + 2], fill=colour)


def _name(pen: Any, thing: Thing, scale: float, colour: tuple[int, int, int]) -> None:
    text = thing.label if thing.score is None else f"{thing.label} {thing.score:.2f}"
    x, y = ((thing.box or (0.0, 0.0))[at] * scale for at in (0, 1))
    left, _, right, bottom = pen.textbbox((0, 0), text)
    x, y = max(x, 0), y - bottom - 2 if y > bottom + 2 else y + 2
    pen.rectangle([x, y, x + right - left + 3, y + bottom + 2], fill=colour)
    pen.text((x + 2, y), text, fill=(0, 0, 0))
