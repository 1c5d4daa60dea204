"""What a model is measured on: images, how a model runs on them, and what its task feels of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from torch import Tensor, nn

from yolo_prune.device import placed
from yolo_prune.graph.values import change_tensors

Forward = Callable[[nn.Module, Any], Any]
Projection = Callable[[Any], Tensor]
Distance = Callable[[Any, Any], Tensor]
Numbers = npt.NDArray[Any] | Tensor | Sequence[Any]


def call(module: nn.Module, batch: Any) -> Any:
    """Run a module on a batch that is its one argument."""
    return module(batch)


@dataclass(frozen=True)
class Labels:
    """What is in one image.

    Attributes:
        classes: Class indices from 0, shape (N,).
        boxes: x1, y1, x2, y2 of each object as shares of the input's width and height, shape (N, 4). None: all of the
            image is of the one class that there is.
    """

    classes: Numbers
    boxes: Numbers | None = None


@dataclass(frozen=True)
class Calibration:
    """Images that a model is measured on, and how; labels are needed by ``criterion=svm`` alone.

    Attributes:
        batches: For images that are one tensor: shape (B, C, H, W), float32 in [0, 1], on any device. A list of images,
            or a dict of tensors or lists of one length, is a batch too where ``forward`` takes it. Each batch is moved
            when it is its turn; where memory does not suffice, batches are halved, in place if this is a list.
        projection: Scalar random projection of the model's outputs, whose gradient says what the task feels. None: all
            pixels count alike, and each layer counts relative to the energy of its own output.
        forward: Runs a module on one batch and returns its outputs.
        seed: For the choice of pixels.
        distance: How far a student's outputs (first) are from its teacher's: a scalar, 0 where they agree.
            None: what any outputs tell, see :func:`yolo_prune.criteria.distance.output_distance`.
        paired: Values choose positions inside the model (proposals, queries): two models are compared where the first
            decides for both.
        labels: Reads what is in each image, in the order of the batches; None: nobody knows.
        classifies: All that the model makes of an image is known to be a row of scores.
    """

    batches: Sequence[Any] = ()
    projection: Projection | None = None
    forward: Forward = call
    seed: int = 0
    distance: Distance | None = None
    paired: bool = False
    labels: Callable[[], Sequence[Labels]] | None = None
    classifies: bool = False

    def run(self, module: nn.Module, batch: Any) -> Any:
        """Return a module's outputs for a batch, which is moved to where its weights are."""
        return self.forward(module, placed_batch(batch, module))


def placed_batch(batch: Any, module: nn.Module) -> Any:
    """Return a batch where a module's weights are; what is floating-point is in their precision."""
    if isinstance(batch, Tensor):
        return placed(batch, module)
    device = next((p.device for p in module.parameters()), None)
    return change_tensors(batch, lambda t: placed(t, module) if t.is_floating_point() else t.to(device))


def images_in(batch: Any) -> int:
    """Return how many images a batch holds: a tensor along its first dimension, a list of images, a dict, or several.

    A tuple, or a list of tensors that are no single images, is what a loader makes of (images, targets): its first part
    counts.
    """
    if isinstance(batch, Mapping):
        return images_in(next(iter(batch.values())))
    return images_in(batch[0]) if _has_parts(batch) else len(batch)


def part_of(batch: Any, images: slice) -> Any:
    """Return some images of a batch."""
    if isinstance(batch, Mapping):
        return {key: part_of(value, images) for key, value in batch.items()}
    if _has_parts(batch):
        parts = [part_of(part, images) for part in batch]
        return tuple(parts) if isinstance(batch, tuple) else parts
    return batch[images]


def _has_parts(batch: Any) -> bool:
    """Tell whether a batch is a sequence of several things about its images, and not of images."""
    if isinstance(batch, tuple):
        return True
    dims = {part.dim() for part in batch if isinstance(part, Tensor)} if isinstance(batch, list) else set()
    return len(dims) > 1 or max(dims, default=0) > 3
