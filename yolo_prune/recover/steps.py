"""Cut to a budget in steps: measure, choose, fold, cut, prove, and measure again on the smaller model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from yolo_prune.cost import CostModel
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import collect_moments
from yolo_prune.criteria.ranking import score_channels
from yolo_prune.cut.allocation import GLOBAL
from yolo_prune.cut.blocks import ResidualBlock
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.depth import saved_by_drop, worth_inside
from yolo_prune.cut.plan import against_parent, check_possible, make_plan
from yolo_prune.cut.proven import Anatomy, Traced, offered_blocks
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.widths import Lineage
from yolo_prune.errors import BudgetError
from yolo_prune.progress import LOGGER
from yolo_prune.recover.aim import Aim, Reached, Timed, waypoints
from yolo_prune.recover.allocating import try_allocations
from yolo_prune.recover.branches import branch_cost, drop_and_refit
from yolo_prune.recover.cliff import score_waiting_models
from yolo_prune.recover.drops import drop_while_it_pays, fidelity_to
from yolo_prune.recover.one_step import Advance, Cut, Recipe, one_step

_REMEMBERED = 3  # models that a correction may begin at, beside the parent


@dataclass(frozen=True)
class Step:
    """One cut on the way.

    Attributes:
        kept: Fraction of the budget's unit (MACs, parameters or predicted time) that stays after it.
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
        reached: How a budget of time was met, where that was measured.
    """

    module: nn.Module
    plan: PrunePlan
    steps: tuple[Step, ...]
    reached: Reached | None = None


def cut_in_steps(
    parent: Traced,
    budget: Budget,
    recipe: Recipe,
    calibration: Calibration | None = None,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    lineage: Lineage | None = None,
    measure: Callable[[nn.Module, PrunePlan], Timed] | None = None,
    whole: float | None = None,
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
        measure: Times a cut model, whose plan it gets too, for a budget of time: half way, and at the end until it is
            met. None: what is predicted counts.
        whole: What the model before all cuts took, of which the prediction is right; None: that is ``parent``.

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
    tried = try_allocations(parent, budget, recipe, calibration, lineage)
    recipe, begin = tried.recipe, Cut(tried.parent, None)
    if recipe.depth:
        judge = validate or fidelity_to(parent, calibration)
        begin = Cut(*_drop_blocks(tried.parent, budget.absolute(parent.cost), recipe, calibration, judge))
    timing = measure and partial(_time, measure)
    aim = Aim[Cut](whole or full, limit, timing, lambda cut: cut.traced.amount(budget))
    device = next(parent.module.parameters()).device
    advance = Advance(budget, recipe, calibration, lineage, aim, device, tried.moments)
    way, steps = [begin], list[Step]()
    start = aim.amount(begin)
    for number, share in enumerate(waypoints(limit / start, recipe.steps), 1):
        description = f"step {number}/{recipe.steps}"
        way.append(advance(way[-1], aim.at(share * start), description))
        steps.append(Step(aim.amount(way[-1]) / full, way[-1].equivalence))
        LOGGER.info("%s: %.1f %% kept", description, 100 * steps[-1].kept)
        if number == recipe.steps // 2:
            aim.look(way[-1])
        if validate is None:
            way = [way[0], *way[1:][-(_REMEMBERED if measure else 1) :]]
        for earlier in way[1:-1]:  # they wait to be scored, or for a correction
            earlier.traced.module.cpu()
    last, reached = aim.settle(way, advance)
    if last.plan is None:
        return CutResult(copy.deepcopy(parent.module), _identity_plan(parent.cost, budget), ())
    if reached is None:
        _check_met(steps[-1].kept, limit / full, budget, recipe, last.traced.anatomy)
    steps[-1] = Step(aim.amount(last) / full, last.equivalence)
    if validate is not None:
        models = [cut.traced.module for cut in (*way[1 : len(steps)], last)]
        steps = _scored(steps, models, validate)
    plan = _summarise(last.plan, parent, last.traced, budget, recipe, steps)
    if tried.distances:
        plan = replace(plan, settings={**plan.settings, "tried": tried.distances})
    return CutResult(last.traced.module, plan, tuple(steps), reached)


def _time(measure: Callable[[nn.Module, PrunePlan], Timed], cut: Cut) -> Timed:
    return measure(cut.traced.module, cut.plan or PrunePlan({}, {}))


def _scored(
    steps: Sequence[Step], models: Sequence[nn.Module], validate: Callable[[nn.Module], float]
) -> list[Step]:
    """Return the steps with the scores that show where accuracy falls off."""
    scores = score_waiting_models(models, validate)
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
        return judge(one_step(model, budget, recipe, calibration, "trying depth")[0].module)

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
            "allocation": recipe.allocation or GLOBAL,
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
