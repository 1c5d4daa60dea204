"""The cut in the middle of a training: plan it on the averaged weights, then put it under the optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from yolo_prune.criteria.calibration import Calibration, images_in
from yolo_prune.criteria.heads import measured_at_heads
from yolo_prune.criteria.memory import sized_for_memory
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.optimizer import follow_cut
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Lineage, Widths
from yolo_prune.device import release_memory
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.graph.module_rules import ModuleRules
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.progress import LOGGER
from yolo_prune.recover.imitate import LESSONS
from yolo_prune.recover.one_step import Recipe
from yolo_prune.recover.stages import recover_without_labels, score_of_kept
from yolo_prune.recover.steps import CutResult, cut_in_steps
from yolo_prune.train.state import RunState
from yolo_prune.train.timing import Target

_Value = TypeVar("_Value")
Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Recovered:
    """A cut model: everything that another process needs to have the same one.

    Attributes:
        plan: From the model before this cut.
        weights: State of the cut and folded model, on the CPU.
    """

    plan: PrunePlan
    weights: dict[str, Tensor]


def share_of_parent(settings: InRunSettings, state: RunState) -> float:
    """Return what the budget leaves of the model that the run began with, as a share of what it counts."""
    budget = Budget(*(settings.budget or ("keep_macs", 1.0)))
    whole = state.wholes[budget.gradient]
    return budget.limit_of(whole) / whole


def allowed_widths(settings: InRunSettings, state: RunState) -> tuple[Widths, Lineage | None]:
    """Return which widths are allowed, and after a cut how wide layers were when the run began."""
    widths = Widths(int(state.round_to or settings.round_to), settings.min_width, settings.min_keep)
    lineage = Lineage(state.widths, PrunePlan.from_json(state.plan)) if state.plan and state.widths else None
    return widths.for_budget(share_of_parent(settings, state)), lineage


def recover(
    parent: nn.Module,
    anatomy: Anatomy,
    budget: Budget,
    settings: InRunSettings,
    criterion: str,
    calibration: Calibration,
    *,
    widths: Widths,
    lineage: Lineage | None = None,
    target: Target | None = None,
    score: Score | None = None,
    lessons: Callable[[int], Calibration] | None = None,
) -> Recovered:
    """Cut a copy of the parent to a budget, fold, and let it imitate the parent.

    Args:
        parent: The model to cut; untouched.
        anatomy: How to run it.
        budget: How much may stay.
        settings: How.
        criterion: What a channel is worth, no longer "auto".
        calibration: What it is measured on; its seed is the cut's.
        widths: Allowed widths.
        lineage: Earlier cuts of the run; None: there are none.
        target: A budget of time, and what measures it.
        score: Accuracy of a model, larger is better: at the end of a training it says what recovered best.
        lessons: Gives so many images as the calibration's, to imitate on; None: what is measured on is enough.

    Raises:
        BudgetError: The budget cannot be met.
        EquivalenceError: No exact cut was found.
    """
    recipe = Recipe(
        criterion=criterion,
        steps=max(settings.steps // settings.cuts, 1),
        widths=widths,
        fold=settings.fold,
        seed=calibration.seed,
    )
    release_memory()  # what the training keeps for its next batch
    traced = Traced.of(parent, anatomy)
    graph = traced.cost.graph

    def sized(images: Calibration) -> Calibration:
        return sized_for_memory(measured_at_heads(parent, graph, images), parent, graph)

    calibration = sized(calibration)
    measure, whole = (target.measure, target.whole_ms) if target else (None, None)
    cut = cut_in_steps(traced, budget, recipe, calibration, lineage=lineage, measure=measure, whole=whole)
    plan = cut.plan
    if target is not None:
        plan = replace(plan, settings={**plan.settings, "latency": target.met_by(cut, traced)})

    def to_imitate_on() -> Calibration:
        if lessons is None or not settings.at_end or sum(map(images_in, calibration.batches)) >= LESSONS:
            return calibration
        return sized(lessons(LESSONS))

    cut = replace(cut, plan=plan)
    if cut.steps:
        judge = score if settings.at_end else None
        cut = _recovered(traced, cut, calibration, settings, judge, to_imitate_on)
    weights = {name: tensor.detach().cpu().clone() for name, tensor in cut.module.state_dict().items()}
    return Recovered(cut.plan, weights)


def _recovered(
    parent: Traced,
    cut: CutResult,
    calibration: Calibration,
    settings: InRunSettings,
    score: Score | None,
    lessons: Callable[[], Calibration],
) -> CutResult:
    """Let a cut model imitate its parent; where something says how accurate it is, keep what is most accurate."""
    recovered = partial(
        recover_without_labels,
        parent,
        cut,
        calibration,
        folded=settings.fold,
        score=score,
        lessons=lessons,
    )
    try:
        module, stages, result = recovered(steps=settings.steps_of_imitation)
    except ConfigError as error:  # outputs that cannot be compared
        if settings.imitation_steps is not None:
            raise
        LOGGER.warning("the cut model does not imitate the uncut one: %s", error)
        module, stages, result = recovered(steps=0)
    noted: dict[str, Any] = {}
    if result is not None:
        reached = stages.get("imitation")
        better = reached is None or reached > score_of_kept(stages, folded=settings.fold)
        noted["imitation"] = {**result.to_dict(), "kept": result.steps > 0 and better}
    if score is not None:
        noted["recovery"] = {"parent": score(parent.module), **stages}
    return replace(cut, module=module, plan=replace(cut.plan, settings={**cut.plan.settings, **noted}))


def is_distributed() -> bool:
    """Tell whether this process is one of several that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def from_first_process(make: Callable[[], _Value]) -> _Value:
    """Make a value in the first process of a distributed run and hand it to all; alone, just make it.

    Args:
        make: Called in the first process only; what it returns must pickle.

    Raises:
        YoloPruneError: In the other processes, when ``make`` raised in the first.
    """
    if not is_distributed():
        return make()
    box: list[Any] = [None, ""]
    if torch.distributed.get_rank() == 0:
        try:
            box[0] = make()
        except BaseException as error:
            box[1] = str(error) or type(error).__name__
            torch.distributed.broadcast_object_list(box, 0)
            raise
    torch.distributed.broadcast_object_list(box, 0)
    if box[1]:
        raise YoloPruneError(f"the first process failed: {box[1]}")
    value: _Value = box[0]
    return value


def swap_(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    recovered: Recovered,
    rules: ModuleRules | None,
) -> None:
    """Cut the model that is trained, in place, and give its optimizers the new parameters.

    Args:
        module: The model without wrappers.
        optimizers: They train it.
        recovered: The plan and the weights to go on from.
        rules: Of layers that the trace knows by module.
    """
    cut_(module, recovered.plan, rules=rules)
    module.load_state_dict(recovered.weights)
    for optimizer in optimizers:
        follow_cut(optimizer, module)
