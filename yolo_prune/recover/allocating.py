"""Which allocation suits a model: cut to the budget by each, and see whose outputs stay nearest to the parent's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.criteria.apart import mean_distance
from yolo_prune.criteria.calibration import Calibration, images_in, part_of
from yolo_prune.criteria.moments import Moments, collect_moments
from yolo_prune.cut.allocation import COST_POWERS
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.widths import Lineage
from yolo_prune.errors import ConfigError
from yolo_prune.graph.modes import evaluating, in_full_precision
from yolo_prune.progress import LOGGER
from yolo_prune.recover.one_step import Recipe, one_step

_WORTH_IT = 3  # steps of the whole: fewer take no longer than the trials
_IMAGES = 32  # that outputs are compared on
UNTRIED = "root"
"""The allocation where nothing is tried: never the worst of the three."""


@dataclass(frozen=True)
class Tried:
    """What is known before the first step.

    Attributes:
        parent: With the layers frozen that the proofs of the trials found to stay.
        recipe: With its allocation.
        distances: Allocation -> distance to the parent; empty where nothing was tried.
        moments: Of the parent, for the first step; empty where nothing was tried.
    """

    parent: Traced
    recipe: Recipe
    distances: dict[str, float] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)


def try_allocations(
    parent: Traced,
    budget: Budget,
    recipe: Recipe,
    calibration: Calibration,
    lineage: Lineage | None = None,
) -> Tried:
    """Find the recipe with the allocation that loses least: of detectors often ``global``, of classifiers ``cost``.

    Moments are measured once. Cuts that exceed the budget do not count.

    Args:
        parent: What will be cut.
        budget: To what.
        recipe: How; one that names its allocation, needs no images for its criterion, or has fewer than 3 steps is
            not tried.
        calibration: Images; at most 32 of them are what outputs are compared on.
        lineage: Cuts before.
    """
    if recipe.allocation is not None or recipe.criterion != RECONSTRUCTION or not calibration.batches:
        return Tried(parent, recipe)
    if recipe.steps < _WORTH_IT:
        return Tried(parent, replace(recipe, allocation=UNTRIED))
    moments = collect_moments(
        parent.module, parent.cost.graph, calibration, description="trying allocations: measuring"
    )
    found = {}
    for name in COST_POWERS:
        way = replace(recipe, allocation=name)
        cut, _ = one_step(parent, budget, way, calibration, f"trying {name}", lineage, moments)
        parent = parent.under(cut.anatomy)
        distance = _compared(cut, parent, budget, calibration)
        if distance is not None:
            found[name] = distance
    best = min(found, key=lambda name: found[name], default=UNTRIED)
    listed = ", ".join(f"{name} {distance:.4g}" for name, distance in found.items())
    LOGGER.info("distance to the parent after a cut straight to the budget: %s", listed or "unknown")
    return Tried(parent, replace(recipe, allocation=best), found, moments)


def _compared(cut: Traced, parent: Traced, budget: Budget, calibration: Calibration) -> float | None:
    """Return how far a cut is from its parent; None where it exceeds the budget or outputs cannot be compared."""
    if cut.amount(budget) > budget.limit(parent.cost) * (1 + 1e-9):
        return None
    try:
        return _distance(cut.module, parent.module, calibration)
    except ConfigError as error:
        LOGGER.debug("allocations cannot be compared: %s", error)
        return None


def _distance(student: nn.Module, teacher: nn.Module, calibration: Calibration) -> float:
    """Return the distance on the first images."""
    parts, left = [], _IMAGES
    for batch in calibration.batches:
        if left > 0:
            parts.append(part_of(batch, slice(0, left)))
            left -= images_in(parts[-1])
    with evaluating(student), evaluating(teacher), in_full_precision(student), in_full_precision(teacher):
        return mean_distance(student, teacher, calibration, parts)
