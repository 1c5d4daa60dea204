"""Choose channels by what the others cannot explain (reconstruction), with the folding already taken into account.

For one reading layer with input covariance H and weights W, removing channel j and refitting the others costs
``||W_j||^2 / (H^-1)_jj``; the optimal brain surgeon's update then gives weights and H^-1 for the next removal. Costs
add up over the layers that read a channel. Blocks of channels are removed by the lowest cost per saved MAC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from yolo_prune.cost import CostModel, FloatArray, channel_gradient
from yolo_prune.criteria.moments import Moments, by_channel
from yolo_prune.cut.allocation import Turns
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.widths import Widths
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.graph.groups import ChannelGraph


@dataclass
class _Reader:
    """One reading layer's state: inverse covariance and the Gram matrix of its weights, both (C, C), symmetric."""

    inverse: FloatArray
    gram: FloatArray

    def settle(self, ahead: _Ahead) -> None:
        """Make the removals that were looked at real, all at once."""
        columns, rows = np.array(ahead.columns), np.array(ahead.rows)
        mixed = columns.T @ rows
        self.gram -= mixed + mixed.T
        self.inverse -= columns.T @ (columns * np.array(ahead.pivots)[:, None])
        for table in (self.gram, self.inverse):
            table[ahead.gone] = 0.0
            table[:, ahead.gone] = 0.0
        self.inverse[ahead.gone, ahead.gone] = 1.0


class _Ahead:
    """What a reader would be after a few removals: their vectors, and the diagonals that costs are made of.

    The matrices themselves are left alone, so that one removal takes time in proportion to C, not to its square.

    Attributes:
        gone: Removed indices, in order.
        columns: One vector (C,) a removal: how the others take over.
        rows: One vector (C,) a removal, so that the Gram matrix loses ``column row^T + row column^T``.
        pivots: One number a removal, so that the inverse loses ``pivot column column^T``.
    """

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.inverse, self.gram = reader.inverse.diagonal().copy(), reader.gram.diagonal().copy()
        self.gone: list[int] = []
        self.columns: list[FloatArray] = []
        self.rows: list[FloatArray] = []
        self.pivots: list[float] = []

    def costs(self, index: IntArray) -> FloatArray:
        """Return the cost of removing each index now."""
        return np.asarray(self.gram[index] / np.maximum(self.inverse[index], 1e-30))

    def remove(self, index: int) -> None:
        """Remove one input channel and let the others take over."""
        column, row = self.reader.inverse[index].copy(), self.reader.gram[index].copy()
        for one, other, weight in zip(self.columns, self.rows, self.pivots, strict=True):
            column -= weight * one[index] * one
            row -= one[index] * other + other[index] * one
        column[self.gone] = row[self.gone] = 0.0
        pivot = max(float(column[index]), 1e-30)
        column /= pivot
        row -= row[index] / 2 * column
        self.inverse -= pivot * column**2
        self.gram -= 2 * column * row
        self.inverse[index], self.gram[index] = 1.0, 0.0
        self.gone.append(index)
        self.columns.append(column)
        self.rows.append(row)
        self.pivots.append(pivot)


@dataclass
class _Ladder:
    """One class of tied groups: its free channels per group, how many go at each step, and its place in the graph."""

    cells: list[list[int]]
    steps: list[int]
    readers: list[int]
    tie: int
    position: int = 0
    next_block: list[int] = field(default_factory=list)
    next_cost: float = 0.0


def choose_by_reconstruction(
    module: nn.Module,
    cost: CostModel,
    moments: dict[str, Moments],
    budget: Budget,
    *,
    widths: Widths | None = None,
    wholes: IntArray | None = None,
    ridge: float = 1e-3,
    cost_power: float = 1.0,
    turns: Turns | None = None,
    tolerance: float = 0.02,
) -> BoolArray:
    """Remove blocks of channels by the lowest reconstruction cost per saved cost until the budget is met.

    Args:
        module: The traced module.
        cost: Its cost model.
        moments: From :func:`yolo_prune.recover.collect_moments` on the same module.
        budget: How much may stay.
        widths: Allowed widths.
        wholes: As in :func:`yolo_prune.cut.plan.choose_channels`.
        ridge: Regularisation, as a share of the mean variance of a layer's input.
        cost_power: Saved cost counts to this power.
        turns: As in :func:`yolo_prune.cut.plan.choose_channels`.
        tolerance: As in :func:`yolo_prune.cut.plan.choose_channels`.

    Returns:
        Which channels stay, shape (channels,); fewer may go than the budget asks when only channels without moments
        (summed over by attention) are left.

    Source:
        Hassibi et al., Optimal Brain Surgeon, NIPS 1993, on layer outputs; Ours: task-weighted moments, sums over all
        readers of a coupled channel, blocks of runtime-friendly width, cost per MAC.
    """
    graph = cost.graph
    readers, places = _readers(module, graph, moments, ridge)
    ladders = _ladders(graph, places, widths or Widths(), wholes)
    keep = cost.everything
    limit, now = budget.limit(cost), budget.measure(cost, keep)
    for ladder in ladders:
        _look_ahead(ladder, readers, places)
    skipped: dict[int, float] = {}
    while now > limit:
        saved = channel_gradient(cost, keep, budget.gradient)
        best = _cheapest(ladders, saved, cost_power, {*skipped, *_waiting(ladders, turns, skipped)})
        if best is None:
            if skipped:
                last = ladders[max(skipped, key=lambda i: skipped[i])]
                keep[last.next_block] = False
            break
        ladder = ladders[best]
        keep[ladder.next_block] = False
        after = budget.measure(cost, keep)
        if after < (1.0 - tolerance) * limit:
            keep[ladder.next_block] = True
            skipped[best] = after
            continue
        now = after
        if turns is not None:
            turns.take(ladder.tie, len(ladder.next_block))
        _advance(ladder, ladders, readers, places)
    return keep


def _readers(
    module: nn.Module, graph: ChannelGraph, moments: dict[str, Moments], ridge: float
) -> tuple[list[_Reader], dict[int, list[tuple[int, int]]]]:
    """Build every reader's state, and where each channel stands: channel -> [(reader, index)]."""
    weights = dict(module.named_parameters())
    readers: list[_Reader] = []
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for axis in graph.axes:
        if axis.role not in ("in", "grouped"):
            continue
        channels, seen = graph.axis_channels(axis).tolist(), moments.get(axis.name)
        if seen is None:
            for channel in channels:
                places[channel].append((-1, -1))
            continue
        covariance = seen.covariance
        covariance[np.diag_indices(len(covariance))] += seen.damping(ridge)
        channels = channels[:: len(channels) // len(seen.mean)]
        weight = by_channel(weights[axis.name].detach().cpu().double(), axis.dim, len(channels))
        matrix = weight.flatten(
            2
        ).numpy()  # (in, out, taps); a linear layer has one tap, or one for each position
        matrix = (matrix * np.sqrt(seen.energy * seen.rows)[None, :, None]).reshape(len(channels), -1)
        readers.append(_Reader(np.asarray(np.linalg.inv(covariance), dtype=np.float64), matrix @ matrix.T))
        for index, channel in enumerate(channels):
            places[channel].append((len(readers) - 1, index))
    return readers, places


def _ladders(
    graph: ChannelGraph,
    places: dict[int, list[tuple[int, int]]],
    widths: Widths,
    wholes: IntArray | None = None,
) -> list[_Ladder]:
    """List the classes of tied groups whose channels can be measured."""
    ladders = []
    blind = np.array([any(r < 0 for r, _ in places.get(c, ())) for c in range(graph.channel_count)])
    for number, tie in enumerate(graph.ties):
        cells = [graph.groups[index].channels for index in tie]
        free = [c[~graph.frozen[c] & ~graph.contracted[c] & ~blind[c]].tolist() for c in cells]
        unit = max(graph.groups[index].unit for index in tie)
        width, whole = len(cells[0]), None if wholes is None else max(wholes[list(tie)].tolist())
        steps = widths.steps(width, min(len(f) for f in free), unit, whole)
        if steps:
            used = sorted(
                {reader for cell in free for channel in cell for reader, _ in places.get(channel, ())}
            )
            ladders.append(_Ladder(free, steps, used, number))
    return ladders


def _look_ahead(ladder: _Ladder, readers: list[_Reader], places: dict[int, list[tuple[int, int]]]) -> None:
    """Find the ladder's next block and its cost from the readers' present state."""
    ladder.next_block, ladder.next_cost = [], 0.0
    if ladder.position >= len(ladder.steps):
        return
    trial = {index: _Ahead(readers[index]) for index in ladder.readers}
    for cell in ladder.cells:
        left = list(cell)
        for _ in range(ladder.steps[ladder.position]):
            costs = _costs(left, trial, places)
            chosen = int(np.argmin(costs))
            ladder.next_cost += max(float(costs[chosen]), 0.0)
            channel = left.pop(chosen)
            ladder.next_block.append(channel)
            for reader, index in places.get(channel, ()):
                trial[reader].remove(index)


def _costs(
    channels: list[int], state: dict[int, _Ahead], places: dict[int, list[tuple[int, int]]]
) -> FloatArray:
    """Return the summed cost of removing each channel."""
    total = np.zeros(len(channels))
    rows: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for position, channel in enumerate(channels):
        for reader, index in places.get(channel, ()):
            rows[reader].append((position, index))
    for reader, pairs in rows.items():
        positions, indices = np.array(pairs).T
        np.add.at(total, positions, state[reader].costs(indices))
    return total


def _advance(
    ladder: _Ladder, ladders: list[_Ladder], readers: list[_Reader], places: dict[int, list[tuple[int, int]]]
) -> None:
    """Remove the ladder's next block for good and look ahead again wherever that changes something."""
    gone = set(ladder.next_block)
    ahead = {index: _Ahead(readers[index]) for index in ladder.readers}
    for channel in ladder.next_block:
        for reader, index in places.get(channel, ()):
            ahead[reader].remove(index)
    for index, removed in ahead.items():
        if removed.gone:
            readers[index].settle(removed)
    ladder.cells = [[channel for channel in cell if channel not in gone] for cell in ladder.cells]
    ladder.position += 1
    touched = set(ladder.readers)
    for other in ladders:
        if touched & set(other.readers):
            _look_ahead(other, readers, places)


def _waiting(ladders: list[_Ladder], turns: Turns | None, skipped: Container[int]) -> set[int]:
    """Return the ladders whose class has to wait."""
    if turns is None:
        return set()
    able = {index: one for index, one in enumerate(ladders) if index not in skipped and one.next_block}
    late = turns.waiting({ladder.tie: len(ladder.next_block) for ladder in able.values()})
    return {index for index, ladder in able.items() if ladder.tie in late}


def _cheapest(ladders: list[_Ladder], saved: FloatArray, power: float, skipped: set[int]) -> int | None:
    best, best_value = None, np.inf
    for index, ladder in enumerate(ladders):
        if index in skipped or not ladder.next_block:
            continue
        value = ladder.next_cost / max(float(saved[ladder.next_block].sum()), 1e-12) ** power
        if value < best_value:
            best, best_value = index, value
    return best
