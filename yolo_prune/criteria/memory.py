"""Measure on images in batches that fit into the memory that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence, Sequence
from typing import Any, TypeVar

from yolo_prune.criteria.calibration import images_in, part_of
from yolo_prune.device import is_out_of_memory, release_memory
from yolo_prune.progress import LOGGER

_Result = TypeVar("_Result")


def in_batches_that_fit(measure: Callable[[Sequence[Any]], _Result], batches: Iterable[Any]) -> _Result:
    """Call ``measure(batches)``; where memory does not suffice, again from the start with half the images in a batch.

    Args:
        measure: Begins anew with every call.
        batches: Images. A list is changed in place, so that the next measurement begins with what fits.

    Raises:
        RuntimeError: Not even one image at a time fits.
    """
    held: Sequence[Any] = batches if isinstance(batches, Sequence) else list(batches)
    while True:
        try:
            return measure(held)
        except RuntimeError as error:
            largest = max(map(images_in, held), default=0)
            if largest < 2 or not is_out_of_memory(error):
                raise
        # Only here, behind the handler, does nothing hold the tensors of the attempt any more.
        release_memory()
        size = (largest + 1) // 2
        smaller = [
            part_of(batch, slice(at, at + size)) for batch in held for at in range(0, images_in(batch), size)
        ]
        LOGGER.warning("no memory for %d images at a time: measuring begins again with %d.", largest, size)
        if isinstance(held, MutableSequence):
            held[:] = smaller
        else:
            held = smaller
