"""How many images and steps a cut takes: as many as help, and on a CPU no more than a large model allows."""

from __future__ import annotations

from typing import NamedTuple

_MOST_MACS = 10e12  # of passes over images, in all steps: some ten minutes of two cores, there and back
_IMAGES, _STEPS = 96, 12
_FEWER = ((96, 6), (48, 6), (48, 4), (48, 2), (24, 2), (24, 1), (12, 1))
"""Images and steps of ever larger models. At half of the MACs two steps lose nothing; in deeper cuts they do."""


class Effort(NamedTuple):
    """What a cut is measured on.

    Attributes:
        images: Training images in each step.
        steps: Of measuring, choosing and folding.
        reduced: They are fewer than of a small model.
    """

    images: int
    steps: int
    reduced: bool = False


def effort_for(macs: float, device: str, *, images: int | None = None, steps: int | None = None) -> Effort:
    """Return how many images and steps a cut takes where nobody said.

    Args:
        macs: Of the parent, for one image.
        device: Where it is measured; a GPU takes 96 images and 12 steps of any model.
        images: Given by the user.
        steps: Given by the user.
    """
    for most_images, most_steps in ((_IMAGES, _STEPS), *_FEWER):
        found = Effort(
            most_images if images is None else images,
            most_steps if steps is None else steps,
            (images is None and most_images < _IMAGES) or (steps is None and most_steps < _STEPS),
        )
        if device != "cpu" or macs * found.images * found.steps <= _MOST_MACS:
            break
    return found
