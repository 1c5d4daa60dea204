"""What a plan does to a model, layer by layer, as the report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from yolo_prune.cost import count_parameters
from yolo_prune.criteria.weights import norm_scale_names
from yolo_prune.cut.record import PrunePlan
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.imgsz import ImageSize
from yolo_prune.options import BUDGETS, TARGETS, PruneConfig
from yolo_prune.report import Histogram, LayerWidth, PlanSummary


def plan_summary(
    config: PruneConfig,
    plan: PrunePlan,
    parent: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    imgsz: ImageSize,
) -> PlanSummary:
    """Return what was asked for and what the plan does, counted at an input of ``imgsz`` pixels."""
    budget = next(key for key in (*BUDGETS, *TARGETS) if getattr(config, key) is not None)
    groups = [group for group in graph.groups if group.producers]
    return PlanSummary(
        budget=f"{budget}={getattr(config, budget):g}",
        criterion=str(plan.settings.get("criterion", config.criterion)),
        parent_gmacs=plan.gmacs / plan.kept_macs,
        kept_gmacs=plan.gmacs,
        parent_params_m=count_parameters(parent) / 1e6,
        kept_params_m=count_parameters(pruned) / 1e6,
        groups=len(groups),
        frozen_groups=sum(bool(group.frozen) for group in groups),
        round_to=config.round_to,
        steps=config.steps,
        imgsz=imgsz,
        target=_target_sentence(plan.settings.get("latency")),
    )


def _target_sentence(met: Mapping[str, Any] | None) -> str | None:
    """Say how a budget of time was met, None of another budget."""
    if met is None:
        return None
    measured = met["measured"]
    if measured is None:
        return (
            f"target {met['target_ms']:.4g} ms an image on {met['runtime']}, {met['device_name']}, {met['threads']} "
            f"threads, by the table {met['table']} (the parent took {met['parent_ms']:.4g}); predicted "
            f"{met['predicted_ms']:.4g}, not measured"
        )
    threads = f"{met['threads']} thread{'s' * (met['threads'] != 1)}"
    return (
        f"target {met['target_ms']:.4g} ms an image on {met['runtime']}, {met['device']}, {threads} (the parent took "
        f"{met['parent_ms']:.4g}); predicted {met['predicted_ms']:.4g}, reached {measured['ms']:.4g} "
        f"[{measured['low']:.4g}, {measured['high']:.4g}], {met['speedup']:.2f} times as fast"
    )


def layer_widths(parent: nn.Module, pruned: nn.Module, graph: ChannelGraph) -> tuple[LayerWidth, ...]:
    """Output widths of every layer that makes channels of its own, and why one was left alone."""
    reasons = {
        label.rpartition(".")[0]: "; ".join(g.frozen)
        for g in graph.groups
        for label in g.producers
        if g.frozen
    }
    after = dict(pruned.named_modules())
    return tuple(
        LayerWidth(
            name, int(layer.out_channels), int(getattr(after.get(name), "out_channels", 0)), reasons.get(name)
        )
        for name, layer in parent.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1
    )


def scale_histogram(parent: nn.Module, pruned: nn.Module, bins: int = 40) -> Histogram | None:
    """Count the magnitudes of all BatchNorm scales before and after; None where there is none."""
    scales = []
    for module in (parent, pruned):
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        found = [tensors[name].detach().abs().flatten().float().cpu() for name in norm_scale_names(module)]
        scales.append(torch.cat(found).numpy() if found else np.zeros(0))
    if not len(scales[0]):
        return None
    edges = np.linspace(0.0, float(max(values.max() for values in scales if len(values))), bins + 1)
    before, after = (np.histogram(values, edges)[0].tolist() for values in scales)
    return Histogram(tuple(edges.tolist()), tuple(before), tuple(after))
