"""Measure on images in batches that fit into the memory that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from yolo_prune.criteria.calibration import Calibration, images_in, part_of
from yolo_prune.device import is_out_of_memory, release_memory
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.progress import LOGGER

_MOST = 4e9  # bytes of a batch, there and back
_HELD = 3.3  # times what operations make is held until the way back; measured, YOLO11n at 640 px, float32
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
        smaller = _split(held, size)
        LOGGER.warning("no memory for %d images at a time: measuring begins again with %d.", largest, size)
        if isinstance(held, MutableSequence):
            held[:] = smaller
        else:
            held = smaller


def sized_for_memory(calibration: Calibration, module: nn.Module, graph: ChannelGraph) -> Calibration:
    """Return images in batches of which a pass there and back is known to fit, where nobody says when it does not.

    A GPU refuses what is too much, and :func:`in_batches_that_fit` takes less; on a CPU the process is killed. So there
    what a model makes of a batch stays below 4 GB, whatever the machine has: results do not depend on it.

    Args:
        calibration: The images.
        module: The model; its device counts.
        graph: Its channels, with what each operation makes of one image; batches stay where that was not counted.
    """
    made = 4 * _HELD * sum(use.elements for use in graph.uses)
    on_cpu = all(weight.device.type == "cpu" for weight in module.parameters())
    most = max(int(_MOST / max(made, 1)), 1)
    if not on_cpu or max(map(images_in, calibration.batches), default=0) <= most:
        return calibration
    LOGGER.info("batches of %d: of more images the model would make more than %g GB", most, _MOST / 1e9)
    return replace(calibration, batches=_split(calibration.batches, most))


def _split(batches: Iterable[Any], size: int) -> list[Any]:
    """Return the images in batches of at most ``size``."""
    return [
        part_of(batch, slice(at, at + size)) for batch in batches for at in range(0, images_in(batch), size)
    ]
