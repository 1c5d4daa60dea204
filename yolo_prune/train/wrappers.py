"""What stands around a network in a training, and remembers parameters that a cut replaces."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a network without DistributedDataParallel and the compiler."""
    for _ in range(3):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner
    return model


def renew_wrappers_(model: nn.Module) -> None:
    """Set DistributedDataParallel up anew, in place, and let the compiler compile again.

    Args:
        model: As the training holds it.
    """
    if hasattr(model, "_orig_mod"):
        torch._dynamo.reset()
        renew_wrappers_(model._orig_mod)  # type: ignore[arg-type]
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner, training = model.module, model.training
        options: dict[str, Any] = {
            "device_ids": model.device_ids,
            "find_unused_parameters": model.find_unused_parameters,
            "gradient_as_bucket_view": model.gradient_as_bucket_view,
            "process_group": model.process_group,
        }
        newer = "forward_sync_buffers"  # the name since PyTorch 2.13
        name = newer if hasattr(model, newer) else "broadcast_buffers"
        options[name] = getattr(model, name)
        type(model).__init__(model, inner, **options)
        nn.Module.train(model, training)


def average_inside(average: nn.Module) -> nn.Module:
    """Return the averaged network in ``AveragedModel`` and its like."""
    inner = getattr(average, "module", average)
    return inner if isinstance(inner, nn.Module) else average


def restart_average_(average: nn.Module, model: nn.Module) -> None:
    """Let an average start afresh from a network that was cut; the average's object stays the same.

    Args:
        average: ``AveragedModel``, a module that holds its network as ``module``, or a copy of the network.
        model: The cut network.
    """
    before = average_inside(average)
    fresh = copy.deepcopy(model).to(next(before.parameters()).device).train(before.training)
    wanted = {name: parameter.requires_grad for name, parameter in before.named_parameters()}
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(wanted.get(name, parameter.requires_grad))
    if before is average:
        vars(average).update(vars(fresh))
    else:
        average.module = fresh
    count = getattr(average, "n_averaged", None)
    if isinstance(count, torch.Tensor):
        count.zero_()
