"""Cut a fresh network as another was cut, so that the weights of that one can be loaded into it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import nn

from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.errors import PlanError
from yolo_prune.graph.copies import copy_with
from yolo_prune.graph.module_rules import ModuleRules

_Module = TypeVar("_Module", bound=nn.Module)


def restore(module: _Module, plan: PrunePlan | Path | str, *, rules: ModuleRules | None = None) -> _Module:
    """Cut a network by a plan, in place, without a trace and without data; its weights are loaded afterwards.

    Args:
        module: The network as it is built before any cut, on any device.
        plan: What :func:`yolo_prune.prune_module` returned, or the file that ``plan.save(path)`` wrote.
        rules: As for :func:`yolo_prune.prune_module`, where it was given any.

    Returns:
        The same module.

    Raises:
        PlanError: The file is missing or no plan, or it is one of another network; nothing was cut then.

    Example:
        >>> import torch
        >>> from yolo_prune import prune_module, restore
        >>> build = lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
        >>> net = build()
        >>> plan = prune_module(net, torch.rand(1, 3, 16, 16), keep_macs=0.5)
        >>> restore(build(), plan).load_state_dict(net.state_dict())
        <All keys matched successfully>
    """
    found = plan if isinstance(plan, PrunePlan) else PrunePlan.load(plan)
    trial = copy_with(module, lambda tensor: tensor.to("meta"))
    left = count_parameters(cut_(trial, found, rules=rules))
    if found.params and left != found.params:
        raise PlanError(
            f"the plan leaves {found.params:,} parameters of the model that it was made for, and {left:,} of this one: "
            "it was made for another model."
        )
    cut_(module, found, rules=rules)
    return module
