"""Depth against width: a residual block goes where the model that is cut to the budget is better off without it.

What a block's branch loses and what narrower layers lose cannot be added up: the errors of many layers meet in the
output. So every candidate is tried: dropped, its readers fitted, channels cut to the budget once, and the outcome
compared with that of channels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.blocks import ResidualBlock, original_name
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.depth import saved_by_fitting
from yolo_prune.cut.proof import selected_outputs
from yolo_prune.cut.proven import Traced, offered_blocks
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import DataError, EquivalenceError
from yolo_prune.graph.modes import evaluating, in_full_precision
from yolo_prune.progress import LOGGER

Drop = Callable[[Traced, ResidualBlock], tuple[Traced, PrunePlan]]
_PATIENCE = 2
_GAIN = 0.01  # of what a model is worth: less may be chance, and depth for its own sake makes nothing faster


def drop_while_it_pays(
    traced: Traced, budget: Budget, order: Sequence[str], drop: Drop, value: Callable[[Traced], float]
) -> tuple[Traced, PrunePlan | None]:
    """Drop blocks one after the other, each for good when the model is clearly worth more without it.

    Args:
        traced: The model; untouched.
        budget: Where it ends, absolute: a block that saves more than what is still to go stays.
        order: Names of blocks, the most promising first; two in a row that do not pay end the search.
        drop: Returns a copy without a block and the plan of the drop.
        value: What a model is worth when channels are cut to the budget; larger is better.

    Returns:
        The model without the blocks, and the plan; the model itself and None when none went.
    """
    plan: PrunePlan | None = None
    best: float | None = None
    refused = 0
    fitting = _fitting(traced, budget, [])
    for name in order:
        block = fitting.get(name)
        if block is None:  # it went with another, or would take too much
            continue
        try:
            smaller, dropped = drop(traced, block)
            best = value(traced) if best is None else best
            found = value(smaller)
        except EquivalenceError as error:
            LOGGER.warning("%s '%s' stays.", error, name)
            continue
        LOGGER.info("at the budget without '%s': %.4g, with it: %.4g", name, found, best)
        if found > best + _GAIN * abs(best):
            traced, best, refused = smaller, found, 0
            plan = plan.then(dropped) if plan else dropped
            fitting = _fitting(traced, budget, plan.dropped)
        elif (refused := refused + 1) == _PATIENCE:
            break
    return traced, plan


def _fitting(traced: Traced, budget: Budget, gone: Sequence[str]) -> dict[str, ResidualBlock]:
    """Return the blocks that may go and do not save too much, by their names before the blocks ``gone`` went."""
    offered = offered_blocks(traced.module, traced.anatomy)
    fitting = saved_by_fitting(traced.module, traced.cost, offered, budget)
    return {original_name(block.name, gone): block for block in fitting}


def fidelity_to(parent: Traced, calibration: Calibration) -> Callable[[nn.Module], float]:
    """Return a judge of models that needs no labels: minus the error of their outputs, relative to the parent's energy.

    Args:
        parent: What is right, and which outputs count.
        calibration: Images and how the models run on them.

    Raises:
        DataError: There are no images.
    """
    batches, anatomy = list(calibration.batches), parent.anatomy
    if not batches:
        raise DataError("depth=true needs calibration images or a score to tell whether a block may go.")

    def outputs_of(module: nn.Module, batch: Any) -> list[Tensor]:
        """Return what counts of a model's outputs, on the CPU: they are kept, and summed in float64."""
        outputs = calibration.run(module, batch)
        return [out.cpu() for out in selected_outputs(outputs, anatomy.select_outputs)]

    with evaluating(parent.module), in_full_precision(parent.module), torch.no_grad():
        expected = [outputs_of(parent.module, batch) for batch in batches]
    energies = [torch.stack([out.double().pow(2).sum() for out in outputs]) for outputs in expected]
    energy = torch.stack(energies).sum(0).clamp(min=1e-30)

    def judge(module: nn.Module) -> float:
        error = torch.zeros_like(energy)
        with evaluating(module), in_full_precision(module), torch.no_grad():
            for batch, outputs in zip(batches, expected, strict=True):
                got = outputs_of(module, batch)
                error += torch.stack(
                    [(a - b).double().pow(2).sum() for a, b in zip(got, outputs, strict=True)]
                )
        return -float((error / energy).mean())

    return judge
