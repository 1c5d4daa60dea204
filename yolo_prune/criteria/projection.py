"""What any network's task feels: a random projection of its outputs, whatever they are; no labels, no host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from yolo_prune.criteria.calibration import Projection
from yolo_prune.errors import ConfigError
from yolo_prune.graph.values import tensors_in

BOX_WEIGHT = 4.0
"""How much what says where an object is counts beside its scores: AP asks for boxes that overlap by 0.95."""
_LIKELY_ANYWHERE, _RARE = 0.1, 0.1  # mean over all locations of the best class, and of an objectness


class OutputProjection:
    """What :func:`output_projection` returns."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: Any) -> Tensor:
        """Return the scalar of what a network returned in evaluation mode."""
        found = _with_gradient(outputs)
        known = [t for t in found if has_scores(t)] or found
        return torch.stack([_felt(t, self._generator) for t in known]).sum()


class HeadProjection:
    """A scalar of what the last layers of heads made: random signs, relative to each channel's spread.

    Every tensor counts alike, however many positions it has: what is done with it afterwards is not known.

    Args:
        seed: Of the signs.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: Any) -> Tensor:
        """Return the scalar."""
        found = _with_gradient(outputs)
        return torch.stack([_relative(t, self._generator) / max(t.numel(), 1) ** 0.5 for t in found]).sum()


def output_projection(seed: int = 0) -> Projection:
    """Return a scalar whose squared gradient says how much a network's predictions change.

    Every floating-point output is multiplied by random signs and summed, each channel relative to its own spread. Two
    kinds of outputs are known by their values:

    * class scores, shape (B, C): their probabilities count, with signs that are balanced in every image;
    * predictions at many locations, some of whose channels lie in [0, 1] (scores) while others do not (boxes): scores
      count as they are, so background counts only where it could become a detection, and the others by the location's
      best score, four times as much. A first score that is low nearly everywhere where the others are not is an
      objectness, and multiplies them. Where there are such predictions, raw maps beside them do not count.

    Of a network whose outputs are filtered by their values, the results of its last layers count instead, see
    :func:`yolo_prune.criteria.heads.measured_at_heads`.

    Args:
        seed: Of the signs.

    Returns:
        A function from what a network returns in evaluation mode to a scalar.
    """
    return OutputProjection(seed)


def _with_gradient(outputs: Any) -> list[Tensor]:
    found = [t for t in tensors_in(outputs) if t.is_floating_point() and t.numel() and t.requires_grad]
    if not found:
        raise ConfigError(
            "no output of the model has a gradient: give projection=, a scalar of the outputs, or forward= that "
            "returns predictions before they are filtered."
        )
    return found


def _felt(output: Tensor, generator: torch.Generator) -> Tensor:
    """Return the projection of one output."""
    if are_class_scores(output):
        probabilities = output if in_unit(output.detach(), 1).all() else output.softmax(1)
        return (balanced_signs(probabilities, generator) * probabilities).sum()
    if has_scores(output):
        return _predictions(output, generator)
    return _relative(output, generator)


def _relative(output: Tensor, generator: torch.Generator) -> Tensor:
    """Return the projection of an output of which nothing is known: each channel relative to its spread."""
    dim = _channel_dim(output)
    values = output.detach()
    scale = _spread(values, dim) if dim is not None else values.std(correction=0)
    return signed_sum(output / scale.clamp(min=1e-6), generator)


def _predictions(output: Tensor, generator: torch.Generator) -> Tensor:
    """Return the projection of scores and what is beside them at every location."""
    values = locations(output)
    unit = in_unit(values.detach(), 2)
    others = values[..., ~unit]
    scores, best = rated(values[..., unit], values[..., unit].detach())
    total = signed_sum(scores, generator)
    if others.shape[-1]:
        relative = best * others / spread_of(others.detach(), best)
        return total + BOX_WEIGHT * signed_sum(relative, generator)
    return total


def rated(scores: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return how likely things are at every location, and the largest of these without gradient.

    Args:
        scores: Shape (B, locations, scores), in [0, 1].
        known: The scores that say whether the first of them is an objectness, which then multiplies the others.

    Returns:
        Shape (B, locations, scores) and (B, locations, 1).
    """
    if not _has_objectness(known):
        return scores, known.amax(-1, keepdim=True)
    rated = torch.cat([scores[..., :1], scores[..., 1:] * scores[..., :1]], -1)
    return rated, (known[..., 1:] * known[..., :1]).amax(-1, keepdim=True)


def spread_of(values: Tensor, weights: Tensor) -> Tensor:
    """Return the standard deviation of every channel.

    Args:
        values: Shape (B, locations, channels).
        weights: How much each location counts, shape (B, locations, 1).

    Returns:
        Shape (channels,), positive.
    """
    total = weights.sum().clamp(min=1e-6)
    mean = (weights * values).sum((0, 1)) / total
    return ((weights * (values - mean).square()).sum((0, 1)) / total).sqrt().clamp(min=1e-6)


def locations(output: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Return predictions as (B, locations, channels).

    Args:
        output: Shape (B, channels, ...) or (B, ..., channels).
        like: Tells which, for an output of the same shape.
    """
    dim = _channel_dim(output if like is None else like)
    return output.movedim(1 if dim is None else dim, -1).flatten(1, -2)


def _has_objectness(scores: Tensor) -> bool:
    """Tell whether the first of several scores says that there is anything at all, and the others of what class."""
    if scores.shape[-1] < 3:
        return False
    return bool(scores[..., 1:].amax(-1).mean() > _LIKELY_ANYWHERE and scores[..., 0].mean() < _RARE)


def are_class_scores(output: Tensor) -> bool:
    """Tell whether an output is a row of numbers an image, shape (B, C), as a classifier's is."""
    return output.dim() == 2 and output.shape[1] > 1


def has_scores(output: Tensor) -> bool:
    """Tell whether some channels of an output at many locations are probabilities."""
    dim = _channel_dim(output)
    if dim is None or output.dim() < 3:
        return False
    inside = in_unit(output.detach(), dim)
    return bool(inside.any())


def in_unit(values: Tensor, dim: int) -> Tensor:
    """Tell of every channel whether all its values lie in [0, 1] and are not all 0, shape (channels,)."""
    others = [at for at in range(values.dim()) if at != dim]
    low, high = values.amin(others), values.amax(others)
    return (low >= 0) & (high <= 1) & (high > 0)


def _channel_dim(output: Tensor) -> int | None:
    """Return along which dimension an output has its channels; None where it has none."""
    if output.dim() < 2:
        return None
    if output.dim() == 3:
        return 1 if output.shape[1] <= output.shape[2] else 2
    return output.dim() - 1 if output.dim() == 5 else 1


def _spread(values: Tensor, dim: int) -> Tensor:
    """Return the standard deviation of every channel, in a shape that divides the values."""
    others = [at for at in range(values.dim()) if at != dim]
    return values.float().var(others, correction=0, keepdim=True).sqrt()


def signed_sum(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sum with random signs; they are drawn on the CPU."""
    drawn = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8)
    return ((drawn.to(values.device, values.dtype) * 2 - 1) * values).sum()


def balanced_signs(values: Tensor, generator: torch.Generator) -> Tensor:
    """Draw for each row as many +1 as -1 (and one 0 in an odd row): a sum over all classes would always be one.

    Args:
        values: Class probabilities, shape (B, classes).
        generator: On the CPU.
    """
    ranks = torch.rand(values.shape, generator=generator).argsort(1).argsort(1)
    half = values.shape[1] // 2
    signs = (ranks < half).to(values.dtype) - (ranks >= values.shape[1] - half).to(values.dtype)
    return signs.to(values.device)
