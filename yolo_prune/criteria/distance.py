"""How far one network's outputs are from another's, as far as a task feels it; any outputs, no labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from yolo_prune.criteria.corners import corner_reader
from yolo_prune.criteria.predictions import (
    OVERLAP,
    Predictions,
    bernoulli_divergence,
    mean_missed,
    not_comparable,
    predictions_apart,
)
from yolo_prune.criteria.projection import are_class_scores, has_scores, in_unit, locations, rated
from yolo_prune.graph.values import tensors_in


def output_distance(ours: Any, theirs: Any) -> Tensor:
    """Return the distance of a student's outputs to its teacher's, zero when they agree.

    The mean over the floating-point outputs, by what their values show them to be, as in
    :func:`yolo_prune.criteria.projection.output_projection`:

    * class scores (B, C): the Kullback-Leibler divergence, in nats;
    * scores in [0, 1] at many locations: the divergence of independent Bernoulli variables, summed, and what stands
      beside them (boxes) as a smooth L1 distance in units of its spread, weighted by the teacher's best score of the
      location; both over the sum of these best scores. Where the teacher's boxes show that they are corners, or centre
      and size, what is missed of their overlap counts four times beside that. Where there are such predictions, other
      outputs do not count;
    * anything else: the squared error relative to the teacher's variance.

    Args:
        ours: What the student returned, with gradient.
        theirs: What the teacher returned for the same input.

    Returns:
        Scalar, float32.

    Raises:
        ConfigError: The outputs are of another number or shape, or there are none.
    """
    pairs = comparable(ours, theirs)
    known = [pair for pair in pairs if has_scores(pair[1])] or pairs
    return torch.stack([_distance(*pair) for pair in known]).mean()


def relative_distance(ours: Any, theirs: Any) -> Tensor:
    """Return the mean over all outputs of the squared error relative to the teacher's variance.

    Raises:
        ConfigError: The outputs are of another number or shape, or there are none.
    """
    return torch.stack([_relative(*pair) for pair in comparable(ours, theirs)]).mean()


def bounded_distance(ours: Any, theirs: Any) -> Tensor:
    """Return the mean over all outputs of the squared error, relative to what there is of it and of the variance.

    Never more than 1, with a gradient that falls as the error grows: an output that hardly varies must not outweigh the
    other losses of a training.

    Raises:
        ConfigError: The outputs are of another number or shape, or there are none.
    """
    errors = [_relative(*pair) for pair in comparable(ours, theirs)]
    return torch.stack([error / (1 + error.detach()) for error in errors]).mean()


def comparable(ours: Any, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the floating-point outputs of two networks side by side, in float32, the teacher's without gradient.

    What a cut made narrower (a map of features that is returned beside the predictions) is left out.

    Raises:
        ConfigError: The outputs are of another number or shape, or there are none.
    """
    left, right = _floating(ours), _floating(theirs)
    pairs = list(zip(left, right, strict=False))
    same = [(a, b) for a, b in pairs if a.shape == b.shape]
    if not same or len(left) != len(right) or not all(_alike_but_in_channels(a, b) for a, b in pairs):
        raise not_comparable(left, right)
    return [(a.float(), b.detach().float()) for a, b in same]


def _alike_but_in_channels(one: Tensor, other: Tensor) -> bool:
    """Tell whether shapes differ in their second dimension alone, or not at all."""
    if one.dim() < 2 or other.dim() < 2:
        return one.shape == other.shape
    return one[:, :1].shape == other[:, :1].shape


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    if are_class_scores(theirs):
        if bool(in_unit(theirs, 1).all()):
            return bernoulli_divergence(ours, theirs).sum() / len(theirs)
        return F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean")
    if has_scores(theirs):
        return _of_predictions(ours, theirs)
    return _relative(ours, theirs)


def _of_predictions(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the distance of scores and of what is beside them at every location."""
    before, after = locations(theirs), locations(ours, like=theirs)
    unit = in_unit(before, 2)
    known = before[..., unit]
    wanted, best = rated(known, known)
    made = Predictions(rated(after[..., unit], known)[0], after[..., ~unit])
    distance = predictions_apart(made, Predictions(wanted, before[..., ~unit]), best)
    corners = corner_reader(before[..., ~unit], best)
    if corners is None:
        return distance
    return distance + OVERLAP * mean_missed(corners(made.boxes), corners(before[..., ~unit]), best)


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().mean() / theirs.var(correction=0).clamp(min=1e-12)


def _floating(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point() and tensor.numel()]
