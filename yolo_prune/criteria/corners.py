"""Four numbers beside scores: what makes corners of them, by what the boxes of a teacher can be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LIKELY = 0.5  # of the best score: what is looked at
_OUTSIDE = 0.05  # of the largest coordinate: so far a box may reach over the left or the upper border


def corner_reader(numbers: Tensor, best: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what makes left, top, right and bottom of numbers like these; None where they may be anything else.

    Corners have the right one to the right of the left one; of centre and size, no box reaches far over the left or
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
    are_corners = bool((second > first).all())
    are_centres = bool((second > 0).all() and (first - second / 2 >= far).all())
    if are_corners == are_centres:
        return None
    return _as_they_are if are_corners else _around_centre


def _as_they_are(numbers: Tensor) -> Tensor:
    return numbers


def _around_centre(numbers: Tensor) -> Tensor:
    centre, half = numbers[..., :2], numbers[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], -1)
