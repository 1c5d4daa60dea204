"""Depth against width: a residual block goes where the model that is cut to the budget is better off without it.

What a block's branch loses and what narrower layers lose cannot be added up: the errors of many layers meet in the
output. So every candidate is tried: dropped, its readers fitted, channels cut to the budget once, and the outcome
compared with that of channels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from yolo_prune.cost import CostModel
from yolo_prune.cut.blocks import ResidualBlock, original_name
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.depth import saved_by_fitting
from yolo_prune.cut.proof import selected_outputs
from yolo_prune.cut.proven import Anatomy, offered_blocks
from yolo_prune.cut.record import PrunePlan
from yolo_prune.device import placed
from yolo_prune.errors import DataError, EquivalenceError
from yolo_prune.graph.modes import evaluating, in_full_precision
from yolo_prune.progress import LOGGER

Drop = Callable[[nn.Module, CostModel, ResidualBlock], tuple[nn.Module, PrunePlan]]
_PATIENCE = 2
_GAIN = 0.01  # of what a model is worth: less may be chance, and depth for its own sake makes nothing faster


def drop_while_it_pays(
    module: nn.Module,
    anatomy: Anatomy,
    budget: Budget,
    order: Sequence[str],
    drop: Drop,
    value: Callable[[nn.Module], float],
) -> tuple[nn.Module, PrunePlan | None]:
    """Drop blocks one after the other, each for good when the model is clearly worth more without it.

    Args:
        module: The model; untouched.
        anatomy: How to run it.
        budget: Where it ends, absolute: a block that saves more than what is still to go stays.
        order: Names of blocks, the most promising first; two in a row that do not pay end the search.
        drop: Returns a copy without a block and the plan of the drop.
        value: What a model is worth when channels are cut to the budget; larger is better.

    Returns:
        The model without the blocks, and the plan; the module itself and None when none went.
    """
    plan: PrunePlan | None = None
    best: float | None = None
    refused = 0
    for name in order:
        cost = anatomy.cost_of(module)
        gone = plan.dropped if plan else []
        fitting = saved_by_fitting(module, cost, offered_blocks(module, anatomy), budget)
        block = next((block for block in fitting if original_name(block.name, gone) == name), None)
        if block is None:  # it went with another, or would take too much
            continue
        try:
            smaller, dropped = drop(module, cost, block)
            best = value(module) if best is None else best
            found = value(smaller)
        except EquivalenceError as error:
            LOGGER.warning("%s '%s' stays.", error, name)
            continue
        LOGGER.info("at the budget without '%s': %.4g, with it: %.4g", name, found, best)
        if found > best + _GAIN * abs(best):
            module, best, refused = smaller, found, 0
            plan = plan.then(dropped) if plan else dropped
        elif (refused := refused + 1) == _PATIENCE:
            break
    return module, plan


def fidelity_to(
    parent: nn.Module, anatomy: Anatomy, batches: Sequence[Tensor]
) -> Callable[[nn.Module], float]:
    """Return a judge of models that needs no labels: minus the error of their outputs, relative to the parent's energy.

    Args:
        parent: What is right.
        anatomy: How to run it, and which outputs count.
        batches: Calibration images.

    Raises:
        DataError: There are none.
    """
    if not batches:
        raise DataError("depth=true needs calibration images or a score to tell whether a block may go.")
    with evaluating(parent), in_full_precision(parent), torch.no_grad():
        expected = [_outputs(parent, batch, anatomy) for batch in batches]
    energies = [torch.stack([out.double().pow(2).sum() for out in outputs]) for outputs in expected]
    energy = torch.stack(energies).sum(0).clamp(min=1e-30)

    def judge(module: nn.Module) -> float:
        error = torch.zeros_like(energy)
        with evaluating(module), in_full_precision(module), torch.no_grad():
            for batch, outputs in zip(batches, expected, strict=True):
                got = _outputs(module, batch, anatomy)
                error += torch.stack(
                    [(a - b).double().pow(2).sum() for a, b in zip(got, outputs, strict=True)]
                )
        return -float((error / energy).mean())

    return judge


def _outputs(module: nn.Module, batch: Tensor, anatomy: Anatomy) -> list[Tensor]:
    """Return what counts of a model's outputs, on the CPU: they are kept, and summed in float64."""
    return [out.cpu() for out in selected_outputs(module(placed(batch, module)), anatomy.select_outputs)]
