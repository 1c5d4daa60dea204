"""Calibration batches out of a training's own loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.criteria.calibration import (
    Calibration,
    Forward,
    Labels,
    Projection,
    images_in,
    part_of,
    placed_batch,
)
from yolo_prune.criteria.projection import are_class_scores, output_projection
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.graph.modes import evaluating
from yolo_prune.graph.passes import FAILURES
from yolo_prune.graph.randomness import untouched_randomness
from yolo_prune.graph.values import tensors_in

ReadLabels = Callable[[Sequence[Any]], Sequence[Labels]]
HowMany = Callable[[bool], int]
"""How many images are looked at, of a model whose outputs are a row of scores an image (a classifier), or of others."""
_NONE = object()


def check_batch(model: nn.Module, batch: Any, forward: Forward) -> bool:
    """Run a model on a calibration batch, as a cut will, before hours are spent.

    Returns:
        Whether all that it makes of an image is a row of scores, shape (B, C), as a classifier does.

    Raises:
        ConfigError: The model does not take it, or returns nothing that could be measured.
    """
    try:
        with untouched_randomness(), evaluating(model), torch.no_grad():
            outputs = forward(model, placed_batch(part_of(batch, slice(0, 1)), model))
    except YoloPruneError:
        raise
    except FAILURES as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the model does not run on a batch of calibration=, {_kind(batch)}: {said}.{_hint(batch)}"
        ) from error
    made = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]
    if not made:
        raise ConfigError(
            f"the model returned no floating-point tensor for a batch of calibration=, {_kind(batch)}: nothing of it "
            "could be measured."
        )
    return all(are_class_scores(tensor) and len(tensor) == 1 for tensor in made)


def gather_batches(source: Iterable[Any], count: int) -> list[Any]:
    """Return batches of a loader until they hold ``count`` images.

    Args:
        source: Yields batches; it is read from its beginning.
        count: Images in all; the last batch is shortened.
    """
    batches: list[Any] = []
    left = count
    for batch in source:
        images = images_in(batch)
        batches.append(batch if images <= left else part_of(batch, slice(0, left)))
        left -= images
        if left <= 0:
            break
    return batches


def are_given(source: Iterable[Any]) -> bool:
    """Tell whether there are calibration batches at all; an empty tuple, the default, stands for none."""
    return not (isinstance(source, tuple) and not source)


def calibration_of(
    module: nn.Module,
    source: Iterable[Any],
    images: HowMany,
    forward: Forward,
    projection: Projection | None,
    seed: int,
    labels: ReadLabels | None = None,
) -> Calibration | None:
    """Return what a module is measured on, None where there are no images.

    Args:
        module: It is run on the first batch.
        source: Batches, see :func:`are_given`.
        images: How many images are looked at, once it is known what the module makes.
        forward: Runs a module on a batch.
        projection: What its task feels; None for that of any outputs.
        seed: Of what is drawn at random.
        labels: Says of batches what is in each of their images.

    Raises:
        ConfigError: The module does not take the batches, or there is none.
    """
    if not are_given(source):
        return None
    with untouched_randomness():  # a loader draws a seed when it is read
        left = iter(source)
        first = next(left, _NONE)
        if first is _NONE:
            raise ConfigError("calibration= yields no batch: give the training loader, or a list of batches.")
        classifies = check_batch(module, first, forward)
        batches = gather_batches(chain([first], left), images(classifies))
    read = None if labels is None else partial(labels, tuple(batches))
    felt = projection or output_projection(seed)
    return Calibration(batches, felt, forward, seed, labels=read, classifies=classifies)


def _kind(batch: Any) -> str:
    """Say what a batch is, in a few words."""
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    inside = f" of {type(batch[0]).__name__} and {type(batch[1]).__name__}" if _is_pair(batch) else ""
    return f"a {type(batch).__name__}{inside}"


def _hint(batch: Any) -> str:
    if not _is_pair(batch):
        return ""
    return " Of (images, targets) pairs give forward=lambda model, batch: model(batch[0])."


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2
