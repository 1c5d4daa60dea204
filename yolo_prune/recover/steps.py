"""Cut to a budget in steps: measure, choose, fold, cut, prove, and measure again on the smaller model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from yolo_prune.cost import CostModel
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.criteria.backward import TaskLoss
from yolo_prune.criteria.moments import Moments, collect_moments
from yolo_prune.criteria.reconstruction import choose_by_reconstruction
from yolo_prune.criteria.weights import find_criterion
from yolo_prune.cut.blocks import ResidualBlock
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.depth import saved_by_drop, worth_inside
from yolo_prune.cut.plan import against_parent, check_possible, choose_channels, make_plan
from yolo_prune.cut.proven import Anatomy, cut_proven_, offered_blocks
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.widths import Lineage, Widths
from yolo_prune.errors import BudgetError, EquivalenceError
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.progress import LOGGER
from yolo_prune.recover.branches import branch_cost, drop_and_refit
from yolo_prune.recover.drops import drop_while_it_pays, fidelity_to
from yolo_prune.recover.fold import fold_removed_

_ATTEMPTS = 8


@dataclass(frozen=True)
class Recipe:
    """How to get from the parent to the budget.

    Attributes:
        criterion: ``reconstruction`` or a key of :data:`yolo_prune.criteria.weights.SCORES`.
        steps: How many cuts.
        widths: Allowed widths.
        fold: Fold what removed channels did into the kept ones.
        seed: Of pixels and of ``criterion="random"``.
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
    parent: nn.Module,
    anatomy: Anatomy,
    budget: Budget,
    recipe: Recipe,
    *,
    batches: Sequence[Tensor] = (),
    task: TaskLoss | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    lineage: Lineage | None = None,
) -> CutResult:
    """Cut a copy of ``parent`` to a budget.

    Args:
        parent: The model; untouched.
        anatomy: How to run it.
        budget: How much may stay.
        recipe: How.
        batches: Calibration images, needed to fold and for ``reconstruction``.
        task: As in :func:`yolo_prune.recover.collect_moments`.
        validate: Scores the model after each step (for the cliff), and without blocks that ``depth`` may drop, which
            else are judged by the error of the outputs on the calibration images; larger is better.
        lineage: Cuts that led to ``parent``, where floors are shares of widths before them; None: there are none.

    Returns:
        The cut copy, its plan and the steps.

    Raises:
        BudgetError: The budget cannot be met; known before anything is measured unless the criterion falls short.
        DataError: There are no images, but something has to be measured on them.
        EquivalenceError: No exact cut was found.
    """
    before = anatomy.cost_of(parent)
    everything = before.everything
    full, limit = budget.measure(before, everything), budget.limit(before)
    if limit >= full:
        return CutResult(copy.deepcopy(parent), _identity_plan(before, budget), ())
    lineage = lineage or Lineage.of(before.graph)
    wholes = lineage.wholes(before.graph)
    recipe = replace(recipe, widths=recipe.widths.for_budget(limit / full))
    check_possible(before, budget, recipe.widths, wholes)
    module, plan, steps = copy.deepcopy(parent), None, []
    if recipe.depth:
        judge = validate or fidelity_to(module, anatomy, batches)
        last = Budget.of(budget.gradient, limit)
        module, plan = _drop_blocks(module, anatomy, last, recipe, batches, task, judge)
    start = _amount(module, anatomy, budget)
    for number, share in enumerate(waypoints(limit / start, recipe.steps), 1):
        target = Budget.of(budget.gradient, share * start)
        description = f"step {number}/{recipe.steps}"
        past = lineage if plan is None else lineage.then(plan)
        module, made, anatomy = _one_step(module, anatomy, target, recipe, batches, task, description, past)
        plan = made if plan is None else plan.then(made)
        kept = _amount(module, anatomy, budget) / full
        score = validate(module) if validate else None
        steps.append(Step(kept, made.equivalence, score))
        LOGGER.info(
            "%s: %.1f %% kept%s", description, 100 * kept, "" if score is None else f", score {score:.3f}"
        )
    if plan is None:
        return CutResult(module, _identity_plan(before, budget), ())
    if steps[-1].kept * full > limit * (1 + 1e-9):
        frozen = ", ".join((*anatomy.keep_layers, *anatomy.held)) or "nothing"
        raise BudgetError(
            f"cannot meet {budget.kind}={budget.value:g} by {recipe.criterion}: {100 * steps[-1].kept:.1f} % of the "
            f"{budget.gradient} remain with everything at its floor that it can rank (not what attention sums over) "
            f"and that may go (frozen: {frozen}). Raise the budget or use criterion=bn_scale."
        )
    return CutResult(module, _summarise(plan, before, module, anatomy, budget, recipe, steps), tuple(steps))


def _amount(module: nn.Module, anatomy: Anatomy, budget: Budget) -> float:
    """Return what a module costs in the budget's unit."""
    cost = anatomy.cost_of(module)
    return budget.measure(cost, cost.everything)


def _one_step(
    module: nn.Module,
    anatomy: Anatomy,
    budget: Budget,
    recipe: Recipe,
    batches: Sequence[Tensor],
    task: TaskLoss | None,
    description: str,
    lineage: Lineage | None = None,
) -> tuple[nn.Module, PrunePlan, Anatomy]:
    """Measure, choose, fold and cut once; a module whose cut is not exact is frozen and the step starts again."""
    for _ in range(_ATTEMPTS):
        cost = anatomy.cost_of(module)
        moments: dict[str, Moments] = {}
        if (recipe.fold or recipe.criterion == RECONSTRUCTION) and batches:
            moments = collect_moments(
                module,
                cost.graph,
                batches,
                task=task,
                seed=recipe.seed,
                description=f"{description}: measuring",
            )
        keep = _choose(module, cost, moments, budget, recipe, lineage.wholes(cost.graph) if lineage else None)
        folded = copy.deepcopy(module)
        if recipe.fold and moments:
            fold_removed_(folded, cost.graph, keep, moments, ridge=recipe.ridge)
        try:
            made, _ = cut_proven_(folded, cost, keep, anatomy)
            return folded, made, anatomy
        except EquivalenceError as error:
            anatomy = anatomy.without(error)
            LOGGER.warning("%s Freezing %s and planning again.", error, ", ".join(error.freeze))
    raise EquivalenceError(f"no exact cut was found after freezing {', '.join(anatomy.held)}.")


def _drop_blocks(
    module: nn.Module,
    anatomy: Anatomy,
    budget: Budget,
    recipe: Recipe,
    batches: Sequence[Tensor],
    task: TaskLoss | None,
    judge: Callable[[nn.Module], float],
) -> tuple[nn.Module, PrunePlan | None]:
    """Return a model without the blocks that are better dropped, and the plan, None when there are none."""

    def drop(model: nn.Module, cost: CostModel, block: ResidualBlock) -> tuple[nn.Module, PrunePlan]:
        return drop_and_refit(
            model, cost, block, anatomy, batches, task=task, seed=recipe.seed, fold=recipe.fold
        )

    def value(model: nn.Module) -> float:
        return judge(_one_step(model, anatomy, budget, recipe, batches, task, "trying depth")[0])

    order = _order_of_blocks(module, anatomy, budget, recipe, batches, task)
    return drop_while_it_pays(module, anatomy, budget, order, drop, value)


def _order_of_blocks(
    module: nn.Module,
    anatomy: Anatomy,
    budget: Budget,
    recipe: Recipe,
    batches: Sequence[Tensor],
    task: TaskLoss | None,
) -> list[str]:
    """Return the names of the blocks, first the one that loses least for what it saves."""
    cost, blocks = anatomy.cost_of(module), offered_blocks(module, anatomy)
    if recipe.criterion == RECONSTRUCTION:
        names = [block.name for block in blocks]
        moments = collect_moments(
            module,
            cost.graph,
            batches,
            task=task,
            seed=recipe.seed,
            description="measuring blocks",
            blocks=names,
        )
        lost = {
            block: branch_cost(moments[block.name], recipe.ridge) for block in blocks if block.name in moments
        }
    else:
        scores = find_criterion(recipe.criterion)(module, cost.graph, recipe.seed)
        lost = {block: worth_inside(cost, scores, block) for block in blocks}
    saved = {block: saved_by_drop(module, cost, block, budget.gradient) for block in lost}
    return [block.name for block in sorted(lost, key=lambda block: lost[block] / max(saved[block], 1e-12))]


def _choose(
    module: nn.Module,
    cost: CostModel,
    moments: dict[str, Moments],
    budget: Budget,
    recipe: Recipe,
    wholes: IntArray | None,
) -> BoolArray:
    """Return which channels stay."""
    if recipe.criterion != RECONSTRUCTION:
        scores = find_criterion(recipe.criterion)(module, cost.graph, recipe.seed)
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
    before: CostModel,
    module: nn.Module,
    anatomy: Anatomy,
    budget: Budget,
    recipe: Recipe,
    steps: Sequence[Step],
) -> PrunePlan:
    """Give the composed plan the parent's terms: costs against the parent, and the settings."""
    return replace(
        against_parent(plan, before, anatomy.cost_of(module), budget),
        settings={
            "criterion": recipe.criterion,
            "steps": recipe.steps,
            "round_to": recipe.widths.round_to,
            "min_width": recipe.widths.min_width,
            "min_keep": recipe.widths.min_keep,
            "fold": recipe.fold,
            "depth": recipe.depth,
            "seed": recipe.seed,
            "keep_layers": [*anatomy.keep_layers, *anatomy.held],
            "cliff": [[round(r.kept, 4), r.score] for r in steps if r.score is not None],
        },
    )
