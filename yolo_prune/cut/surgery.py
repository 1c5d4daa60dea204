"""The only file that resizes a Parameter: cut a model by a plan."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.cut.blocks import remove_blocks_
from yolo_prune.cut.optimizer import note_gone, note_heir
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import PlanError
from yolo_prune.graph.copies import laid_out_as
from yolo_prune.graph.module_rules import ModuleRules, rule_for

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def cut_(module: nn.Module, plan: PrunePlan, *, rules: ModuleRules | None = None) -> nn.Module:
    """Cut a module by a plan, in place.

    Args:
        module: The module that the plan was made for.
        plan: Which indices stay.
        rules: Module classes with baked widths; their attributes are set from the new shapes.

    Returns:
        The same module.

    Raises:
        PlanError: The plan names a parameter that the module lacks or that has another width; nothing was cut then.
    """
    tensors = named_tensors(module)
    cuts = _checked_cuts(tensors, plan)
    _check_blocks(module, plan)
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    owners[id(tensor)].append((owner, key))
    touched = {}
    for name, by_dim in cuts.items():
        whole = tensors.pop(name)  # nothing holds what was cut any longer than needed
        fresh = _sliced(whole, name, by_dim, plan.added)
        if isinstance(whole, nn.Parameter) and isinstance(fresh, nn.Parameter):
            note_heir(whole, fresh, by_dim)
        for owner, key in owners.pop(id(whole)):
            if isinstance(fresh, nn.Parameter):
                owner._parameters[key] = fresh
            else:
                owner._buffers[key] = fresh
            touched[owner] = True
    torch.clear_autocast_cache()  # the casts that it remembers hold the weights that they were made from
    for owner in touched:
        _sync_widths(owner)
    for path, owner in module.named_modules():
        if (rule := rule_for(rules or {}, owner)) is not None:
            rule.sync(owner)
            if rule.follow is not None:
                rule.follow(owner, _kept_below(plan, path))
    dropped = [p for block in plan.dropped for p in module.get_submodule(block).parameters()]
    remove_blocks_(module, plan.dropped)
    left = {id(parameter) for parameter in module.parameters()}
    note_gone(parameter for parameter in dropped if id(parameter) not in left)
    return module


def _kept_below(plan: PrunePlan, path: str) -> dict[str, list[int]]:
    prefix = f"{path}." if path else ""
    return {label.removeprefix(prefix): kept for label, kept in plan.keep.items() if label.startswith(prefix)}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _checked_cuts(tensors: dict[str, Tensor], plan: PrunePlan) -> dict[str, dict[int, Tensor]]:
    """Return what stays by parameter and dimension, after checking that the plan fits."""
    cuts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for label, indices in plan.keep.items():
        name, _, dim = label[:-1].rpartition("[")
        if name not in tensors:
            raise PlanError(
                f"the plan cuts '{name}', which this model does not have. It was made for another model."
            )
        width = tensors[name].shape[int(dim)]
        if width != plan.widths[label]:
            raise PlanError(
                f"the plan expects width {plan.widths[label]} at '{label}', the model has {width}."
            )
        cuts[name][int(dim)] = torch.tensor(indices, dtype=torch.int64)
    return cuts


def _check_blocks(module: nn.Module, plan: PrunePlan) -> None:
    names = dict(module.named_modules())
    for block in plan.dropped:
        if block not in names:
            raise PlanError(
                f"the plan drops '{block}', which this model does not have. It was made for another model."
            )


def _sliced(tensor: Tensor, name: str, by_dim: dict[int, Tensor], added: list[dict[str, Any]]) -> Tensor:
    """Return a smaller copy in which the indices to be added up are, a Parameter when the source is one."""
    data = tensor.detach()
    for entry in added:
        weight, _, dim = entry["axis"][:-1].rpartition("[")
        if weight == name:
            source, target = (torch.tensor(entry[side], device=data.device) for side in ("from", "to"))
            data = data.index_add(int(dim), target, data.index_select(int(dim), source))
    for dim, indices in by_dim.items():
        data = data.index_select(dim, indices.to(data.device))
    data = laid_out_as(data, tensor)
    return (
        nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    )


def _sync_widths(owner: nn.Module) -> None:
    """Set the width attributes of PyTorch's own layers from their tensors."""
    weight = getattr(owner, "weight", None)
    if isinstance(owner, _CONVOLUTIONS):
        _sync_convolution(owner)
    elif isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = (int(size) for size in owner.weight.shape)
    elif isinstance(owner, nn.GroupNorm) and isinstance(weight, Tensor):
        owner.num_groups = owner.num_groups * int(weight.shape[0]) // owner.num_channels
        owner.num_channels = int(weight.shape[0])
    elif isinstance(owner, nn.PReLU):
        owner.num_parameters = int(owner.weight.numel())
    elif hasattr(owner, "num_features"):
        vector = weight if isinstance(weight, Tensor) else getattr(owner, "running_mean", None)
        if isinstance(vector, Tensor):
            setattr(owner, "num_features", int(vector.shape[0]))  # noqa: B010 - a norm of any class


def _sync_convolution(owner: nn.Module) -> None:
    layer: Any = owner
    transposed = isinstance(owner, _TRANSPOSED)
    makes, reads = layer.weight.shape[1::-1] if transposed else layer.weight.shape[:2]
    if layer.groups == layer.in_channels > 1:  # depthwise: as many groups as channels are left
        per_group = layer.out_channels // layer.groups
        layer.groups = int(layer.weight.shape[0]) // (1 if transposed else per_group)
        makes, reads = layer.groups * per_group, layer.groups
    elif layer.groups > 1:
        makes, reads = (makes * layer.groups, reads) if transposed else (makes, reads * layer.groups)
    layer.in_channels, layer.out_channels = int(reads), int(makes)
