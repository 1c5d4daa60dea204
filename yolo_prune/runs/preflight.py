"""What can be known of a run before anything is measured or written."""

from __future__ import annotations

import importlib.util

from yolo_prune.adapters.stored import LoadedModel
from yolo_prune.cost import CostModel
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.cut.budget import Budget, one_budget
from yolo_prune.cut.plan import check_possible
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError
from yolo_prune.imgsz import ImageSize, rounded_up, size_text
from yolo_prune.options import BUDGETS, TARGETS, PruneConfig
from yolo_prune.runs.resume import FREE_ON_RESUME


def size_of(config: PruneConfig, loaded: LoadedModel, stride: int) -> ImageSize:
    """Return the size of the input in pixels: the one asked for, else the model's own as the host rounds it up."""
    return config.imgsz or rounded_up(loaded.imgsz, stride)


def budget_of(config: PruneConfig) -> Budget:
    """Return the one budget that was given."""
    return one_budget(**{key: getattr(config, key) for key in (*BUDGETS, *TARGETS)})


def has_target(config: PruneConfig) -> bool:
    """Tell whether the budget is one of time."""
    return any(getattr(config, key) is not None for key in TARGETS)


def runtime_of(config: PruneConfig) -> str:
    """Return the runtime that a target is met on."""
    if config.runtime is not None:
        return config.runtime
    return "onnxruntime" if importlib.util.find_spec("onnxruntime") else "torch"


def measures(config: PruneConfig) -> bool:
    """Tell whether a target is met by measuring: a table is of a machine that is elsewhere."""
    return has_target(config) and config.latency is None


def free_on_resume(config: PruneConfig) -> frozenset[str]:
    """Return the options that may change when a run goes on: a target is one for a number of threads."""
    return FREE_ON_RESUME - {"threads"} if has_target(config) else FREE_ON_RESUME


def check_budget(config: PruneConfig, cost: CostModel, imgsz: ImageSize) -> None:
    """Refuse a budget that cannot be met, or that asks for nothing, before anything is measured or written."""
    budget = budget_of(config)
    full = budget.measure(cost, cost.everything)
    if budget.gradient == "latency" and budget.limit(cost) >= full:
        raise BudgetError(
            f"{budget.kind}={budget.value:g} is met already: the model takes {full:.4g} ms an image at "
            f"{size_text(imgsz)} px. There is nothing to cut."
        )
    if budget.limit(cost) >= full:
        raise BudgetError(
            f"{budget.kind}={budget.value:g} is no less than the model has: {full / 1e9:.4g} GMACs at "
            f"{size_text(imgsz)} px. There is nothing to cut."
        )
    check_possible(cost, budget, Widths(config.round_to, config.min_width, config.min_keep))


def choose_criterion(config: PruneConfig, loaded: LoadedModel) -> str:
    """Return what ``criterion=auto`` means: BatchNorm scales after sparse training, else reconstruction."""
    if config.criterion != "auto":
        return config.criterion
    return "bn_scale" if (loaded.meta or {}).get("sparse_training") else RECONSTRUCTION
