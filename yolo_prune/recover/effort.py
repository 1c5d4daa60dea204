"""How many images and steps a cut takes: as many as help, and on a CPU no more than a large model allows."""

from __future__ import annotations

from typing import NamedTuple

_MOST_MACS = 10e12  # of passes over images, in all steps: some ten minutes of two cores, there and back
_IMAGES, _STEPS = 96, 12
_OF_A_CLASSIFIER = 512
_FEWER = ((96, 6), (48, 6), (48, 4), (48, 2), (24, 2), (24, 1), (12, 1))
"""Images and steps of ever larger models. At half of the MACs two steps lose nothing; in deeper cuts they do."""


def images_for(given: int | None, classifier: bool = False) -> int:
    """Return how many training images a cut is measured on: as many as the user said, else what is enough.

    A layer after a classifier's pooling reads one position of an image, where a detector's read hundreds: of too few,
    least squares reconstruct these images and no others. YOLO11n-cls at 64 px, half of the MACs, folded: top-1 .415 of
    .444 by 96 images, .428 by 512.
    """
    if given is not None:
        return given
    return _OF_A_CLASSIFIER if classifier else _IMAGES


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


def effort_for(
    macs: float,
    device: str,
    *,
    images: int | None = None,
    steps: int | None = None,
    classifier: bool = False,
) -> Effort:
    """Return how many images and steps a cut takes where nobody said.

    Args:
        macs: Of the parent, for one image.
        device: Where it is measured; a GPU takes all images and 12 steps of any model.
        images: Given by the user.
        steps: Given by the user.
        classifier: It takes more images.
    """
    all_images = images_for(None, classifier=classifier)
    for most_images, most_steps in ((all_images, _STEPS), (_IMAGES, _STEPS), *_FEWER):
        found = Effort(
            most_images if images is None else images,
            most_steps if steps is None else steps,
            (images is None and most_images < all_images) or (steps is None and most_steps < _STEPS),
        )
        if device != "cpu" or macs * found.images * found.steps <= _MOST_MACS:
            break
    return found
