"""What heads say at many locations, when it is known what is what: what a task feels of it, how far two are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from yolo_prune.criteria.projection import signed_sum, spread_of
from yolo_prune.errors import ConfigError

OVERLAP = 4.0
"""How much it counts beside scores what of a box is missed: near its end imitation then sees of boxes what AP sees."""
_RIM = 0.01  # in sides of a box, around it and the other: boxes without an area agree, too
_POINT = 1e-3  # no side counts as shorter
_SLIM = 0.05  # of the usual side: relative to less, a box that has collapsed would outweigh all others
_SMALL, _TINY = 1e-6, 1e-12
_KNEE = 0.1  # in spreads of a box's coordinate: beyond it the distance grows linearly


class Predictions(NamedTuple):
    """What a head says at many locations.

    Attributes:
        scores: Probabilities, shape (B, locations, scores).
        boxes: What stands beside them, shape (B, locations, numbers).
        corners: Left, top, right and bottom of the box, from any point and in any unit of each axis, the same for two
            models that are compared, shape (B, locations, 4); None: not known.
    """

    scores: Tensor
    boxes: Tensor
    corners: Tensor | None = None


class PredictionProjection:
    """A scalar of the predictions of several heads, whose squared gradient says how much they change.

    Scores count as they are, so background counts only where it could become a detection; boxes count by the location's
    best score, as much as scores do: their corners relative to their sides where they are known (a side that is next to
    nothing counts as a twentieth of the usual one), else relative to each number's spread. Heads count alike, however
    many locations they have.

    Args:
        seed: Of the random signs.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: Sequence[Predictions]) -> Tensor:
        """Return the scalar."""
        return torch.stack([self._of_head(head) for head in outputs]).sum()

    def _of_head(self, head: Predictions) -> Tensor:
        best = head.scores.detach().amax(-1, keepdim=True)
        total = best.sum().clamp(min=_SMALL)
        if head.corners is None:
            boxes = head.boxes / spread_of(head.boxes.detach(), best)
        else:
            sides = _sides(head.corners.detach())
            usual = (best * sides).sum((0, 1)) / total
            boxes = head.corners / torch.maximum(sides, _SLIM * usual).clamp(min=_SMALL)
        felt = signed_sum(head.scores, self._generator) + signed_sum(best * boxes, self._generator)
        return felt / total.sqrt()


def prediction_distance(
    ours: Sequence[Predictions], theirs: Sequence[Predictions], *, overlap: float = OVERLAP
) -> Tensor:
    """Return the distance of the predictions of several heads, the mean over them.

    That of :func:`predictions_apart`, and of boxes whose corners are known what :func:`missed_overlap` returns, in the
    mean by the teacher's best score of each location.

    Args:
        ours: What the student's heads said, with gradient.
        theirs: What the teacher's said.
        overlap: How much the latter counts.

    Raises:
        ConfigError: They are of another number or shape, or there are none.
    """
    pairs = list(zip(ours, theirs, strict=False))
    same = all(a.scores.shape == b.scores.shape and a.boxes.shape == b.boxes.shape for a, b in pairs)
    if not pairs or len(ours) != len(theirs) or not same:
        raise not_comparable([t for one in ours for t in one[:2]], [t for one in theirs for t in one[:2]])
    return torch.stack([_of_head(*pair, overlap) for pair in pairs]).mean()


def _of_head(ours: Predictions, theirs: Predictions, overlap: float) -> Tensor:
    best = theirs.scores.detach().float().amax(-1, keepdim=True)
    distance = predictions_apart(ours, theirs, best)
    if not overlap or ours.corners is None or theirs.corners is None:
        return distance
    return distance + overlap * mean_missed(ours.corners, theirs.corners, best)


def predictions_apart(ours: Predictions, theirs: Predictions, best: Tensor) -> Tensor:
    """Return the distance of scores and of what is beside them.

    The divergence of independent Bernoulli variables, summed, and a smooth L1 distance of the boxes in units of their
    spread, weighted by the teacher's best score of the location; both over the sum of these best scores.

    Args:
        ours: The student's, with gradient.
        theirs: The teacher's.
        best: The teacher's best score of every location, shape (B, locations, 1).

    Returns:
        Scalar, float32.
    """
    scores, boxes = theirs.scores.detach().float(), theirs.boxes.detach().float()
    total = best.sum().clamp(min=_SMALL)
    distance = bernoulli_divergence(ours.scores.float(), scores).sum() / total
    if boxes.shape[-1]:
        spread = spread_of(boxes, best)
        apart = F.smooth_l1_loss(ours.boxes.float() / spread, boxes / spread, reduction="none", beta=_KNEE)
        distance = distance + (best * apart).sum() / total
    return distance


def bernoulli_divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the divergence of every probability."""
    p, q = (values.clamp(_SMALL, 1 - _SMALL) for values in (theirs, ours))
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def mean_missed(ours: Tensor, theirs: Tensor, best: Tensor) -> Tensor:
    """Return the mean of what :func:`missed_overlap` returns, by the teacher's best scores, shape (B, locations, 1)."""
    missed = missed_overlap(ours, theirs)[..., None]
    return (best * missed).sum() / best.sum().clamp(min=_SMALL)


def missed_overlap(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return 1 less the generalised intersection over union of boxes; the unit of each axis is of no account.

    Source: Rezatofighi et al., Generalized Intersection over Union, 2019 (arXiv 1902.09630).

    Args:
        ours: Left, top, right and bottom, shape (..., 4), with gradient.
        theirs: The teacher's.

    Returns:
        Shape (...), from 0 to 2, float32.
    """
    known = theirs.detach().float()
    rim = _sides(known).clamp(min=_POINT) * _RIM * known.new_tensor([-1, -1, 1, 1])
    one, other = ours.float() + rim, known + rim
    outer = torch.cat([torch.minimum(one, other)[..., :2], torch.maximum(one, other)[..., 2:]], -1)
    inner = torch.cat([torch.maximum(one, other)[..., :2], torch.minimum(one, other)[..., 2:]], -1)
    both, around = _area(inner), _area(outer).clamp(min=_TINY)
    either = _area(one) + _area(other) - both
    return 2 - both / either.clamp(min=_TINY) - either / around


def _area(corners: Tensor) -> Tensor:
    return _sides(corners)[..., :2].prod(-1)


def _sides(corners: Tensor) -> Tensor:
    """Return width, height, width and height of boxes, shape (..., 4)."""
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).tile(2)


def not_comparable(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> ConfigError:
    """Return the error of outputs that are of another number or shape."""
    return ConfigError(
        f"the uncut model's outputs cannot be compared: {_shapes(ours)} of the model, {_shapes(theirs)} of its "
        "teacher. Hand over the batch that the outputs are of, and the outputs before they are filtered."
    )


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "no floating-point tensor"
