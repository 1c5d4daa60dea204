"""What can be known of a run before anything is measured or written."""

from __future__ import annotations

from yolo_prune.adapters.stored import LoadedModel
from yolo_prune.cost import CostModel
from yolo_prune.cost.granularity import Granularity
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.cut.budget import Budget, one_budget
from yolo_prune.cut.plan import check_not_met, check_possible
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError
from yolo_prune.imgsz import ImageSize, rounded_up, size_text
from yolo_prune.options import BUDGETS, TARGETS, PruneConfig
from yolo_prune.options.places import has_place
from yolo_prune.runs.resume import FREE_ON_RESUME


def size_of(config: PruneConfig, loaded: LoadedModel, stride: int) -> ImageSize:
    """Return the size of the input in pixels: the one asked for, else the model's own as the host rounds it up."""
    return config.imgsz or rounded_up(loaded.imgsz, stride)


def budget_of(config: PruneConfig) -> Budget:
    """Return the one budget that was given."""
    return one_budget(**{key: getattr(config, key) for key in (*BUDGETS, *TARGETS)})


def free_on_resume(config: PruneConfig) -> frozenset[str]:
    """Return the options that may change when a run goes on: what a runtime is asked holds for a number of threads."""
    return FREE_ON_RESUME - {"threads"} if has_place(config) else FREE_ON_RESUME


def widths_of(config: PruneConfig, granularity: Granularity | None) -> Widths:
    """Return which widths are allowed: multiples of what was asked for, or of what the runtime likes."""
    step = config.round_to if granularity is None else granularity.step
    return Widths(int(step), config.min_width, config.min_keep)


def check_budget(config: PruneConfig, cost: CostModel, imgsz: ImageSize, widths: Widths) -> None:
    """Refuse a budget that cannot be met, or that asks for nothing, before anything is measured or written."""
    budget = budget_of(config)
    check_not_met(cost, budget, f" at {size_text(imgsz)} px")
    full = budget.measure(cost, cost.everything)
    if budget.limit(cost) >= full:
        raise BudgetError(
            f"{budget.kind}={budget.value:g} is no less than the model has: {full / 1e9:.4g} GMACs at "
            f"{size_text(imgsz)} px. There is nothing to cut."
        )
    check_possible(cost, budget, widths)


def choose_criterion(config: PruneConfig, loaded: LoadedModel) -> str:
    """Return what ``criterion=auto`` means: BatchNorm scales after sparse training, else reconstruction."""
    if config.criterion != "auto":
        return config.criterion
    return "bn_scale" if (loaded.meta or {}).get("sparse_training") else RECONSTRUCTION
