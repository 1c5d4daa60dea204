"""Which channels stay, to meet a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from yolo_prune.cost import CostModel, FloatArray
from yolo_prune.cut.allocation import Turns
from yolo_prune.cut.blocks import ResidualBlock
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.held import explain_held, held_amount
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.progress import LOGGER

_UNITS = {"macs": ("GMACs", 1e9), "params": ("M parameters", 1e6), "latency": ("ms", 1.0)}
_NOTHING = 0.01  # of the mean score: such a channel was switched off by sparse training, not misjudged


@dataclass
class _Ladder:
    """The removal order of one class of tied groups.

    Attributes:
        blocks: Channels that go together, cheapest first.
        scores: Their summed scores.
        easy: How many of the blocks are worth nothing or leave the share that every group keeps if the budget allows.
        tie: Index of the class among the ties of the graph.
        position: Blocks that are gone.
    """

    blocks: list[IntArray]
    scores: list[float]
    easy: int
    tie: int
    position: int = 0

    @property
    def next_block(self) -> IntArray:
        """The block that goes next."""
        return self.blocks[self.position]

    def goes_on(self, easy: bool) -> bool:
        """Tell whether there is one more block, of the ``easy`` ones or of all."""
        return self.position < (self.easy if easy else len(self.blocks))


def _ladders(
    graph: ChannelGraph, scores: FloatArray, widths: Widths, wholes: IntArray | None = None
) -> list[_Ladder]:
    """Order the free channels of every class of tied groups, lowest score first, in steps of allowed widths."""
    ladders, nothing = [], _NOTHING * float(scores[~graph.frozen].mean() if not graph.frozen.all() else 0.0)
    for number, tie in enumerate(graph.ties):
        groups = [graph.groups[index] for index in tie]
        free = [group.channels[~graph.frozen[group.channels]] for group in groups]
        ranked = [channels[np.argsort(scores[channels], kind="stable")] for channels in free]
        unit = max(group.unit for group in groups)
        width, whole = len(groups[0].channels), None if wholes is None else max(wholes[list(tie)].tolist())
        steps = widths.steps(width, min(len(channels) for channels in free), unit, whole)
        borders = np.cumsum([0, *steps])
        blocks = [
            np.concatenate([channels[start:stop] for channels in ranked])
            for start, stop in pairwise(borders.tolist())
        ]
        if blocks:
            worth = [float(scores[block].sum()) for block in blocks]
            off = sum(score <= nothing * len(block) for score, block in zip(worth, blocks, strict=True))
            ladders.append(_Ladder(blocks, worth, max(widths.easy_steps(width, steps, whole), off), number))
    return ladders


def choose_channels(
    cost: CostModel,
    scores: FloatArray,
    budget: Budget,
    *,
    widths: Widths | None = None,
    wholes: IntArray | None = None,
    cost_power: float = 1.0,
    turns: Turns | None = None,
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
        wholes: Channels of every group in the parent, shape (groups,), see
            :class:`yolo_prune.cut.widths.Lineage`; None: the module is the parent.
        cost_power: A block is ranked by its score over the saved cost to this power: 0 ignores cost.
        turns: Which classes of layers take turns; None: all are in one ranking.
        tolerance: A block whose removal would leave less than ``(1 - tolerance)`` of the budget is passed over
            while a smaller one can still meet it.

    Returns:
        Which channels stay, shape (channels,).

    Raises:
        BudgetError: Everything at its floor still costs more than the budget.
    """
    limit = budget.limit(cost)
    keep = cost.everything
    counts, now = cost.counts(keep), budget.measure(cost, keep)
    widths = (widths or Widths()).for_budget(limit / max(now, 1e-12))
    ladders = _ladders(cost.graph, scores, widths, wholes)
    check_possible(cost, budget, widths, wholes)
    effects = cost.counts_of([block for ladder in ladders for block in ladder.blocks])
    first = np.cumsum([0, *(len(ladder.blocks) for ladder in ladders)])[
        :-1
    ]  # row of each ladder's first block
    passed_over: set[int] = set()
    easy = True
    while now > limit:
        gains = effects @ cost.gradient(counts, budget.gradient)
        waiting = _waiting(ladders, turns, passed_over, easy)
        best = _cheapest(ladders, gains, first, cost_power, passed_over | waiting, easy)
        if best is None and easy:
            easy = False
            if widths.min_keep is None:
                LOGGER.info(
                    "the budget needs layers narrower than %.2f of their width, the default floor; min_keep= sets one.",
                    widths.soft_keep,
                )
            continue
        if best is None:
            _overshoot_(cost, keep, budget, limit, ladders, passed_over)
            return keep
        row = slice(*effects.indptr[first[best] + ladders[best].position :][:2])
        smaller = counts.copy()
        smaller[effects.indices[row]] -= effects.data[row]
        after = cost.amount(smaller, budget.gradient)
        if after < (1.0 - tolerance) * limit:
            passed_over.add(best)
            continue
        if turns is not None:
            turns.take(ladders[best].tie, len(ladders[best].next_block))
        keep[ladders[best].next_block] = False
        ladders[best].position += 1
        counts, now = smaller, after
    return keep


def _waiting(ladders: list[_Ladder], turns: Turns | None, skip: set[int], easy: bool) -> set[int]:
    """Return the ladders whose class has to wait."""
    if turns is None:
        return set()
    sizes = {
        ladder.tie: len(ladder.next_block)
        for index, ladder in enumerate(ladders)
        if index not in skip and ladder.goes_on(easy)
    }
    late = turns.waiting(sizes)
    return {index for index, ladder in enumerate(ladders) if ladder.tie in late}


def _cheapest(
    ladders: list[_Ladder], gains: FloatArray, first: IntArray, power: float, skip: set[int], easy: bool
) -> int | None:
    """Return the ladder whose next block has the lowest score per saved cost, of the ``easy`` blocks or of all."""
    best, best_value = None, np.inf
    for index, ladder in enumerate(ladders):
        if index in skip or not ladder.goes_on(easy):
            continue
        gain = max(float(gains[first[index] + ladder.position]), 1e-12)
        value = ladder.scores[ladder.position] / gain**power
        if value < best_value:
            best, best_value = index, value
    return best


def _overshoot_(
    cost: CostModel, keep: BoolArray, budget: Budget, limit: float, ladders: list[_Ladder], coarse: set[int]
) -> None:
    """Meet a budget that no next block of the ladders ``coarse`` meets closely: take the smallest, give back."""

    def without(ladder: _Ladder) -> float:
        trial = keep.copy()
        trial[ladder.next_block] = False
        return budget.measure(cost, trial)

    smallest = max((ladders[index] for index in sorted(coarse)), key=without)
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


def least_channels(
    cost: CostModel, widths: Widths | None = None, wholes: IntArray | None = None
) -> BoolArray:
    """Return what is left with every group at its floor: no budget below it can be met, shape (channels,)."""
    scores = np.ones(cost.graph.channel_count)
    keep = cost.everything
    for ladder in _ladders(cost.graph, scores, widths or Widths(), wholes):
        for block in ladder.blocks:
            keep[block] = False
    return keep


def check_not_met(cost: CostModel, budget: Budget, at: str = "") -> None:
    """Refuse a budget of time that asks for nothing.

    Args:
        cost: Cost model of the traced module.
        budget: How much may stay.
        at: What the time is of, in words.

    Raises:
        BudgetError: The module is fast enough as it is.
    """
    full = budget.measure(cost, cost.everything)
    if budget.gradient == "latency" and budget.limit(cost) >= full:
        raise BudgetError(
            f"{budget.kind}={budget.value:g} is met already: the model takes {full:.4g} ms an image{at}. There is "
            "nothing to cut."
        )


def check_possible(
    cost: CostModel, budget: Budget, widths: Widths | None = None, wholes: IntArray | None = None
) -> None:
    """Refuse a budget that cannot be met, whatever the scores.

    Args:
        cost: Cost model of the traced module.
        budget: How much may stay.
        widths: Allowed widths.
        wholes: As in :func:`choose_channels`.

    Raises:
        BudgetError: Everything at its floor still costs more than the budget.
    """
    widths, limit = widths or Widths(), budget.limit(cost)
    floor = least_channels(cost, widths, wholes)
    least = budget.measure(cost, floor)
    if least <= limit:
        return
    of = budget.gradient
    largest, share = _largest_fixed(cost, floor, of)
    unit, scale = _UNITS[of]
    key = "round_to" if widths.round_to > widths.min_width else "min_width"
    floors = f"its floor of {max(widths.round_to, widths.min_width)} channels"
    if widths.min_keep:
        without = budget.measure(cost, least_channels(cost, replace(widths, min_keep=0.0), wholes))
        floors = f"{floors} or min_keep={widths.min_keep:g} of its width"
        key = "min_keep" if without <= limit else f"min_keep and {key}"
    why, held = explain_held(cost, floor, of), held_amount(cost, of)
    advice = f"Raise the budget or lower {key}; the largest part that remains is '{largest}' ({share})."
    if held > limit:
        advice = f"Raise the budget: {held / scale:.3g} {unit} stay whatever the floor."
    remain = f"{least / scale:.3g} {unit} remain"
    if of == "latency":
        full = budget.measure(cost, cost.everything)
        remain += f" of {full:.3g}, {full / least:.2f} times as fast,"
    raise BudgetError(
        f"cannot meet {limit / scale:.3g} {unit}: {remain} with every group at {floors}. "
        f"{advice}{why and f' {why}'}"
    )


def _largest_fixed(cost: CostModel, keep: BoolArray, of: str) -> tuple[str, str]:
    """Return the module whose operations cost most under ``keep``, and how much: its time, else its MACs."""
    of = "macs" if of == "params" else of
    unit, scale = _UNITS[of]
    total: dict[str, float] = {}
    amounts = cost.amount_per_use(cost.counts(keep), of).tolist()
    for use, amount in zip(cost.graph.uses, amounts, strict=True):
        total[use.module] = total.get(use.module, 0.0) + amount
    name = max(total, key=lambda key: total[key], default="")
    return name, f"{total.get(name, 0.0) / scale:.3g} {unit}"


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
    whole, left = (cost.everything for cost in (before, after))
    return replace(
        plan,
        budget={budget.kind: budget.value},
        kept_macs=after.macs(left) / before.macs(whole),
        kept_params=after.parameters(left) / before.parameters(whole),
        gmacs=after.macs(left) / 1e9,
        params=after.parameters(left),
    )
