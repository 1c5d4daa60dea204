"""Structure alone: trace, rank, plan, cut and prove, for any module, without data and without a host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from yolo_prune.cost import CostModel, FloatArray
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.criteria.batches import ReadLabels, are_given, calibration_of
from yolo_prune.criteria.calibration import Calibration, Forward, Projection, call
from yolo_prune.criteria.heads import measured_at_heads
from yolo_prune.criteria.memory import sized_for_memory
from yolo_prune.criteria.ranking import check_scores, score_channels
from yolo_prune.cut.budget import Budget, one_budget
from yolo_prune.cut.depth import choose_block, worth_inside
from yolo_prune.cut.optimizer import check_can_follow, count_left_behind, follow_cut
from yolo_prune.cut.plan import against_parent, check_possible, choose_channels
from yolo_prune.cut.proven import (
    Anatomy,
    Traced,
    cut_proven_,
    drop_proven_,
    offered_blocks,
    until_exact,
)
from yolo_prune.cut.prunable import check_prunable
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError, ConfigError, EquivalenceError
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.copies import check_has_weights, copy_with
from yolo_prune.graph.decisions import Positions
from yolo_prune.graph.module_rules import ModuleRules
from yolo_prune.graph.rules import Operator
from yolo_prune.graph.trace import OutputSelector
from yolo_prune.progress import LOGGER
from yolo_prune.recover.effort import images_for
from yolo_prune.recover.imitate import LESSONS
from yolo_prune.recover.one_step import Recipe
from yolo_prune.recover.stages import recover_without_labels
from yolo_prune.recover.steps import cut_in_steps

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_TOLERANCE = 0.02  # share of the budget by which a result may miss it


def _tell_former_name(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Answer the former name of a keyword with its present one."""

    @functools.wraps(function)
    def called(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if "freeze" in kwargs:
            raise ConfigError(
                "'freeze' is called 'keep_layers' now: module names or patterns whose channels stay."
            )
        return function(*args, **kwargs)

    return called


@_tell_former_name
def prune_module(
    module: nn.Module,
    example_input: Any,
    *,
    keep_macs: float | None = None,
    gmacs: float | None = None,
    keep_params: float | None = None,
    criterion: str | None = None,
    keep_layers: Sequence[str] = (),
    round_to: int = 8,
    min_width: int = 8,
    min_keep: float | None = None,
    seed: int = 0,
    depth: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    cost_input: Any = None,
    rules: ModuleRules | None = None,
    operators: Mapping[str, Operator] | None = None,
    select_outputs: OutputSelector | None = None,
    calibration: Iterable[Any] = (),
    calibration_images: int | None = None,
    forward: Forward = call,
    projection: Projection | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    labels: ReadLabels | None = None,
    steps: int = 12,
    imitation_steps: int = 240,
) -> PrunePlan:
    """Prune any module, in place: trace, rank, plan, cut, and prove that the cut is exact; with images recover, too.

    With ``calibration`` channels are ranked by how well the others can stand in for them on these images, what the
    removed ones contributed is folded into the kept ones, and the cut module imitates the uncut one on them as far as
    that brings it closer; no labels are needed. Without it weights alone rank.

    Parameters are replaced. An optimizer that was made before goes on training the old ones, unless it is given here
    or to :func:`yolo_prune.follow_cut` afterwards.

    Args:
        module: Any module; its parameters are replaced by smaller ones.
        example_input: What the module is called with, batch size 1: a tensor (or a list of images) alone, a tuple of
            positional arguments, or a dict of keyword arguments; small sizes trace faster.
        keep_macs: Fraction of the MACs that stays; give exactly one budget.
        gmacs: Absolute budget in 1e9 MACs.
        keep_params: Fraction of the parameters that stays.
        criterion: One of :data:`yolo_prune.criteria.CRITERIA`, of which the first need ``calibration``, or ``tp:`` and
            the name of one of Torch-Pruning's estimators. None: ``reconstruction`` with images, else ``bn_scale``.
        keep_layers: Module names or patterns whose channels stay.
        round_to: Widths become multiples of this.
        min_width: Smallest width of a group.
        min_keep: Smallest share of its width that a group keeps, in [0, 1]. None: 0.7 of what an even cut to the
            budget leaves, and less where the budget cannot be met otherwise.
        seed: For ``criterion="random"``.
        depth: Drop whole residual blocks too, where that loses less than narrower layers that save as much.
        optimizer: Trains the module, and is handed the new parameters with what it remembers of them.
        cost_input: Input whose MACs count, when it is not the example.
        rules: Module classes that bake widths into attributes or split channels, see
            :class:`yolo_prune.graph.ModuleRule`.
        operators: Rules for operators that have none, see :mod:`yolo_prune.graph.rules`.
        select_outputs: Picks the outputs of fixed width; default: all tensors.
        calibration: Batches of training images as the module takes them: a loader, or a list. See
            :class:`yolo_prune.criteria.calibration.Calibration`.
        calibration_images: How many of them are looked at. None: 256, of a classifier 512.
        forward: ``forward(module, batch)`` runs the module on a batch that is not its one argument and returns its
            outputs: ``lambda module, batch: module(batch[0])``.
        projection: Scalar of the outputs whose squared gradient says how much predictions change. None:
            :func:`yolo_prune.criteria.projection.output_projection`.
        validate: Accuracy of a module, larger is better: BatchNorm statistics are estimated again where that
            validates better, and ``depth`` is judged by it.
        labels: ``labels(batches)`` returns what is in each image of some batches, one
            :class:`yolo_prune.criteria.calibration.Labels` an image; ``criterion="svm"`` alone needs it.
        steps: Steps of measuring, choosing and folding on the way, with images.
        imitation_steps: Steps in which the cut module imitates the uncut one on the images; 0 leaves that out, see
            :func:`yolo_prune.recover.imitate.imitate_`.

    Returns:
        The plan: what stayed, ``kept_macs``, the proof in ``equivalence``, and what was frozen and why.

    Raises:
        BudgetError: The budget cannot be met, or not exactly one was given; the module is untouched.
        ConfigError: The module does not run on the example or on a calibration batch, has no weights (the meta device),
            is scripted, quantised or in DataParallel, or runs in 16 bits alone; a number is out of range; or the
            optimizer holds none of its parameters or cannot follow a cut.
        DataError: The module makes infinite numbers or NaN of the calibration images.
        EquivalenceError: No exact cut was found, or none that could be proven; the module is untouched.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
        >>> plan = prune_module(net, torch.rand(1, 3, 16, 16), keep_macs=0.5)
        >>> net[0].out_channels, plan.equivalence["exact"]
        (16, True)
    """
    budget = one_budget(keep_macs=keep_macs, gmacs=gmacs, keep_params=keep_params)
    check_prunable(module)
    _check_counts(
        calibration_images=(calibration_images, 1), steps=(steps, 1), imitation_steps=(imitation_steps, 0)
    )
    if optimizer is not None:
        check_can_follow(optimizer, module)
    widths = Widths(round_to, min_width, min_keep)
    anatomy = Anatomy(
        *(example_input, cost_input, rules, select_outputs, tuple(keep_layers), operators),
        positions=Positions(),
    )
    check_has_weights(module, "a cut that is proven")
    if criterion is not None and not (criterion == RECONSTRUCTION and are_given(calibration)):
        check_scores(criterion, images=are_given(calibration), labels=labels is not None)
    before = anatomy.cost_of(module)
    limit = budget.absolute(before)
    check_possible(before, limit, widths)
    target = copy_with(module, Tensor.clone)  # the module itself changes when everything has worked
    traced = Traced(target, anatomy, before)
    how_many = functools.partial(_most_images, calibration_images)
    images = calibration_of(module, calibration, how_many, forward, projection, seed, labels)
    if images is not None:
        recipe = Recipe(criterion or RECONSTRUCTION, steps, widths, seed=seed, depth=depth)
        plan = _cut_on_images_(module, traced, budget, recipe, images, validate, imitation_steps)
        _tell_optimizer(optimizer, module)
        return plan
    ranking = _Ranking(criterion or "bn_scale", seed, widths)
    earlier, traced = _drop_blocks_(traced, limit, ranking) if depth else (None, traced)
    plan, anatomy = until_exact(traced, lambda traced: _cut_widths_(traced, limit, ranking))
    plan = against_parent(earlier.then(plan) if earlier else plan, before, anatomy.cost_of(target), budget)
    _check_met(plan, limit)
    cut_(module, plan, rules=rules)
    _tell_optimizer(optimizer, module)
    floors = {"min_width": min_width, "min_keep": min_keep}
    return replace(
        plan,
        settings={
            "criterion": criterion or "bn_scale",
            "round_to": round_to,
            **floors,
            "seed": seed,
            "depth": depth,
        },
    )


def _most_images(given: int | None, classifies: bool) -> int:
    """Return how many images are measured and imitated on."""
    return max(images_for(None, classifies), LESSONS) if given is None else given


def _check_counts(**numbers: tuple[int | None, int]) -> None:
    """Refuse numbers below what each of them may be."""
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}.")


def _cut_on_images_(
    module: nn.Module,
    traced: Traced,
    budget: Budget,
    recipe: Recipe,
    images: Calibration,
    validate: Callable[[nn.Module], float] | None,
    imitation_steps: int,
) -> PrunePlan:
    """Cut in steps, fold and imitate, in place; nothing is changed when that fails."""
    target, graph = traced.module, traced.cost.graph
    images = sized_for_memory(measured_at_heads(target, graph, images), target, graph)
    cut = cut_in_steps(traced, budget, recipe, images, validate=validate if recipe.depth else None)
    _check_met(cut.plan, budget.absolute(traced.cost))
    best, plan = cut.module, cut.plan
    if cut.steps:
        best, _, result = recover_without_labels(
            traced, cut, images, folded=recipe.fold, steps=imitation_steps, score=validate
        )
        if result is not None:
            plan = replace(plan, settings={**plan.settings, "imitation": result.to_dict()})
    cut_(module, plan, rules=traced.anatomy.rules)
    module.load_state_dict(best.state_dict())
    return plan


def _check_met(plan: PrunePlan, limit: Budget) -> None:
    """Refuse a result that costs more than was planned."""
    left, unit = (plan.params, 1e6) if limit.gradient == "params" else (plan.gmacs, 1.0)
    if left > limit.value * (1.0 + _TOLERANCE):
        name = "M parameters" if limit.gradient == "params" else "GMACs"
        raise BudgetError(
            f"the budget was {limit.value / unit:.3g} {name}, but the cut model costs {left / unit:.3g} on the "
            "example: how much it runs depends on values there. Give the dense part of the model, or an example on "
            "which it runs as on the parent."
        )


def _tell_optimizer(optimizer: torch.optim.Optimizer | None, module: nn.Module) -> None:
    """Hand an optimizer the new parameters; without one, say it where something still holds old ones."""
    if optimizer is not None:
        follow_cut(optimizer, module)
    elif left := count_left_behind(module):
        LOGGER.warning(
            "%d parameters were replaced by smaller ones, and something still holds the old: an optimizer made before "
            "this cut goes on training those. Call yolo_prune.follow_cut(optimizer, module).",
            left,
        )


@dataclass(frozen=True)
class _Ranking:
    """What channels are worth, and which widths are allowed."""

    criterion: str
    seed: int
    widths: Widths

    def choose(self, module: nn.Module, cost: CostModel, budget: Budget) -> BoolArray:
        """Return which channels stay."""
        return choose_channels(cost, self.scores(module, cost), budget, widths=self.widths)

    def scores(self, module: nn.Module, cost: CostModel) -> FloatArray:
        """Return the worth of every channel."""
        return score_channels(self.criterion, module, cost.graph, Calibration(), self.seed)


def _cut_widths_(traced: Traced, budget: Budget, ranking: _Ranking) -> PrunePlan:
    """Cut channels in place."""
    keep = ranking.choose(traced.module, traced.cost, budget)
    return cut_proven_(traced.module, traced.cost, keep, traced.anatomy, budget=budget)[0]


def _drop_blocks_(traced: Traced, budget: Budget, ranking: _Ranking) -> tuple[PrunePlan | None, Traced]:
    """Drop residual blocks in place as long as one is worth less than the channels that cost as much."""
    plan: PrunePlan | None = None
    while True:
        module, anatomy, cost = traced.module, traced.anatomy, traced.cost
        scores = ranking.scores(module, cost)
        worth = {block: worth_inside(cost, scores, block) for block in offered_blocks(module, anatomy)}

        def worth_of_channels(target: Budget, cost: CostModel = cost, scores: FloatArray = scores) -> float:
            return float(scores[~choose_channels(cost, scores, target, widths=ranking.widths)].sum())

        block = choose_block(module, cost, worth, budget, worth_of_channels)
        if block is None:
            return plan, traced
        try:
            made, _ = drop_proven_(module, cost, block, anatomy)
        except EquivalenceError as error:
            LOGGER.warning("%s It stays.", error)
            held = replace(anatomy, undroppable=(*anatomy.undroppable, block.name))
            traced = replace(traced, anatomy=held)
            continue
        LOGGER.info("dropped the residual block '%s'", block.name)
        plan = made if plan is None else plan.then(made)
        traced = Traced.of(module, anatomy)
