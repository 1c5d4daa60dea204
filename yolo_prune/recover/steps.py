"""Cut to a budget in steps: measure, choose, fold, cut, prove, and measure again on the smaller model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from yolo_prune.cost import CostModel
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import Moments, collect_moments
from yolo_prune.criteria.ranking import score_channels
from yolo_prune.criteria.reconstruction import choose_by_reconstruction
from yolo_prune.cut.blocks import ResidualBlock
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.depth import saved_by_drop, worth_inside
from yolo_prune.cut.plan import against_parent, check_possible, choose_channels, make_plan
from yolo_prune.cut.proven import Anatomy, Traced, cut_proven_, offered_blocks, until_exact
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.widths import Lineage, Widths
from yolo_prune.errors import BudgetError
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.progress import LOGGER
from yolo_prune.recover.branches import branch_cost, drop_and_refit
from yolo_prune.recover.cliff import score_around_cliffs
from yolo_prune.recover.drops import drop_while_it_pays, fidelity_to
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
        cost_power: Saved cost counts to this power.
        depth: Drop residual blocks as a whole too, where the model at the budget is better off without them.
    """

    criterion: str = RECONSTRUCTION
    steps: int = 12
    widths: Widths = field(default_factory=Widths)
    fold: bool = True
    seed: int = 0
    ridge: float = 1e-3
    cost_power: float = 1.0
    depth: bool = False


@dataclass(frozen=True)
class Step:
    """One cut on the way.

    Attributes:
        kept: Fraction of the budget's unit (MACs or parameters) that stays after it.
        equivalence: Outcome of its proof.
        score: What ``validate`` returned for the model after it, None where it was not asked.
    """

    kept: float
    equivalence: dict[str, Any]
    score: float | None = None


@dataclass(frozen=True)
class CutResult:
    """A model cut to its budget.

    Attributes:
        module: The cut (and folded) copy.
        plan: One plan from the parent to it; ``equivalence`` holds the worst of the proofs.
        steps: One entry a cut.
    """

    module: nn.Module
    plan: PrunePlan
    steps: tuple[Step, ...]


def waypoints(target: float, steps: int) -> list[float]:
    """Return the budgets of the steps, as fractions of the parent: evenly spaced from 1 (left out) to ``target``."""
    return [float(value) for value in np.linspace(1.0, target, steps + 1)[1:]]


def cut_in_steps(
    parent: Traced,
    budget: Budget,
    recipe: Recipe,
    calibration: Calibration | None = None,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    lineage: Lineage | None = None,
) -> CutResult:
    """Cut a copy of ``parent`` to a budget.

    Args:
        parent: The model, which stays as it is, and how to run it.
        budget: How much may stay.
        recipe: How.
        calibration: Images and how the model runs on them, needed to fold and for ``reconstruction``.
        validate: Scores the models after the first and the last step, and after those between where it takes that to
            find a cliff (:func:`yolo_prune.recover.cliff.score_around_cliffs`). With ``depth`` it scores models without
            blocks that may be dropped, which else are judged by the error of the outputs on the calibration images.
            Larger is better.
        lineage: Cuts that led to ``parent``, where floors are shares of widths before them; None: there are none.

    Returns:
        The cut copy, its plan and the steps.

    Raises:
        BudgetError: The budget cannot be met; known before anything is measured unless the criterion falls short.
        DataError: There are no images, but something has to be measured on them.
        EquivalenceError: No exact cut was found.
    """
    calibration = calibration or Calibration()
    full, limit = parent.amount(budget), budget.limit(parent.cost)
    if limit >= full:
        return CutResult(copy.deepcopy(parent.module), _identity_plan(parent.cost, budget), ())
    lineage = lineage or Lineage.of(parent.cost.graph)
    wholes = lineage.wholes(parent.cost.graph)
    recipe = replace(recipe, widths=recipe.widths.for_budget(limit / full))
    check_possible(parent.cost, budget, recipe.widths, wholes)
    current, plan = parent, None
    if recipe.depth:
        judge = validate or fidelity_to(parent, calibration)
        current, plan = _drop_blocks(parent, budget.absolute(parent.cost), recipe, calibration, judge)
    start = current.amount(budget)
    models, steps = list[nn.Module](), list[Step]()
    for number, share in enumerate(waypoints(limit / start, recipe.steps), 1):
        target = Budget.of(budget.gradient, share * start)
        description = f"step {number}/{recipe.steps}"
        past = lineage if plan is None else lineage.then(plan)
        current, made = _one_step(current, target, recipe, calibration, description, past)
        plan = made if plan is None else plan.then(made)
        steps.append(Step(current.amount(budget) / full, made.equivalence))
        LOGGER.info("%s: %.1f %% kept", description, 100 * steps[-1].kept)
        if validate is not None:
            models = [*(model.cpu() for model in models), current.module]
    if plan is None:
        return CutResult(copy.deepcopy(parent.module), _identity_plan(parent.cost, budget), ())
    _check_met(steps[-1].kept, limit / full, budget, recipe, current.anatomy)
    if validate is not None:
        steps = _scored(steps, models, validate)
    return CutResult(current.module, _summarise(plan, parent, current, budget, recipe, steps), tuple(steps))


def _scored(
    steps: Sequence[Step], models: Sequence[nn.Module], validate: Callable[[nn.Module], float]
) -> list[Step]:
    """Return the steps with the scores that show where accuracy falls off; all models but the last wait on the CPU."""
    device = next(models[-1].parameters()).device

    def score(model: nn.Module) -> float:
        try:
            return validate(model.to(device))
        finally:
            model.to("cpu" if model is not models[-1] else device)

    scores = score_around_cliffs(models, score)
    for step, value in zip(steps, scores, strict=True):
        if value is not None:
            LOGGER.info("%.1f %% kept: score %.3f", 100 * step.kept, value)
    return [replace(step, score=value) for step, value in zip(steps, scores, strict=True)]


def _check_met(kept: float, limit: float, budget: Budget, recipe: Recipe, anatomy: Anatomy) -> None:
    """Refuse a result that keeps more of the parent than was asked for."""
    if kept > limit * (1 + 1e-9):
        frozen = ", ".join((*anatomy.keep_layers, *anatomy.held)) or "nothing"
        raise BudgetError(
            f"cannot meet {budget.kind}={budget.value:g} by {recipe.criterion}: {100 * kept:.1f} % of the "
            f"{budget.gradient} remain with everything at its floor that it can rank (not what attention sums over) "
            f"and that may go (frozen: {frozen}). Raise the budget or use criterion=bn_scale."
        )


def _one_step(
    current: Traced,
    budget: Budget,
    recipe: Recipe,
    calibration: Calibration,
    description: str,
    lineage: Lineage | None = None,
) -> tuple[Traced, PrunePlan]:
    """Measure, choose, fold and cut a copy; a module whose cut is not exact is frozen and the step starts again."""

    def attempt(traced: Traced) -> tuple[nn.Module, PrunePlan]:
        module, cost = traced.module, traced.cost
        moments: dict[str, Moments] = {}
        if (recipe.fold or recipe.criterion == RECONSTRUCTION) and calibration.batches:
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


def _drop_blocks(
    parent: Traced,
    budget: Budget,
    recipe: Recipe,
    calibration: Calibration,
    judge: Callable[[nn.Module], float],
) -> tuple[Traced, PrunePlan | None]:
    """Return a model without the blocks that are better dropped, and the plan, None when there are none."""

    def drop(model: Traced, block: ResidualBlock) -> tuple[Traced, PrunePlan]:
        return drop_and_refit(model, block, calibration, fold=recipe.fold)

    def value(model: Traced) -> float:
        return judge(_one_step(model, budget, recipe, calibration, "trying depth")[0].module)

    order = _order_of_blocks(parent, budget, recipe, calibration)
    return drop_while_it_pays(parent, budget, order, drop, value)


def _order_of_blocks(traced: Traced, budget: Budget, recipe: Recipe, calibration: Calibration) -> list[str]:
    """Return the names of the blocks, first the one that loses least for what it saves."""
    module, cost = traced.module, traced.cost
    blocks = offered_blocks(module, traced.anatomy)
    if recipe.criterion == RECONSTRUCTION:
        names = [block.name for block in blocks]
        moments = collect_moments(
            module, cost.graph, calibration, description="measuring blocks", blocks=names
        )
        lost = {
            block: branch_cost(moments[block.name], recipe.ridge) for block in blocks if block.name in moments
        }
    else:
        scores = score_channels(recipe.criterion, module, cost.graph, calibration, recipe.seed)
        lost = {block: worth_inside(cost, scores, block) for block in blocks}
    saved = {block: saved_by_drop(module, cost, block, budget.gradient) for block in lost}
    return [block.name for block in sorted(lost, key=lambda block: lost[block] / max(saved[block], 1e-12))]


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
    if recipe.criterion != RECONSTRUCTION:
        scores = score_channels(recipe.criterion, module, cost.graph, calibration, recipe.seed)
        return choose_channels(cost, scores, budget, widths=recipe.widths, wholes=wholes, cost_power=0.0)
    return choose_by_reconstruction(
        module,
        cost,
        moments,
        budget,
        widths=recipe.widths,
        wholes=wholes,
        ridge=recipe.ridge,
        cost_power=recipe.cost_power,
    )


def _identity_plan(cost: CostModel, budget: Budget) -> PrunePlan:
    """Return the plan that keeps everything."""
    return make_plan(cost, cost.everything, budget=budget)


def _summarise(
    plan: PrunePlan,
    parent: Traced,
    cut: Traced,
    budget: Budget,
    recipe: Recipe,
    steps: Sequence[Step],
) -> PrunePlan:
    """Give the composed plan the parent's terms: costs against the parent, and the settings."""
    return replace(
        against_parent(plan, parent.cost, cut.cost, budget),
        settings={
            "criterion": recipe.criterion,
            "steps": recipe.steps,
            "round_to": recipe.widths.round_to,
            "min_width": recipe.widths.min_width,
            "min_keep": recipe.widths.min_keep,
            "fold": recipe.fold,
            "depth": recipe.depth,
            "seed": recipe.seed,
            "keep_layers": [*cut.anatomy.keep_layers, *cut.anatomy.held],
            "cliff": [[round(r.kept, 4), r.score] for r in steps if r.score is not None],
        },
    )
