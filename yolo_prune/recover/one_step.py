"""One cut on the way to a budget: measure, choose, fold, cut and prove."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from yolo_prune.cost import CostModel
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import Moments, collect_moments
from yolo_prune.criteria.ranking import score_channels
from yolo_prune.criteria.reconstruction import choose_by_reconstruction
from yolo_prune.cut.allocation import COST_POWERS, GLOBAL, Turns
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, least_channels
from yolo_prune.cut.proven import Traced, cut_proven_, until_exact
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.widths import Lineage, Widths
from yolo_prune.errors import BudgetError
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.recover.aim import Aim
from yolo_prune.recover.fold import fold_removed_


@dataclass(frozen=True)
class Recipe:
    """How to get from the parent to the budget.

    Attributes:
        criterion: One of :data:`yolo_prune.criteria.CRITERIA`.
        steps: How many cuts.
        widths: Allowed widths.
        fold: Fold what removed channels did into the kept ones.
        seed: Of ``criterion="random"``.
        ridge: Regularisation of selection and folding.
        allocation: How layers share what goes, one of :data:`yolo_prune.cut.allocation.ALLOCATIONS`. None: ``global``;
            for ``reconstruction`` what :func:`yolo_prune.recover.allocating.try_allocations` finds best.
        depth: Drop residual blocks as a whole too, where the model at the budget is better off without them.
    """

    criterion: str = RECONSTRUCTION
    steps: int = 12
    widths: Widths = field(default_factory=Widths)
    fold: bool = True
    seed: int = 0
    ridge: float = 1e-3
    allocation: str | None = None
    depth: bool = False


@dataclass(frozen=True)
class Cut:
    """A model on the way, the plan from the parent to it (None: it is the parent), and the proof of its last step."""

    traced: Traced
    plan: PrunePlan | None
    equivalence: dict[str, Any] = field(default_factory=dict)

    def then(self, traced: Traced, made: PrunePlan) -> Cut:
        """Return the model after one more cut."""
        return Cut(traced, made if self.plan is None else self.plan.then(made), made.equivalence)


@dataclass(frozen=True)
class Advance:
    """Takes the next step from a model on the way.

    Attributes:
        budget: What the way ends at.
        recipe: How to cut.
        calibration: What is measured on.
        lineage: Cuts before the way began.
        aim: What is known of the way so far.
        device: Where models are cut; those that wait may be elsewhere.
        moments: Of the model that the way begins with, where they were measured before.
    """

    budget: Budget
    recipe: Recipe
    calibration: Calibration
    lineage: Lineage
    aim: Aim[Cut]
    device: torch.device
    moments: dict[str, Moments] = field(default_factory=dict)

    def __call__(self, cut: Cut, amount: float, description: str = "correcting") -> Cut:
        """Return the model cut to an amount; to its floors, where only a measurement says that it must be less.

        Raises:
            BudgetError: The amount is out of reach.
        """
        if next(cut.traced.module.parameters()).device != self.device:  # it waited elsewhere
            cut.traced.module.to(self.device)
        past = self.lineage if cut.plan is None else self.lineage.then(cut.plan)

        def to(amount: float) -> Cut:
            target = Budget.of(self.budget.gradient, amount)
            known = self.moments if cut.plan is None else None
            return cut.then(
                *one_step(cut.traced, target, self.recipe, self.calibration, description, past, known)
            )

        try:
            return to(amount)
        except BudgetError as error:
            if not self.aim.looks:
                raise
            self.aim.why = str(error)
            cost = cut.traced.cost
            floors = least_channels(cost, self.recipe.widths, past.wholes(cost.graph))
            return to(self.budget.measure(cost, floors))


def one_step(
    current: Traced,
    budget: Budget,
    recipe: Recipe,
    calibration: Calibration,
    description: str,
    lineage: Lineage | None = None,
    known: dict[str, Moments] | None = None,
) -> tuple[Traced, PrunePlan]:
    """Measure, choose, fold and cut a copy; a module whose cut is not exact is frozen and the step starts again.

    Args:
        current: What is cut.
        budget: To what.
        recipe: How.
        calibration: What is measured on.
        description: Of the step, for a progress bar.
        lineage: Cuts before.
        known: Moments of the same module and images, if they were measured before.
    """

    def attempt(traced: Traced) -> tuple[nn.Module, PrunePlan]:
        module, cost = traced.module, traced.cost
        moments = known or {}
        if not moments and (recipe.fold or recipe.criterion == RECONSTRUCTION) and calibration.batches:
            moments = collect_moments(
                module, cost.graph, calibration, description=f"{description}: measuring"
            )
        wholes = lineage.wholes(cost.graph) if lineage else None
        keep = _choose(module, cost, moments, budget, recipe, calibration, wholes)
        folded = copy.deepcopy(module)
        if recipe.fold and moments:
            fold_removed_(folded, cost.graph, keep, moments, ridge=recipe.ridge)
        return folded, cut_proven_(folded, cost, keep, traced.anatomy)[0]

    (smaller, made), anatomy = until_exact(current, attempt)
    return Traced.of(smaller, anatomy), made


def _choose(
    module: nn.Module,
    cost: CostModel,
    moments: dict[str, Moments],
    budget: Budget,
    recipe: Recipe,
    calibration: Calibration,
    wholes: IntArray | None,
) -> BoolArray:
    """Return which channels stay."""
    measured = recipe.criterion == RECONSTRUCTION
    allocation = recipe.allocation or GLOBAL
    cost_power = COST_POWERS.get(allocation, 0.0)
    turns = Turns(allocation, module, cost.graph, wholes)
    if measured:
        return choose_by_reconstruction(
            *(module, cost, moments, budget),
            widths=recipe.widths,
            wholes=wholes,
            ridge=recipe.ridge,
            cost_power=cost_power,
            turns=turns,
        )
    scores = score_channels(recipe.criterion, module, cost.graph, calibration, recipe.seed)
    return choose_channels(
        cost, scores, budget, widths=recipe.widths, wholes=wholes, cost_power=cost_power, turns=turns
    )
