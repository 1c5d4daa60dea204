"""What a plan does to a model, layer by layer, as the report shows it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from yolo_prune.cost import count_parameters
from yolo_prune.criteria.weights import norm_scale_names
from yolo_prune.cut.record import PrunePlan
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.imgsz import ImageSize
from yolo_prune.options import BUDGETS, TARGETS, PruneConfig
from yolo_prune.recover.aim import target_sentence
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
        round_to=plan.settings.get("round_to"),
        steps=int(plan.settings["steps"]) if "steps" in plan.settings else None,
        imgsz=imgsz,
        target=target_sentence(plan.settings.get("latency")),
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
