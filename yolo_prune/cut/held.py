"""Why a model cannot get smaller: which operators keep how much of it, the largest part first."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from yolo_prune.cost import CostModel
from yolo_prune.graph.atoms import Axis, BoolArray
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.held import TIED

_PLACE = re.compile(r"^(?P<reason>.*?),? in '(?P<module>[^']*)'$")
# What every model has: its own inputs and outputs. A side that stays for another reason is what can be changed.
_NATURAL = ("is an output", "reads a tensor of fixed width")
_LISTED = 4


def held_amount(cost: CostModel, of: str) -> float:
    """Return the ``macs``, ``params`` or ``latency`` that stay when everything goes that may go."""
    return cost.amount(cost.counts(cost.graph.frozen), of)


def explain_held(cost: CostModel, keep: BoolArray, of: str) -> str:
    """Say what share of a model stays in layers that are frozen, and why: operators and modules, the largest first.

    Args:
        cost: The cost model.
        keep: Which channels stay, shape (channels,).
        of: ``macs``, ``params`` or ``latency``.

    Returns:
        A sentence; empty where frozen layers are less than a tenth of what stays.
    """
    whole, left = (cost.amount(cost.counts(mask), of) for mask in (np.ones_like(keep), keep))
    shares: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for amount, axes in _parts(cost, keep, of):
        if (found := _reason(cost.graph, axes)) is not None:
            shares[found[0]][found[1]] += amount / whole
    ranked = sorted(shares.items(), key=lambda item: -sum(item[1].values()))
    total = sum(sum(modules.values()) for _, modules in ranked)
    if total * whole < 0.1 * left:
        return ""
    listed = [(text, modules) for text, modules in ranked[:_LISTED] if sum(modules.values()) >= 0.005]
    parts = [f"{sum(modules.values()):.0%} {text}{_places(modules)}" for text, modules in listed]
    others = sum(sum(modules.values()) for _, modules in ranked[_LISTED:])
    parts += [f"{others:.0%} for other reasons"] if len(ranked) > _LISTED else []
    unit = {"macs": "MACs", "latency": "milliseconds"}.get(of, "parameters")
    return f"{total:.0%} of the {unit} stay in layers that cannot be cut freely: {', '.join(parts)}."


def _parts(cost: CostModel, keep: BoolArray, of: str) -> Iterator[tuple[float, list[Axis]]]:
    """Yield what stays of every operation or parameter, with the axes that it depends on."""
    graph = cost.graph
    if of != "params":
        amounts = cost.amount_per_use(cost.counts(keep), of).tolist()
        for use, amount in zip(graph.uses, amounts, strict=True):
            yield amount, [graph.axes[index] for index in (use.out_axis, use.in_axis) if index >= 0]
        return
    axes: dict[str, list[Axis]] = defaultdict(list)
    for axis in graph.axes:
        axes[axis.name].append(axis)
    for name, amount in cost.parameters_by_name(keep).items():
        yield amount, axes[name]


def _reason(graph: ChannelGraph, axes: list[Axis]) -> tuple[str, str] | None:
    """Return why channels of these axes stay and where; None where they may go on one side at least."""
    sides = [[graph.reasons.get(c, "") for c in graph.axis_channels(axis).tolist()] for axis in axes]
    held = [_split(Counter(side).most_common(1)[0][0]) for side in sides if all(side)]
    chosen = [item for item in held if item[0] not in _NATURAL]
    if chosen:
        return f"because of what {chosen[0][0]}", chosen[0][1]
    return ("between inputs and outputs of the model", "") if len(held) == len(axes) else None


def _split(text: str) -> tuple[str, str]:
    match = _PLACE.match(text.removeprefix(TIED))
    return (match["reason"], match["module"]) if match else (text.removeprefix(TIED), "")


def _places(modules: dict[str, float]) -> str:
    first = max(modules, key=lambda name: modules[name])
    more = len([name for name in modules if name]) - 1
    return f" in '{first}'{f' and {more} more' if more else ''}" if first else ""
