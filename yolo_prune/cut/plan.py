"""Which channels stay, to meet a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from yolo_prune.cost import CostModel, FloatArray
from yolo_prune.cut.blocks import ResidualBlock
from yolo_prune.cut.held import explain_held, held_amount
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BudgetError
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.graph.groups import ChannelGraph

BUDGETS = ("keep_macs", "gmacs", "keep_params")


@dataclass(frozen=True)
class Budget:
    """How much may stay.

    Attributes:
        kind: ``keep_macs`` or ``keep_params`` (fractions of the parent in (0, 1]), ``gmacs`` or ``params`` (absolute,
            1e9 MACs and parameters).
        value: The amount.
    """

    kind: str
    value: float

    def limit(self, cost: CostModel) -> float:
        """Return the budget in MACs or parameters of this model."""
        everything = np.ones(cost.graph.channel_count, dtype=bool)
        if self.kind == "gmacs":
            return self.value * 1e9
        if self.kind == "params":
            return self.value
        return self.value * (
            cost.parameters(everything) if self.kind == "keep_params" else cost.macs(everything)
        )

    def absolute(self, cost: CostModel) -> Budget:
        """Return the same budget in MACs or parameters, whatever the model that it is applied to."""
        return Budget.of(self.gradient, self.limit(cost))

    @staticmethod
    def of(gradient: str, amount: float) -> Budget:
        """Return the budget of an amount of ``macs`` or ``params``."""
        return Budget("gmacs", amount / 1e9) if gradient == "macs" else Budget("params", amount)

    def measure(self, cost: CostModel, keep: BoolArray) -> float:
        """Return what a choice costs, in the budget's unit."""
        return cost.amount(cost.counts(keep), self.gradient)

    @property
    def gradient(self) -> str:
        """Which cost a channel's removal is measured in."""
        return "params" if self.kind in ("keep_params", "params") else "macs"


@dataclass(frozen=True)
class Widths:
    """What widths are allowed.

    Attributes:
        round_to: Widths become multiples of this; a width that is none to begin with is rounded at its first cut.
        min_width: No group gets narrower than this (or than its own width, where that is smaller).
    """

    round_to: int = 8
    min_width: int = 8

    def steps(self, width: int, free: int, unit: int = 1) -> list[int]:
        """Return how many channels go at each step down.

        Args:
            width: Channels of the group.
            free: How many of them may go at all.
            unit: Indices of a layer that one channel stands for; the rounding is of layers.
        """
        multiple = self.round_to // math.gcd(self.round_to, unit)
        floor = max(-(-self.min_width // unit), width - free, 1)
        steps = []
        while width > floor:
            target = (width - 1) // multiple * multiple
            if target < floor:
                break
            steps.append(width - target)
            width = target
        return steps


@dataclass
class _Ladder:
    """The removal order of one class of tied groups: blocks of channels, cheapest first, with their summed scores."""

    blocks: list[IntArray]
    scores: list[float]
    position: int = 0

    @property
    def next_block(self) -> IntArray:
        """The block that goes next."""
        return self.blocks[self.position]

    @property
    def done(self) -> bool:
        """Whether nothing is left to go."""
        return self.position >= len(self.blocks)


def _ladders(graph: ChannelGraph, scores: FloatArray, widths: Widths) -> list[_Ladder]:
    """Order the free channels of every class of tied groups, lowest score first, in steps of allowed widths."""
    ladders = []
    for tie in graph.ties:
        groups = [graph.groups[index] for index in tie]
        free = [group.channels[~graph.frozen[group.channels]] for group in groups]
        ranked = [channels[np.argsort(scores[channels], kind="stable")] for channels in free]
        unit = max(group.unit for group in groups)
        steps = widths.steps(len(groups[0].channels), min(len(channels) for channels in free), unit)
        borders = np.cumsum([0, *steps])
        blocks = [
            np.concatenate([channels[start:stop] for channels in ranked])
            for start, stop in pairwise(borders.tolist())
        ]
        if blocks:
            ladders.append(_Ladder(blocks, [float(scores[block].sum()) for block in blocks]))
    return ladders


def choose_channels(
    cost: CostModel,
    scores: FloatArray,
    budget: Budget,
    *,
    widths: Widths | None = None,
    cost_power: float = 1.0,
    tolerance: float = 0.02,
) -> BoolArray:
    """Remove the blocks with the lowest score per saved cost until the budget is met.

    A larger budget keeps a superset of what a smaller one keeps, except for the last block or two before each budget,
    where a smaller step may be taken instead of the one whose turn it is.

    Args:
        cost: Cost model of the traced module.
        scores: Worth per channel, shape (channels,), larger is worth more.
        budget: How much may stay.
        widths: Allowed widths.
        cost_power: A block is ranked by its score over the saved cost to this power: 0 ignores cost.
        tolerance: A block whose removal would leave less than ``(1 - tolerance)`` of the budget is passed over
            while a smaller one can still meet it.

    Returns:
        Which channels stay, shape (channels,).

    Raises:
        BudgetError: Everything at its floor still costs more than the budget.
    """
    limit = budget.limit(cost)
    ladders = _ladders(cost.graph, scores, widths or Widths())
    keep = np.ones(cost.graph.channel_count, dtype=bool)
    _check_possible(cost, budget, limit, ladders, widths or Widths())
    counts, now = cost.counts(keep), budget.measure(cost, keep)
    effects = cost.counts_of([block for ladder in ladders for block in ladder.blocks])
    first = np.cumsum([0, *(len(ladder.blocks) for ladder in ladders)])[
        :-1
    ]  # row of each ladder's first block
    passed_over: set[int] = set()
    while now > limit:
        gains = effects @ cost.gradient(counts, budget.gradient)
        best = _cheapest(ladders, gains, first, cost_power, passed_over)
        if best is None:
            _overshoot_(cost, keep, budget, limit, ladders)
            return keep
        row = slice(*effects.indptr[first[best] + ladders[best].position :][:2])
        smaller = counts.copy()
        smaller[effects.indices[row]] -= effects.data[row]
        after = cost.amount(smaller, budget.gradient)
        if after < (1.0 - tolerance) * limit:
            passed_over.add(best)
            continue
        keep[ladders[best].next_block] = False
        ladders[best].position += 1
        counts, now = smaller, after
    return keep


def _cheapest(
    ladders: list[_Ladder], gains: FloatArray, first: IntArray, power: float, skip: set[int]
) -> int | None:
    """Return the ladder whose next block has the lowest score per saved cost."""
    best, best_value = None, np.inf
    for index, ladder in enumerate(ladders):
        if index in skip or ladder.done:
            continue
        gain = max(float(gains[first[index] + ladder.position]), 1e-12)
        value = ladder.scores[ladder.position] / gain**power
        if value < best_value:
            best, best_value = index, value
    return best


def _overshoot_(
    cost: CostModel, keep: BoolArray, budget: Budget, limit: float, ladders: list[_Ladder]
) -> None:
    """Meet a budget that no next block meets closely: take the smallest one, then give back what fits."""

    def without(ladder: _Ladder) -> float:
        trial = keep.copy()
        trial[ladder.next_block] = False
        return budget.measure(cost, trial)

    smallest = max((ladder for ladder in ladders if not ladder.done), key=without)
    keep[smallest.next_block] = False
    others = [ladder for ladder in ladders if ladder is not smallest and ladder.position]
    for ladder in sorted(others, key=lambda ladder: -ladder.scores[ladder.position - 1]):
        while ladder.position:
            block = ladder.blocks[ladder.position - 1]
            keep[block] = True
            if budget.measure(cost, keep) > limit:
                keep[block] = False
                break
            ladder.position -= 1


def least_channels(cost: CostModel, widths: Widths | None = None) -> BoolArray:
    """Return what is left with every group at its floor: no budget below it can be met, shape (channels,)."""
    scores = np.ones(cost.graph.channel_count)
    return _floor(cost, _ladders(cost.graph, scores, widths or Widths()))


def _floor(cost: CostModel, ladders: list[_Ladder]) -> BoolArray:
    keep = np.ones(cost.graph.channel_count, dtype=bool)
    for ladder in ladders:
        for block in ladder.blocks:
            keep[block] = False
    return keep


def _check_possible(
    cost: CostModel, budget: Budget, limit: float, ladders: list[_Ladder], widths: Widths
) -> None:
    floor = _floor(cost, ladders)
    least = budget.measure(cost, floor)
    if least <= limit:
        return
    largest, share = _largest_fixed(cost, floor)
    unit, scale = ("M parameters", 1e6) if budget.gradient == "params" else ("GMACs", 1e9)
    key = "round_to" if widths.round_to > widths.min_width else "min_width"
    why, held = explain_held(cost, floor, budget.gradient), held_amount(cost, budget.gradient)
    advice = f"Raise the budget or lower {key}; the largest part that remains is '{largest}' ({share / 1e9:.3g} GMACs)."
    if held > limit:
        advice = f"Raise the budget: {held / scale:.3g} {unit} stay whatever the floor."
    raise BudgetError(
        f"cannot meet {limit / scale:.3g} {unit}: {least / scale:.3g} {unit} remain with every group at its floor of "
        f"{max(widths.round_to, widths.min_width)} channels. {advice}{why and f' {why}'}"
    )


def _largest_fixed(cost: CostModel, keep: BoolArray) -> tuple[str, float]:
    """Return the module whose operations cost most under ``keep``, with its MACs."""
    total: dict[str, float] = {}
    for use, macs in zip(cost.graph.uses, cost.macs_per_use(keep).tolist(), strict=True):
        total[use.module] = total.get(use.module, 0.0) + macs
    name = max(total, key=lambda key: total[key], default="")
    return name, total.get(name, 0.0)


def make_plan(
    cost: CostModel, keep: BoolArray, *, budget: Budget | None = None, settings: dict[str, Any] | None = None
) -> PrunePlan:
    """Write down a choice of channels as a plan.

    Args:
        cost: Cost model of the traced module.
        keep: Which channels stay, shape (channels,).
        budget: The budget it was made for.
        settings: Whatever explains the choice.
    """
    graph = cost.graph
    kept, widths = {}, {}
    for axis in graph.axes:
        mask = keep[graph.axis_channels(axis)]
        if not mask.all():
            kept[axis.label] = np.flatnonzero(mask).tolist()
            widths[axis.label] = axis.size
    everything = np.ones_like(keep)
    macs, params = cost.macs(keep), cost.parameters(keep)
    return PrunePlan(
        keep=kept,
        widths=widths,
        budget={budget.kind: budget.value} if budget else {},
        kept_macs=macs / cost.macs(everything),
        kept_params=params / cost.parameters(everything),
        gmacs=macs / 1e9,
        params=params,
        frozen={
            group.name: "; ".join(group.frozen) for group in graph.groups if group.frozen and group.producers
        },
        settings=settings or {},
        untraced=list(graph.untraced),
    )


def plan_drop(cost: CostModel, block: ResidualBlock) -> PrunePlan:
    """Write down the removal of one residual block: what else it takes along, and what is added up before."""
    sizes = {axis.label: axis.size for axis in cost.graph.axes}
    keep, added = {}, []
    for repeat in block.repeats:
        gone = range(repeat.output, repeat.output + repeat.width)
        source = range(repeat.source, repeat.source + repeat.width)
        keep[repeat.label] = [index for index in range(sizes[repeat.label]) if index not in gone]
        added.append({"axis": repeat.label, "from": list(gone), "to": list(source)})
    widths = {label: sizes[label] for label in keep}
    return PrunePlan(keep=keep, widths=widths, dropped=[block.name], added=added)


def against_parent(plan: PrunePlan, before: CostModel, after: CostModel, budget: Budget) -> PrunePlan:
    """Give a composed plan its costs: of the model after it, beside those of the parent."""
    whole, left = (np.ones(cost.graph.channel_count, dtype=bool) for cost in (before, after))
    return replace(
        plan,
        budget={budget.kind: budget.value},
        kept_macs=after.macs(left) / before.macs(whole),
        kept_params=after.parameters(left) / before.parameters(whole),
        gmacs=after.macs(left) / 1e9,
        params=after.parameters(left),
    )
