"""Which widths a layer may get: multiples that a runtime likes, and how narrow is too narrow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from yolo_prune.cut.blocks import original_name
from yolo_prune.cut.record import PrunePlan
from yolo_prune.graph.atoms import IntArray
from yolo_prune.graph.groups import ChannelGraph

# Of the width that an even cut would leave; measured on detectors without data, see Widths.
EVEN_SHARE = 0.7


@dataclass(frozen=True)
class Widths:
    """What widths are allowed.

    Attributes:
        round_to: Widths become multiples of this; a width that is none to begin with is rounded at its first cut.
        min_width: No group gets narrower than this (or than its own width, where that is smaller).
        min_keep: Share of its width in the parent that every group keeps, in [0, 1]; 0: only ``min_width`` counts.
            None: ``soft_keep``.
        soft_keep: Share below which a ranking without data takes channels only when nothing else is left to meet the
            budget; None: of the budget at hand, see :meth:`for_budget`.
    """

    round_to: int = 8
    min_width: int = 8
    min_keep: float | None = None
    soft_keep: float | None = None

    def for_budget(self, share: float) -> Widths:
        """Return the same widths with the default floor of a budget: 0.7 of what an even cut leaves of every layer.

        An even cut to a share of the MACs leaves its square root of every width. Rankings that never saw data compare
        layers badly: by score per MAC they take nearly all of a pyramid's or a head's channels before any of the
        backbone's.

        Args:
            share: What stays of the parent's MACs or parameters.
        """
        if self.soft_keep is not None:
            return self
        return replace(self, soft_keep=EVEN_SHARE * math.sqrt(min(max(share, 0.0), 1.0)))

    def steps(self, width: int, free: int, unit: int = 1, whole: int | None = None) -> list[int]:
        """Return how many channels go at each step down.

        Args:
            width: Channels of the group.
            free: How many of them may go at all.
            unit: Indices of a layer that one channel stands for; the rounding is of layers.
            whole: Channels of the group in the parent; None: ``width``.
        """
        multiple = self.round_to // math.gcd(self.round_to, unit)
        share = _share(width if whole is None else whole, self.min_keep or 0.0)
        floor = max(-(-self.min_width // unit), width - free, share, 1)
        steps = []
        while width > floor:
            target = (width - 1) // multiple * multiple
            if target < floor:
                break
            steps.append(width - target)
            width = target
        return steps

    def easy_steps(self, width: int, steps: list[int], whole: int | None = None) -> int:
        """Return how many of the steps leave the share that every group keeps if the budget allows it."""
        share = self.soft_keep if self.min_keep is None else self.min_keep
        floor = _share(width if whole is None else whole, share or 0.0)
        left = width - np.cumsum(steps, dtype=np.int64)
        return int((left >= floor).sum())


def _share(whole: int, share: float) -> int:
    return math.ceil(whole * share - 1e-9)


@dataclass(frozen=True)
class Lineage:
    """How wide the groups of a model were before anything was cut, so that cuts in a row share one floor.

    Attributes:
        widths: Label of a producing axis of the parent -> for each of its indices, how many channels its group has.
        plan: From the parent to the model as it is; None: it is the parent.
    """

    widths: Mapping[str, Sequence[int]]
    plan: PrunePlan | None = None

    @staticmethod
    def of(parent: ChannelGraph) -> Lineage:
        """Return the lineage that begins with this model."""
        width_of = np.zeros(parent.channel_count, dtype=np.int64)
        for group in parent.groups:
            width_of[group.channels] = len(group.channels)
        outs = (axis for axis in parent.axes if axis.role == "out")
        return Lineage({axis.label: width_of[parent.axis_channels(axis)].tolist() for axis in outs})

    def then(self, plan: PrunePlan) -> Lineage:
        """Return the lineage after one more cut."""
        return Lineage(self.widths, self.plan.then(plan) if self.plan else plan)

    def wholes(self, graph: ChannelGraph) -> IntArray:
        """Return how many channels each group of the model as it is had in the parent, shape (groups,)."""
        axes = {axis.label: axis for axis in graph.axes if axis.role == "out"}
        dropped, keep = (self.plan.dropped, self.plan.keep) if self.plan else ([], {})
        found = np.array([len(group.channels) for group in graph.groups], dtype=np.int64)
        for index, group in enumerate(graph.groups):
            for label in group.producers:
                name = original_name(label, dropped)
                place = int(np.argmax(np.isin(graph.axis_channels(axes[label]), group.channels)))
                if name in self.widths:
                    before = self.widths[name][keep[name][place] if name in keep else place]
                    found[index] = max(found[index], before)
        return found
