"""Solve the findings of a trace into groups: which channels can go, together with what, and how many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from yolo_prune.graph.atoms import Axis, BoolArray, Findings, IntArray, MacUse, Pieces
from yolo_prune.graph.decisions import Positions
from yolo_prune.graph.held import hold_
from yolo_prune.graph.module_rules import ModuleRules
from yolo_prune.graph.passes import trace_channels
from yolo_prune.graph.reading import unread_channels
from yolo_prune.graph.rules import OPERATORS, Operator
from yolo_prune.graph.trace import OutputSelector


@dataclass(frozen=True)
class Group:
    """A set of channels of one width: any of them can go, subject to the ties.

    Attributes:
        name: Module that makes the channels first, with a number where it makes several groups.
        channels: Channel ids, shape (width,), in the order of the producing axis.
        producers: Labels of the axes that make these channels.
        readers: Labels of the axes that read them.
        frozen: Why some of the channels must stay; empty when all are free.
        unit: How many indices of a producing axis one channel stands for (more than 1 where channels go in blocks).
    """

    name: str
    channels: IntArray
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    frozen: tuple[str, ...]
    unit: int = 1


@dataclass(frozen=True)
class ChannelGraph:
    """The channels of a model.

    A *channel* is a set of atoms that live and die together; a *group* is a set of channels of one tensor width; *tied*
    groups must keep equally many channels.

    Attributes:
        axes: Every parameter dimension that the trace met.
        channel_of: Channel id per atom, shape (atoms,).
        frozen: Per channel: must stay.
        reasons: Per frozen channel, one reason.
        groups: All groups, frozen ones included.
        ties: Lists of group indices that must keep equally many channels; every group is in exactly one.
        uses: Multiply-accumulate operations.
        norm_of: Weight name -> prefix of the BatchNorm right behind it.
        contracted: Per channel: summed over by a product of two activations.
        unknown: Operators without a rule -> times met.
        untraced: Parameters that no trace met.
    """

    axes: tuple[Axis, ...]
    channel_of: IntArray
    frozen: BoolArray
    reasons: dict[int, str]
    groups: tuple[Group, ...]
    ties: tuple[tuple[int, ...], ...]
    uses: tuple[MacUse, ...]
    norm_of: dict[str, str]
    contracted: BoolArray
    unknown: dict[str, int]
    untraced: tuple[str, ...] = ()

    @property
    def channel_count(self) -> int:
        """Number of channels, plus one for channel 0, which stands for 'none'."""
        return len(self.frozen)

    def axis_channels(self, axis: Axis) -> IntArray:
        """Return the channel id of every index of an axis, shape (size,)."""
        return self.channel_of[axis.atoms]


def trace_groups(
    module: nn.Module,
    example_input: Any,
    *,
    rules: ModuleRules | None = None,
    operators: Mapping[str, Operator] | None = None,
    select_outputs: OutputSelector | None = None,
    positions: Positions | None = None,
) -> ChannelGraph:
    """Trace a module and group its channels.

    Args:
        module: Any module whose forward accepts ``example_input``; it is not modified.
        example_input: Tensor, shape e.g. (1, 3, H, W), a tuple of positional arguments or a dict of keyword arguments.
            Small is fast.
        rules: Module classes that bake widths into attributes, see :class:`yolo_prune.graph.trace.ModuleRule`.
        operators: Rules for operators that have none, or other rules, see :mod:`yolo_prune.graph.rules`.
        select_outputs: Picks the tensors whose width is fixed from the model's outputs; default: all.
        positions: Where the decisions of an earlier run fell, see :mod:`yolo_prune.graph.decisions`.

    Returns:
        The channel graph.

    Example:
        >>> from torch import nn, ones
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> [len(group.channels) for group in trace_groups(net, ones(1, 3, 4, 4)).groups if not group.frozen]
        [8]
    """
    handlers = {**OPERATORS, **(operators or {})}
    run: dict[str, Any] = {"rules": rules or {}, "select_outputs": select_outputs, "positions": positions}
    return solve(trace_channels(module, example_input, handlers, **run))


def solve(found: Findings) -> ChannelGraph:
    """Turn findings into channels, groups and ties."""
    channel_of = _components(found)
    count = int(channel_of.max(initial=0)) + 1
    frozen = np.zeros(count, dtype=bool)
    frozen[0] = True
    reasons: dict[int, str] = {}
    for atoms, reason in found.frozen:
        for channel in np.unique(channel_of[atoms]).tolist():
            frozen[channel] = True
            reasons.setdefault(channel, reason)
    contracted = np.zeros(count, dtype=bool)
    for atoms in found.contracted:
        contracted[channel_of[atoms]] = True
    contracted[0] = False
    for channel in unread_channels(found.axes, channel_of, contracted, found.returned).tolist():
        frozen[channel] = True
        reasons.setdefault(channel, "is read by nothing that was traced")
    cells = _cells(found, channel_of, count)
    cells, ties = _tie_cells(cells, _constraints(found, channel_of, cells, frozen, reasons), frozen, reasons)
    hold_(cells, ties, frozen, reasons)
    groups = _name_groups(found, channel_of, cells, frozen, reasons)
    return ChannelGraph(
        axes=tuple(found.axes),
        channel_of=channel_of,
        frozen=frozen,
        reasons=reasons,
        groups=groups,
        ties=ties,
        uses=tuple(found.uses),
        norm_of=dict(found.norm_of),
        contracted=contracted,
        unknown=dict(found.unknown),
        untraced=found.untraced,
    )


def _components(found: Findings) -> IntArray:
    """Connected components of united atoms; atom 0 is component 0."""
    size = found.atom_count
    pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *found.pairs], axis=1)
    links = coo_matrix((np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(size, size))
    _, label = connected_components(links, directed=False)
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def _cells(found: Findings, channel_of: IntArray, count: int) -> list[IntArray]:
    """Split the channels by the producing axes and pieces that they belong to."""
    signature = np.zeros(count, dtype=np.uint64)
    random = np.random.default_rng(0)
    members = [channel_of[axis.atoms] for axis in found.axes if axis.role == "out"]
    members += [channel_of[part] for pieces in found.pieces for tied in pieces.parts for part in tied]
    for member in members:
        signature[np.unique(member)] += random.integers(1, 2**63, dtype=np.uint64)
    order = np.argsort(signature[1:], kind="stable") + 1
    order = order[signature[order] > 0]
    if not order.size:
        return []
    borders = np.flatnonzero(np.diff(signature[order])) + 1
    return sorted(np.split(order, borders), key=lambda cell: int(cell[0]))


@dataclass
class _Part:
    """One part of a count constraint.

    Attributes:
        cells: Cells in channel order.
        repeats: Channel -> how often the part holds it.
    """

    cells: list[int]
    repeats: dict[int, int]

    def shape(self, cells: list[IntArray]) -> list[tuple[int, int]]:
        """Return width and repeats of every cell; parts of equal shapes can be tied cell by cell."""
        return [(len(cells[cell]), self.repeats[int(cells[cell][0])]) for cell in self.cells]


Constraint = list[_Part]


def _constraints(
    found: Findings, channel_of: IntArray, cells: list[IntArray], frozen: BoolArray, reasons: dict[int, str]
) -> list[Constraint]:
    """Express count constraints over cells; freeze those that cells cannot express."""
    cell_of = np.full(len(frozen), -1, dtype=np.int64)
    for index, cell in enumerate(cells):
        cell_of[cell] = index
    result = []
    for pieces in found.pieces:
        for tied in pieces.parts:
            parts = [_part(channel_of[part], cell_of) for part in tied]
            if any(part is None for part in parts):
                _freeze(tied, channel_of, frozen, reasons, pieces)
            elif len(parts) > 1:
                result.append([part for part in parts if part is not None])
    return result


def _part(channels: IntArray, cell_of: IntArray) -> _Part | None:
    """Return a part in terms of cells, None when cells cannot express it."""
    cells = cell_of[channels]
    if (cells < 0).any():
        return None
    unique, repeats = np.unique(channels, return_counts=True)
    lowest, highest = np.full(len(cell_of), np.iinfo(np.int64).max), np.zeros(len(cell_of), dtype=np.int64)
    np.minimum.at(lowest, cell_of[unique], repeats)
    np.maximum.at(highest, cell_of[unique], repeats)
    if (lowest[cells] != highest[cells]).any():
        return None
    _, first = np.unique(cells, return_index=True)
    in_order = [int(cells[index]) for index in np.sort(first)]
    return _Part(in_order, dict(zip(unique.tolist(), repeats.tolist(), strict=True)))


def _freeze(
    tied: tuple[IntArray, ...],
    channel_of: IntArray,
    frozen: BoolArray,
    reasons: dict[int, str],
    pieces: Pieces,
) -> None:
    where = pieces.where or "the model"
    for part in tied:
        for channel in channel_of[part].tolist():
            frozen[channel] = True
            reasons.setdefault(channel, f"has parts that cannot keep equal widths in '{where}'")


def _tie_cells(
    cells: list[IntArray], constraints: list[Constraint], frozen: BoolArray, reasons: dict[int, str]
) -> tuple[list[IntArray], tuple[tuple[int, ...], ...]]:
    """Refine cells until every constraint ties them one to one, then join tied cells into classes."""
    for _ in range(4 * len(constraints) + 4):
        split = _first_split(cells, constraints)
        if split is None:
            break
        index, sizes = split
        pieces = np.split(cells[index], np.cumsum(sizes)[:-1])
        fresh = [index, *range(len(cells), len(cells) + len(pieces) - 1)]
        cells = [*cells, *pieces[1:]]
        cells[index] = pieces[0]
        for part in (part for constraint in constraints for part in constraint):
            part.cells = [new for old in part.cells for new in (fresh if old == index else [old])]
    links: list[tuple[int, int]] = []
    for constraint in constraints:
        first = constraint[0]
        if all(part.shape(cells) == first.shape(cells) for part in constraint):
            links += [pair for part in constraint for pair in zip(first.cells, part.cells, strict=True)]
            continue
        for cell in {cell for part in constraint for cell in part.cells}:
            frozen[cells[cell]] = True
            for channel in cells[cell].tolist():
                reasons.setdefault(channel, "has tied widths that do not match")
    return cells, _classes(links, len(cells))


def _classes(links: list[tuple[int, int]], count: int) -> tuple[tuple[int, ...], ...]:
    """Join linked cells; a cell without a link is a class of its own."""
    rows, columns = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    classes: dict[int, list[int]] = defaultdict(list)
    for index, value in enumerate(label.tolist()):
        classes[value].append(index)
    return tuple(tuple(members) for members in classes.values())


def _first_split(cells: list[IntArray], constraints: list[Constraint]) -> tuple[int, list[int]] | None:
    """Find a cell that stands against several smaller ones in another part of the same constraint."""
    for constraint in constraints:
        finest = max(constraint, key=lambda part: len(part.cells))
        sizes = [len(cells[cell]) for cell in finest.cells]
        for part in constraint:
            if (found := _split_against(cells, part.cells, sizes)) is not None:
                return found
    return None


def _split_against(cells: list[IntArray], part: list[int], sizes: list[int]) -> tuple[int, list[int]] | None:
    position = 0
    for cell in part:
        width = len(cells[cell])
        taken: list[int] = []
        while sum(taken) < width and position < len(sizes):
            taken.append(sizes[position])
            position += 1
        if len(taken) > 1 and sum(taken) == width:
            return cell, taken
    return None


def _name_groups(
    found: Findings, channel_of: IntArray, cells: list[IntArray], frozen: BoolArray, reasons: dict[int, str]
) -> tuple[Group, ...]:
    """Give every cell its axes, a readable name and the reasons why it is frozen."""
    cell_of = np.full(len(frozen), -1, dtype=np.int64)
    for index, cell in enumerate(cells):
        cell_of[cell] = index
    unit = np.ones(len(cells) + 1, dtype=np.int64)
    producers: dict[int, list[str]] = defaultdict(list)
    readers: dict[int, list[str]] = defaultdict(list)
    for axis in found.axes:
        side = {"out": producers, "in": readers, "grouped": readers}.get(axis.role)
        if side is None:
            continue
        channels, repeats = np.unique(channel_of[axis.atoms], return_counts=True)
        if side is producers:
            np.maximum.at(unit, cell_of[channels], repeats)
        for index in np.unique(cell_of[channels]).tolist():
            side[index].append(axis.label)
    names: dict[str, int] = defaultdict(int)
    groups = []
    for index, cell in enumerate(cells):
        stem = producers[index][0].rpartition(".")[0] if producers[index] else "vector"
        names[stem] += 1
        name = stem if names[stem] == 1 else f"{stem}#{names[stem]}"
        why = tuple(dict.fromkeys(reasons.get(int(c), "") for c in cell[frozen[cell]]))
        groups.append(
            Group(name, cell, tuple(producers[index]), tuple(readers[index]), why, int(unit[index]))
        )
    return tuple(groups)
