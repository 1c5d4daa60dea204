"""Residual blocks that go as a whole: what each would cost, and its readers' weights fitted again without it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import Moments, moments_between, sample_inputs
from yolo_prune.cut.blocks import ResidualBlock, original_name
from yolo_prune.cut.proven import Traced, drop_proven_
from yolo_prune.cut.record import PrunePlan
from yolo_prune.graph.atoms import Axis
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.recover.fold import fold_into_, solve_fold


def branch_cost(moments: Moments, ridge: float = 1e-3) -> float:
    """Return what a block's removal costs: what its branch adds and its input cannot explain, felt by the task.

    In the measure of :func:`yolo_prune.criteria.reconstruction.choose_by_reconstruction`: squared errors by
    squared gradients.

    Args:
        moments: Of the block, from :func:`yolo_prune.criteria.moments.collect_moments`: input and branch, 2C channels.
        ridge: As for folding.
    """
    width = len(moments.mean) // 2
    taken, added = np.arange(width), np.arange(width, 2 * width)
    coefficients, _ = solve_fold(moments, taken, added, ridge)
    covariance = moments.covariance
    explained = 2 * coefficients * covariance[:width, width:]
    explained -= coefficients * (covariance[:width, :width] @ coefficients)
    left = np.diag(covariance)[width:] - explained.sum(0)
    return float(moments.energy * (moments.rows * np.maximum(left, 0.0)).sum())


def drop_and_refit(
    traced: Traced,
    block: ResidualBlock,
    calibration: Calibration,
    *,
    ridge: float = 1e-3,
    fold: bool = True,
) -> tuple[Traced, PrunePlan]:
    """Drop a block from a copy, prove it, and fit the weights that read what it changed.

    Args:
        traced: The model; untouched.
        block: One of its residual blocks.
        calibration: Images and how the model runs on them; without images nothing is fitted.
        ridge: As for folding.
        fold: Fit at all.

    Returns:
        The smaller copy and the plan of the drop.

    Raises:
        EquivalenceError: The removal is not exact.
    """
    smaller = copy.deepcopy(traced.module)
    plan, _ = drop_proven_(smaller, traced.cost, block, traced.anatomy)
    readers = readers_of(traced.cost.graph, block)
    if fold and calibration.batches and readers:
        _refit_readers_(smaller, traced, plan, readers, calibration, ridge)
    return Traced.of(smaller, traced.anatomy), plan


def _refit_readers_(
    smaller: nn.Module,
    traced: Traced,
    plan: PrunePlan,
    readers: Sequence[Axis],
    calibration: Calibration,
    ridge: float,
) -> None:
    """Fit the layers that read what a dropped block changed, one after the other, in place."""
    module, norms, without = traced.module, traced.cost.graph.norm_of, f"without {plan.dropped[0]}"
    names = [axis.name for axis in readers]
    before = sample_inputs(module, names, calibration, description=f"{without}: before")
    called_before = {original_name(name, plan.dropped): layer for name, layer in smaller.named_modules()}
    names_now = {original_name(name, plan.dropped): name for name, _ in smaller.named_parameters()}
    for axis in readers:
        name = names_now[axis.name]
        after = sample_inputs(
            smaller, [name], replace(calibration, projection=None), description=f"{without}: {axis.name}"
        )
        moments = moments_between(before[axis.name], after[name], _sources(axis, plan))
        if moments is not None:
            norm = called_before.get(norms[axis.name]) if axis.name in norms else None
            weight = module.get_parameter(axis.name).detach().cpu().double().movedim(axis.dim, 0)
            _refit_(called_before[axis.name.rpartition(".")[0]], axis, norm, weight, moments, ridge)


def readers_of(graph: ChannelGraph, block: ResidualBlock) -> list[Axis]:
    """Return the axes of the layers after a block that read what it adds to, in execution order.

    A layer that runs more than once is left out: its runs see different things.
    """

    def inside(name: str) -> bool:
        return name.startswith(f"{block.name}.")

    weights = [use.weight for use in graph.uses if use.weight]
    last = max((place for place, name in enumerate(weights) if inside(name)), default=len(weights))
    reads = {axis.name: axis for axis in graph.axes if axis.role == "in"}
    made: dict[bool, set[int]] = {True: set(), False: set()}
    for axis in graph.axes:
        if axis.role == "out":
            made[inside(axis.name)].update(graph.axis_channels(axis).tolist())
    shared = list(made[True] & made[False])
    return [
        reads[name]
        for place, name in enumerate(weights)
        if place > last
        and name in reads
        and weights.count(name) == 1
        and np.isin(graph.axis_channels(reads[name]), shared).any()
    ]


def _refit_(
    layer: nn.Module, axis: Axis, norm: nn.Module | None, weight: Tensor, moments: Moments, ridge: float
) -> None:
    """Fit one layer to what it read before the drop, whose weights along the reading dimension were ``weight``."""
    width = len(moments.mean) - axis.size
    kept, missing = np.arange(width), np.arange(width, len(moments.mean))
    coefficients, constants = solve_fold(moments, kept, missing, ridge)
    fold_into_(layer, axis.dim, norm, kept, weight, coefficients, constants)


def _sources(axis: Axis, plan: PrunePlan) -> list[int]:
    """Return which index of the cut axis stands for each index of the whole one."""
    target = list(range(axis.size))
    for entry in plan.added:
        if entry["axis"] == axis.label:
            for index, other in zip(entry["from"], entry["to"], strict=True):
                target[index] = other
    kept = plan.keep.get(axis.label, target)
    place = {index: position for position, index in enumerate(kept)}
    return [place[index] for index in target]
