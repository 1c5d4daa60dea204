"""What residual blocks save and hold, and which one goes when nothing but the weights is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from torch import nn

from yolo_prune.cost import CostModel, FloatArray
from yolo_prune.cut.blocks import ResidualBlock
from yolo_prune.cut.budget import Budget
from yolo_prune.errors import BudgetError

_TOLERANCE = 0.02


def saved_by_drop(module: nn.Module, cost: CostModel, block: ResidualBlock, of: str) -> float:
    """Return what a block's removal saves: its own cost and that of what is read twice.

    Args:
        module: The traced module.
        cost: Its cost model.
        block: One of its residual blocks.
        of: ``macs``, ``params`` or ``latency``.
    """
    sizes = {axis.label: axis.size for axis in cost.graph.axes}
    shares = {r.label.partition("[")[0]: r.width / sizes[r.label] for r in block.repeats}
    if of == "params":
        own = sum(parameter.numel() for parameter in module.get_submodule(block.name).parameters())
        return own + sum(module.get_parameter(name).numel() * share for name, share in shares.items())
    amounts = cost.amount_per_use(cost.counts(cost.everything), of).tolist()
    uses = list(zip(cost.graph.uses, amounts, strict=True))
    inside = (amount for use, amount in uses if f"{use.module}.".startswith(f"{block.name}."))
    return float(sum(inside) + sum(amount * shares.get(use.weight, 0.0) for use, amount in uses))


def saved_by_fitting(
    module: nn.Module, cost: CostModel, blocks: Iterable[ResidualBlock], budget: Budget
) -> dict[ResidualBlock, float]:
    """Return what each block saves, without those that save nothing or more than what is still to go."""
    now = budget.measure(cost, cost.everything)
    left = now - (1.0 - _TOLERANCE) * budget.limit(cost) if now > budget.limit(cost) else 0.0
    saved = {block: saved_by_drop(module, cost, block, budget.gradient) for block in blocks}
    return {block: amount for block, amount in saved.items() if 0 < amount <= left}


def worth_inside(cost: CostModel, scores: FloatArray, block: ResidualBlock) -> float:
    """Return the summed worth of the channels that live inside a block only; infinite when there are none."""
    inside = [
        group.channels
        for group in cost.graph.groups
        if group.producers and all(label.startswith(f"{block.name}.") for label in group.producers)
    ]
    return float(scores[np.concatenate(inside)].sum()) if inside else float("inf")


def choose_block(
    module: nn.Module,
    cost: CostModel,
    worth: Mapping[ResidualBlock, float],
    budget: Budget,
    worth_of_channels: Callable[[Budget], float],
) -> ResidualBlock | None:
    """Return the block that loses least for what it saves, None when removing channels is better.

    A block spares the last channels on the way to the budget, which are the dearest; the first ones are often free.

    Args:
        module: The traced module.
        cost: Its cost model.
        worth: What each block's removal loses.
        budget: Where it ends: a block that saves more than what is still to go stays.
        worth_of_channels: What is lost when channels alone are cut to a budget, in the same measure.
    """
    finite = [block for block, lost in worth.items() if np.isfinite(lost)]
    saved = saved_by_fitting(module, cost, finite, budget)
    if not saved:
        return None
    best = min(saved, key=lambda block: worth[block] / saved[block])
    spared = Budget.of(budget.gradient, budget.limit(cost) + saved[best])
    try:
        other = worth_of_channels(budget) - worth_of_channels(spared)
    except BudgetError:  # channels alone cannot get there
        return best
    return best if worth[best] < other else None
