"""What a network takes on a runtime, as a function of the channels that stay: layers that were timed, and the rest.

The time of a network is ``fixed + sum over its operations (layer + rest per element * elements)``. A layer is read
off the ladder of widths that it was timed at, between the rungs in proportion. The rest is what the whole parent took
beyond its layers (activations, additions, copies, products of attention), spread over the numbers that its operations
make. What no cut touches, resizing and suppression, is fixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from yolo_prune.errors import BudgetError
from yolo_prune.graph.atoms import MacUse
from yolo_prune.layers import SHARES, LayerShape, ladder

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_LEAST = 0.02  # of a layer's time: what a width far below the ladder takes at least


@dataclass(frozen=True)
class Latency:
    """What was timed on a runtime.

    Attributes:
        ms: Time of every rung of every layer, without the call itself.
        rest_ms: What a number that an operation makes takes beyond that.
        fixed_ms: What no cut touches.
    """

    ms: Mapping[LayerShape, float]
    rest_ms: float = 0.0
    fixed_ms: float = 0.0

    def to_json(self) -> str:
        """Return it as text."""
        layers = [{"shape": shape.to_dict(), "ms": ms} for shape, ms in self.ms.items()]
        return json.dumps({"layers": layers, "rest_ms": self.rest_ms, "fixed_ms": self.fixed_ms})

    @staticmethod
    def from_json(text: str) -> Latency:
        """Read what :meth:`to_json` wrote."""
        found = json.loads(text)
        ms = {LayerShape.from_dict(one["shape"]): one["ms"] for one in found["layers"]}
        return Latency(ms, found["rest_ms"], found["fixed_ms"])

    @staticmethod
    def fitted(
        ms: Mapping[LayerShape, float], uses: Sequence[MacUse], *, network_ms: float, fixed_ms: float
    ) -> Latency:
        """Return what makes the sum of the parent's layers the time that the whole parent took.

        Args:
            ms: Time of every rung of its layers.
            uses: Its operations.
            network_ms: Time of the whole network.
            fixed_ms: Time before and after it.
        """
        bare = Latency(ms, 0.0, fixed_ms)
        timed = TimedUses.of(bare, uses)
        layers = float(timed.whole.sum())
        elements = sum(use.elements for use in uses)
        return replace(bare, rest_ms=(network_ms - layers) / max(elements, 1))

    def grid_for(self, layer: LayerShape) -> tuple[list[int], list[int]]:
        """Return the widths of the smallest ladder of its kind that covers a layer.

        Raises:
            BudgetError: No such layer was timed.
        """
        found = [
            one
            for one in self._families.get(layer.family, ())
            if one.outputs >= layer.outputs and one.reads >= layer.reads
        ]
        if not found:
            raise BudgetError(
                f"the times are those of another model or image size: nothing like {layer.text} is among them. "
                "Measure them for this one."
            )
        return ladder(min(found, key=lambda one: (one.outputs * one.reads, one.outputs)))

    @cached_property
    def _families(self) -> dict[LayerShape, list[LayerShape]]:
        """Layers whose whole ladder was timed, by family."""
        families: dict[LayerShape, list[LayerShape]] = {}
        for shape in self.ms:
            made, read = ladder(shape)
            if all(shape.resized(outputs, reads) in self.ms for outputs in made for reads in read):
                families.setdefault(shape.family, []).append(shape)
        return families


@dataclass(frozen=True)
class TimedUses:
    """The times of one network's operations, as arrays over them.

    Attributes:
        latency: What was timed.
        made: Rungs of what each operation makes, ascending, the last one repeated, shape (uses, rungs).
        read: The same of what it reads.
        ms: Times on these rungs, shape (uses, rungs, rungs); 0 of an operation that was not timed alone.
        full: What each makes and reads in the model as it is, shape (uses, 2).
        axes: Index of the axes that these follow, -1 for none, shape (uses, 2).
        is_product: Operations that shrink with the atoms of a product instead, shape (uses,).
        rest_ms: What each takes beyond its layer, shape (uses,).
    """

    latency: Latency
    made: _Floats
    read: _Floats
    ms: _Floats
    full: _Floats
    axes: _Ints
    is_product: npt.NDArray[np.bool_]
    rest_ms: _Floats

    @staticmethod
    def of(latency: Latency, uses: Sequence[MacUse]) -> TimedUses:
        """Look up the layers of a network.

        Raises:
            BudgetError: One of them is none of those that were timed.
        """
        rungs = len(SHARES) + 1
        made, read = np.ones((len(uses), rungs)), np.ones((len(uses), rungs))
        ms, full = np.zeros((len(uses), rungs, rungs)), np.ones((len(uses), 2))
        for index, use in enumerate(uses):
            if use.layer is None:
                continue
            outs, ins = latency.grid_for(use.layer)
            times = [[latency.ms[use.layer.resized(out, into)] for into in ins] for out in outs]
            more = [(0, rungs - len(outs)), (0, rungs - len(ins))]
            made[index], read[index] = np.pad(outs, more[0], "edge"), np.pad(ins, more[1], "edge")
            ms[index] = np.pad(_rising(np.array(times, dtype=np.float64)), more, "edge")
            full[index] = use.layer.outputs, use.layer.reads
        return TimedUses(
            latency,
            *(made, read, ms, full),
            axes=np.array([(use.out_axis, use.in_axis) for use in uses], dtype=np.int64).reshape(-1, 2),
            is_product=np.array([bool(use.atoms) for use in uses], dtype=bool),
            rest_ms=latency.rest_ms * np.array([use.elements for use in uses], dtype=np.float64),
        )

    @property
    def whole(self) -> _Floats:
        """What the layers take in the model as it is, without the rest, shape (uses,)."""
        times: _Floats = self._layers(np.ones_like(self.full))[0]
        return times

    def amounts(self, counts: _Floats, sizes: _Floats) -> _Floats:
        """Return what each operation takes, ms, shape (uses,); see :meth:`yolo_prune.cost.CostModel.counts`."""
        share, product = self._shares(counts, sizes)
        return np.asarray((self._layers(share)[0] + self.rest_ms * share[:, 0]) * product)

    def gradient(self, counts: _Floats, sizes: _Floats) -> _Floats:
        """Return what one index less of each axis and one share less of each product save, ms; none below 0."""
        share, product = self._shares(counts, sizes)
        layers, by_made, by_read = self._layers(share)
        slopes = np.stack([by_made + self.rest_ms / self.full[:, 0], by_read], axis=1) * product[:, None]
        saved = np.zeros(len(sizes) + 1)
        each = np.append(sizes, 1.0)[self.axes]
        np.add.at(saved, self.axes, slopes * self.full / each)  # -1, for no axis, is the last
        whole = np.where(self.is_product, layers + self.rest_ms * share[:, 0], 0.0)
        return np.asarray(np.maximum(np.append(saved[:-1], whole), 0.0))

    def _shares(self, counts: _Floats, sizes: _Floats) -> tuple[_Floats, _Floats]:
        """Return which share of its two sides each operation has left, and of its product."""
        left = np.append(counts[: len(sizes)] / sizes, 1.0)
        return left[self.axes], np.where(self.is_product, counts[len(sizes) :], 1.0)

    def _layers(self, share: _Floats) -> tuple[_Floats, _Floats, _Floats]:
        """Return the times of the layers, and what one channel less on either side saves, each (uses,)."""
        made, read = (self.full * share).T
        row, high, steep_row = _place(self.made, made)
        column, right, steep_column = _place(self.read, read)
        each = np.arange(len(self.ms))
        low_left, low_right = self.ms[each, row, column], self.ms[each, row, column + 1]
        top_left, top_right = self.ms[each, row + 1, column], self.ms[each, row + 1, column + 1]
        low, top = low_left + right * (low_right - low_left), top_left + right * (top_right - top_left)
        left, beyond = low_left + high * (top_left - low_left), low_right + high * (top_right - low_right)
        times = np.maximum(low + high * (top - low), _LEAST * self.ms[:, -1, -1])
        return times, (top - low) * steep_row, (beyond - left) * steep_column


def _place(rungs: _Floats, widths: _Floats) -> tuple[_Ints, _Floats, _Floats]:
    """Return the rung below each width, how far it is on the way to the next one, and one channel's share of that."""
    count = (np.diff(rungs, axis=1) > 0).sum(axis=1)  # steps between rungs that differ
    below = np.clip((rungs < widths[:, None] - 1e-9).sum(axis=1) - 1, 0, np.maximum(count - 1, 0))
    each = np.arange(len(rungs))
    step = rungs[each, below + 1] - rungs[each, below]
    steep = np.divide(1.0, step, out=np.zeros_like(step), where=step > 0)
    return below, (widths - rungs[each, below]) * steep, steep


def _rising(ms: _Floats) -> _Floats:
    """Return times that do not fall with the width, between the largest before and the smallest after: noise does."""
    for axis in (0, 1):
        before = np.maximum.accumulate(ms, axis=axis)
        after = np.flip(np.minimum.accumulate(np.flip(ms, axis=axis), axis=axis), axis=axis)
        ms = (before + after) / 2
    return ms
