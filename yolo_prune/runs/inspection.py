"""What a model is made of, for someone who wants to know before cutting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from yolo_prune.adapters.hosts import find_host
from yolo_prune.cost import CostModel, channel_gradient
from yolo_prune.criteria.weights import norm_scale_names
from yolo_prune.cut.depth import saved_by_drop
from yolo_prune.cut.proven import Anatomy, offered_blocks
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.graph.copies import copy_with
from yolo_prune.graph.groups import ChannelGraph, Group
from yolo_prune.imgsz import ImageSize


def inspect_all(
    model: str | Path,
    imgsz: ImageSize | None = None,
    *,
    weights: str | Path | None = None,
    trust: bool = False,
    plan: str | Path | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """List groups and residual blocks of a model that is loaded and traced once.

    Args:
        model: As for :func:`yolo_prune.adapters.checkpoint.load_detector`.
        imgsz: Size of the input that costs are counted for, in pixels; None: the model's own.
        weights: As for :func:`yolo_prune.adapters.checkpoint.load_detector`.
        trust: Allow classes that are not stock.
        plan: The ``plan.json`` of a cut of this model: rows say what it keeps of them.

    Returns:
        What :func:`describe_groups` and :func:`describe_blocks` return.

    Raises:
        PlanError: The plan cannot be read, or is one of another model.
    """
    chosen = None if plan is None else PrunePlan.load(plan)
    module, anatomy = _opened(model, imgsz, weights, trust)
    cost = anatomy.cost_of(module)
    return describe_groups(module, cost, chosen), describe_blocks(module, cost, anatomy)


def _opened(
    model: str | Path, imgsz: ImageSize | None, weights: str | Path | None, trust: bool
) -> tuple[nn.Module, Anatomy]:
    host = find_host(model)
    loaded = host.load(model, weights=weights, trust=trust)
    return loaded.module, host.anatomy(loaded.module, imgsz or loaded.imgsz)


def describe_blocks(module: nn.Module, cost: CostModel, anatomy: Anatomy) -> list[dict[str, Any]]:
    """List the residual blocks that ``depth`` may drop.

    Args:
        module: The module.
        cost: Its cost model.
        anatomy: How to run it.

    Returns:
        One dict a block: ``block`` (name), ``gmacs`` and ``params`` (what goes with it, 1e9 MACs and parameters).
    """
    return [
        {
            "block": block.name,
            "gmacs": saved_by_drop(module, cost, block, "macs") / 1e9,
            "params": round(saved_by_drop(module, cost, block, "params")),
        }
        for block in offered_blocks(module, anatomy)
    ]


def describe_groups(
    module: nn.Module, cost: CostModel, plan: PrunePlan | None = None
) -> list[dict[str, Any]]:
    """List a traced module's groups.

    Args:
        module: The module.
        cost: Its cost model.
        plan: A cut of this module, which is whole.

    Returns:
        One dict a group that a layer makes: ``group`` (name), ``width``, ``members`` (layers that make, pass on or
        read it), ``gmacs`` and ``params`` (what goes when the whole group goes, 1e9 MACs and parameters),
        ``bn_scale`` (10th, 50th and 90th percentile of |gamma|, None without BatchNorm or without weights) and
        ``frozen`` (why); with a plan ``kept`` behind ``width``. Then one a layer of which no trace met a parameter.

    Raises:
        PlanError: The plan is one of another module.
    """
    gone = None if plan is None else _gone(module, cost.graph, plan)
    graph = cost.graph
    everything = cost.everything
    macs, params = (channel_gradient(cost, everything, of) for of in ("macs", "params"))
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    scales: dict[int, list[float]] = {}
    names = set(norm_scale_names(module))
    for axis in graph.axes:
        if axis.name in names and not tensors[axis.name].is_meta:
            values = tensors[axis.name].detach().abs().cpu().tolist()
            for channel, value in zip(graph.axis_channels(axis).tolist(), values, strict=True):
                scales.setdefault(channel, []).append(value)
    rows = [
        {
            "group": group.name,
            "width": len(group.channels),
            **({} if gone is None else {"kept": int((~gone[group.channels]).sum())}),
            "members": _members(group),
            "gmacs": float(macs[group.channels].sum()) / 1e9,
            "params": round(float(params[group.channels].sum())),
            "bn_scale": _quantiles(group, scales),
            "frozen": "; ".join(group.frozen),
        }
        for group in graph.groups
        if group.producers
    ]
    return rows + _untraced(module, graph.untraced, planned=plan is not None)


def _gone(module: nn.Module, graph: ChannelGraph, plan: PrunePlan) -> npt.NDArray[np.bool_]:
    """Return of each channel whether a plan takes it away, alone or with a whole block."""
    cut_(copy_with(module, lambda tensor: tensor.to("meta")), plan)  # a plan of another model says so
    gone = np.zeros(graph.channel_count, dtype=bool)
    for axis in graph.axes:
        kept = plan.keep.get(f"{axis.name}[{axis.dim}]")
        if kept is not None:
            gone[np.delete(graph.axis_channels(axis), kept)] = True
    blocks = tuple(f"{block}." for block in plan.dropped)
    for group in graph.groups:
        if group.producers and all(label.startswith(blocks) for label in group.producers):
            gone[group.channels] = True
    return gone


def _untraced(module: nn.Module, names: Sequence[str], *, planned: bool) -> list[dict[str, Any]]:
    """List the layers that no trace ran: a head of training alone that needs targets, or one that is not used."""
    parameters = dict(module.named_parameters())
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        owner, tensor = name.rpartition(".")[0], parameters[name]
        width = tensor.shape[0] if tensor.dim() else 1
        row = rows.setdefault(
            owner,
            {
                **{
                    "group": owner,
                    "width": width,
                    **({"kept": width} if planned else {}),
                    "members": [owner],
                },
                **{"gmacs": 0.0, "params": 0, "bn_scale": None, "frozen": "no trace met it"},
            },
        )
        row["params"] += tensor.numel()
    return list(rows.values())


def _members(group: Group) -> list[str]:
    return list(dict.fromkeys(label.rpartition(".")[0] for label in (*group.producers, *group.readers)))


def _quantiles(group: Group, scales: dict[int, list[float]]) -> list[float] | None:
    values = [value for channel in group.channels.tolist() for value in scales.get(channel, ())]
    return [round(float(q), 4) for q in np.quantile(values, [0.1, 0.5, 0.9])] if values else None
