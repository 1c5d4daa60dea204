"""Four numbers beside scores: what makes corners of them, by what the boxes of a teacher can be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LIKELY = 0.5  # of the best score: what is looked at
_OUTSIDE = 0.05  # of the largest coordinate: so far a box may reach over the left or the upper border
_MOST, _MANY = 0.95, 0.8  # shares of the boxes: a few of them are not what they should be


def corner_reader(numbers: Tensor, best: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what makes left, top, right and bottom of numbers like these; None where they may be anything else.

    Corners have the right one to the right of the left one; of centre and size few boxes reach far over the left or
    the upper border. Numbers of which both are true, or neither (sides from a point, offsets of an anchor), are not
    known.

    Args:
        numbers: What a teacher says beside its scores, shape (B, locations, numbers).
        best: Its best score of every location, shape (B, locations, 1).
    """
    if numbers.shape[-1] != 4 or not best.numel():
        return None
    likely = numbers[(best > _LIKELY * best.amax())[..., 0]]
    if not len(likely):
        return None
    first, second = likely[:, :2], likely[:, 2:]
    far = -_OUTSIDE * float(likely.abs().amax())
    are_corners = (second > first).all(-1)
    are_centres = ((second > 0) & (first - second / 2 >= far)).all(-1)
    corners, centres = (float(each.float().mean()) for each in (are_corners, are_centres))
    if corners >= _MOST and centres <= _MANY:
        return _as_they_are
    return _around_centre if centres >= _MOST and corners <= _MANY else None


def _as_they_are(numbers: Tensor) -> Tensor:
    return numbers


def _around_centre(numbers: Tensor) -> Tensor:
    centre, half = numbers[..., :2], numbers[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], -1)
