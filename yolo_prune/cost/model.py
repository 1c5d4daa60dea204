"""What channels cost: multiply-accumulates (MACs), parameters and time, for any choice of kept channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack
from torch import nn

from yolo_prune.cost.latency import Latency, TimedUses
from yolo_prune.cost.macs import list_operations, list_operations_for_real
from yolo_prune.errors import BudgetError, PlanError
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.graph.decisions import Positions
from yolo_prune.graph.groups import ChannelGraph

FloatArray = npt.NDArray[np.float64]


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, frozen ones included, buffers left out."""
    return sum(parameter.numel() for parameter in module.parameters())


def with_macs_at(
    graph: ChannelGraph, module: nn.Module, example_input: Any, positions: Positions | None = None
) -> ChannelGraph:
    """Recount a graph's operations at another input, usually the real image size.

    Args:
        graph: Traced from ``module`` at any size.
        module: The traced module.
        example_input: Input whose costs count, batch size 1.
        positions: Where an earlier model's decisions fell at this input, see
            :func:`yolo_prune.cost.macs.count_macs_per_operation`.

    Returns:
        The graph with new costs.

    Raises:
        PlanError: The model runs other operations at this input than in the trace.
    """
    known = graph.uses
    found = list_operations(module, example_input, positions)
    if len(found) != len(known):  # some operators are split up where only shapes are computed
        found = list_operations_for_real(module, example_input, positions)
    if len(found) != len(known):
        raise PlanError(
            f"the model ran {len(known)} convolutions and products in the trace, but {len(found)} at the size that "
            "costs are counted for. Trace it at that size."
        )
    uses = tuple(
        replace(
            use,
            macs=one.macs,
            elements=one.elements,
            layer=one.layer if use.kind != "matmul" else None,
        )
        for use, one in zip(known, found, strict=True)
    )
    return replace(graph, uses=uses)


@dataclass(frozen=True)
class CostModel:
    """MACs and parameters as a function of which channels stay.

    Attributes:
        graph: The channels.
        shapes: Shape per parameter name.
        other_parameters: Parameters that the trace never met.
        latency: What layers take on a runtime, where a budget is one of time.
    """

    graph: ChannelGraph
    shapes: dict[str, tuple[int, ...]]
    other_parameters: int
    latency: Latency | None = None

    @property
    def everything(self) -> BoolArray:
        """The choice that keeps every channel, shape (channels,): an array of the caller's own."""
        return np.ones(self.graph.channel_count, dtype=bool)

    def counts(self, keep: BoolArray) -> FloatArray:
        """Return how many indices of each axis stay, then the share of each product, shape (axes + uses,)."""
        return np.asarray(self._members @ keep.astype(np.float64))

    def counts_of(self, blocks: Sequence[IntArray]) -> csr_matrix:
        """Return what each block of channels takes from :meth:`counts`, shape (blocks, axes + uses)."""
        rows = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
        columns = np.concatenate([np.zeros(0, np.int64), *blocks])
        chosen = csr_matrix((np.ones(len(rows)), (rows, columns)), (len(blocks), self.graph.channel_count))
        return csr_matrix(chosen @ self._members.T)

    def amount(self, counts: FloatArray, of: str) -> float:
        """Return the ``macs``, ``params`` or ``latency`` (ms) that :meth:`counts` stand for."""
        if of == "params":
            return float(self._parameters(counts))
        left = self.amount_per_use(counts, of).sum()
        return float(left + self._timed.latency.fixed_ms if of == "latency" else left)

    def amount_per_use(self, counts: FloatArray, of: str) -> FloatArray:
        """Return the ``macs`` or ``latency`` (ms) of every operation, shape (uses,)."""
        if of == "latency":
            return self._timed.amounts(counts, self._sizes)
        return self._macs_left(counts)

    def macs(self, keep: BoolArray) -> float:
        """Return the multiply-accumulates left when the channels ``keep`` (shape (channels,)) stay."""
        return self.amount(self.counts(keep), "macs")

    def parameters(self, keep: BoolArray) -> int:
        """Return the number of parameters left when the channels ``keep`` stay."""
        return self._parameters(self.counts(keep))

    def parameters_by_name(self, keep: BoolArray) -> dict[str, float]:
        """Return the number of parameters left in each tensor that has axes when the channels ``keep`` stay."""
        names = dict.fromkeys(axis.name for axis in self.graph.axes)
        numbers = self._numbers(self.counts(keep)[: len(self._sizes)])
        return dict(zip(names, numbers.tolist(), strict=True))

    def gradient(self, counts: FloatArray, of: str) -> FloatArray:
        """Return what one index less of each axis and one share less of each product save, shape (axes + uses,)."""
        axes = len(self._sizes)
        left = np.maximum(counts[:axes], 1.0)
        if of == "params":
            return np.append(self._numbers(left)[self._owner] / left, np.zeros(len(self._macs)))
        if of == "latency":
            return self._timed.gradient(counts, self._sizes)
        share = np.append(left / self._sizes, 1.0)
        total = self._macs * share[self._made] * share[self._read]
        left = np.append(left, 1.0)
        sides = np.concatenate([self._made, self._read]) % (axes + 1)  # -1, for no axis, is the last
        per_axis = np.bincount(sides, np.concatenate([total, total]) / left[sides], axes + 1)
        return np.append(per_axis[:-1], total)

    def saved_by_channel(self, keep: BoolArray, of: str) -> FloatArray:
        """Return what one channel's removal saves; see :func:`channel_gradient`."""
        saved = np.asarray(self._members.T @ self.gradient(self.counts(keep), of))
        saved[0] = 0.0
        return saved

    def _macs_left(self, counts: FloatArray) -> FloatArray:
        axes = len(self._sizes)
        share = np.append(counts[:axes] / self._sizes, 1.0)
        factor = np.where(self._is_product, counts[axes:], 1.0)
        return np.asarray(self._macs * share[self._made] * share[self._read] * factor)

    def _parameters(self, counts: FloatArray) -> int:
        return round(float(self._numbers(counts[: len(self._sizes)]).sum())) + self.other_parameters

    def _numbers(self, counts: FloatArray) -> FloatArray:
        """Return the numbers of every parameter that has axes, when its axes keep ``counts``, shape (names,)."""
        numbers: FloatArray = self._full.copy()
        np.multiply.at(numbers, self._owner, counts / self._sizes)
        return numbers

    @cached_property
    def _members(self) -> csr_matrix:
        """How many indices of each axis belong to each channel, below it the channel's share in each product."""
        graph = self.graph
        rows = np.repeat(np.arange(len(graph.axes)), [axis.size for axis in graph.axes])
        columns = np.concatenate([np.zeros(0, np.int64), *(graph.axis_channels(axis) for axis in graph.axes)])
        shape = (len(graph.axes), graph.channel_count)
        return csr_matrix(vstack([csr_matrix((np.ones(len(rows)), (rows, columns)), shape), self._products]))

    @cached_property
    def _products(self) -> csr_matrix:
        """Share of each channel in the cost of a product of two activations, shape (uses, channels)."""
        graph = self.graph
        parts = [graph.channel_of[np.array(use.atoms, dtype=np.int64)] for use in graph.uses]
        rows = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        values = np.concatenate([np.zeros(0), *(np.full(len(p), 1.0 / max(len(p), 1)) for p in parts)])
        columns = np.concatenate([np.zeros(0, np.int64), *parts])
        return csr_matrix((values, (rows, columns)), shape=(len(parts), graph.channel_count))

    @cached_property
    def _timed(self) -> TimedUses:
        if self.latency is None:
            raise BudgetError(
                "a budget of time needs the times of layers, and none were measured for this model."
            )
        return TimedUses.of(self.latency, self.graph.uses)

    @cached_property
    def _is_product(self) -> BoolArray:
        return np.asarray(self._products.getnnz(axis=1) > 0)

    @cached_property
    def _sizes(self) -> FloatArray:
        return np.array([axis.size for axis in self.graph.axes], dtype=np.float64)

    @cached_property
    def _macs(self) -> FloatArray:
        return np.array([use.macs for use in self.graph.uses], dtype=np.float64)

    @cached_property
    def _made(self) -> IntArray:
        return np.array([use.out_axis for use in self.graph.uses], dtype=np.int64)

    @cached_property
    def _read(self) -> IntArray:
        return np.array([use.in_axis for use in self.graph.uses], dtype=np.int64)

    @cached_property
    def _owner(self) -> IntArray:
        """Index of each axis's parameter among the names, shape (axes,)."""
        index = {name: i for i, name in enumerate(dict.fromkeys(axis.name for axis in self.graph.axes))}
        return np.array([index[axis.name] for axis in self.graph.axes], dtype=np.int64)

    @cached_property
    def _full(self) -> FloatArray:
        """Numbers of every parameter that has axes before any cut (0 for buffers), shape (names,)."""
        names = dict.fromkeys(axis.name for axis in self.graph.axes)
        return np.array([float(np.prod(self.shapes[n])) if n in self.shapes else 0.0 for n in names])


def cost_model(graph: ChannelGraph, module: nn.Module) -> CostModel:
    """Build the cost model of a traced module."""
    named = {axis.name for axis in graph.axes}
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if name in named}
    other = sum(p.numel() for name, p in module.named_parameters() if name not in named)
    return CostModel(graph, shapes, other)


def channel_gradient(cost: CostModel, keep: BoolArray, of: str) -> FloatArray:
    """Return what one channel's removal saves, to first order in the widths, shape (channels,).

    Args:
        cost: The cost model.
        keep: Channels that are still there.
        of: ``macs``, ``params`` or ``latency``.
    """
    return cost.saved_by_channel(keep, of)
