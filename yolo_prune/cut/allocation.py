"""How many channels each layer loses: all are in one ranking, or classes of layers take turns and lose alike."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from yolo_prune.errors import ConfigError
from yolo_prune.graph.atoms import IntArray
from yolo_prune.graph.groups import ChannelGraph

GLOBAL = "global"
ALLOCATIONS = ("cost", "root", GLOBAL, "isomorphic", "uniform")
"""One ranking: worth per saved cost, per its square root, worth alone. One for each kind of layers; for each layer."""
COST_POWERS = {"cost": 1.0, "root": 0.5, GLOBAL: 0.0}
"""Allocations that are one ranking, by the power that saved cost counts to there."""


def check_allocation(name: str) -> None:
    """Refuse an allocation that there is not.

    Raises:
        ConfigError: There is none of that name; the text lists all and suggests the nearest.
    """
    if name not in ALLOCATIONS:
        near = difflib.get_close_matches(name, ALLOCATIONS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"unknown allocation '{name}'; known are {', '.join(ALLOCATIONS)}.{hint}")


class Turns:
    """Whose turn it is to lose channels: of all classes of layers the one that keeps the largest share of its width.

    Tied groups are one layer here. With ``uniform`` every layer is a class of its own; with ``isomorphic`` those are in
    one class that as many modules of the same kinds and kernels make, pass on and read; else all are in one.

    Source:
        Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024; there layers are isomorphic where their whole
        graphs are, here where these consist of the same parts.
    """

    def __init__(
        self, allocation: str, module: nn.Module, graph: ChannelGraph, wholes: IntArray | None = None
    ) -> None:
        """Begin with the model as it is.

        Args:
            allocation: One of :data:`ALLOCATIONS`.
            module: The traced module.
            graph: Its channels.
            wholes: Channels of every group in the parent, shape (groups,); None: the module is the parent.

        Raises:
            ConfigError: There is no such allocation.
        """
        check_allocation(allocation)
        widths = np.array([len(group.channels) for group in graph.groups])
        self._left = [int(widths[list(tie)].sum()) for tie in graph.ties]
        whole = widths if wholes is None else wholes
        self._whole = [int(whole[list(tie)].sum()) for tie in graph.ties]
        self._class_of: list[Any] = [0] * len(graph.ties)
        if allocation == "uniform":
            self._class_of = list(range(len(graph.ties)))
        elif allocation == "isomorphic":
            self._class_of = _kinds(module, graph)

    def waiting(self, sizes: Mapping[int, int]) -> set[int]:
        """Return the ties that have to wait until others have lost as much.

        Args:
            sizes: Of every tie that may lose a block, how many channels that is.
        """
        if len({self._class_of[tie] for tie in sizes}) < 2:
            return set()
        left, whole, size = Counter[Any](), Counter[Any](), Counter[Any]()
        for tie, kind in enumerate(self._class_of):
            left[kind] += self._left[tie]
            whole[kind] += self._whole[tie]
            size[kind] = max(size[kind], sizes.get(tie, 0))
        # Half a block ahead: what is left in the end is the nearest width to an even share, not the one below.
        share = {kind: (left[kind] - size[kind] / 2) / whole[kind] for kind in whole}
        turn = max((self._class_of[tie] for tie in sizes), key=lambda kind: share[kind])
        return {tie for tie in sizes if self._class_of[tie] != turn}

    def take(self, tie: int, size: int) -> None:
        """Note that a tie lost so many channels."""
        self._left[tie] -= size


def _kinds(module: nn.Module, graph: ChannelGraph) -> list[str]:
    """Return for every tie what its layers consist of, in one comparable text."""
    modules = dict(module.named_modules())
    group_of = np.full(graph.channel_count, -1)
    for number, group in enumerate(graph.groups):
        group_of[group.channels] = number
    parts: list[list[str]] = [[] for _ in graph.groups]
    for axis in graph.axes:
        layer = modules.get(axis.name.rpartition(".")[0])
        if axis.name.rpartition(".")[2] == "weight" and layer is not None:
            kernel = getattr(layer, "kernel_size", "")
            for number in np.unique(group_of[graph.axis_channels(axis)]):
                if number >= 0:
                    parts[number].append(f"{axis.role} {type(layer).__name__} {kernel}")
    return [" | ".join(", ".join(sorted(parts[index])) for index in tie) for tie in graph.ties]
