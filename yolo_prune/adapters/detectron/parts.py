"""What a trainer with hooks is made of, found by the names that detectron2 and mayaku give its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.errors import ConfigError
from yolo_prune.train.midcut import is_distributed
from yolo_prune.train.wrappers import unwrapped


def find_part(trainer: Any, name: str) -> Any:
    """Return a part of a trainer, or of the one that it drives (detectron2's ``DefaultTrainer``); None without one."""
    for one in (trainer, getattr(trainer, "_trainer", None)):
        if (part := getattr(one, name, None)) is not None:
            return part
    return None


def model_of(trainer: Any) -> nn.Module:
    """Return the model as the trainer holds it.

    Raises:
        ConfigError: There is none.
    """
    model = find_part(trainer, "model")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{kind(trainer)} has no model: expected one as trainer.model, got {kind(model)}.")
    return model


def optimizers_of(trainer: Any) -> list[torch.optim.Optimizer]:
    """Return what trains the model.

    Raises:
        ConfigError: There is none.
    """
    found = find_part(trainer, "optimizer")
    found = find_part(trainer, "optimizers") if found is None else found
    several = found.values() if isinstance(found, Mapping) else found
    optimizers = [found] if isinstance(found, torch.optim.Optimizer) else list(several or ())
    if not optimizers or not all(isinstance(one, torch.optim.Optimizer) for one in optimizers):
        raise ConfigError(
            f"{kind(trainer)} has no optimizer: expected one as trainer.optimizer, got {kind(found)}."
        )
    return optimizers


def hooks_of(trainer: Any) -> list[Any]:
    """Return the list of hooks itself: whoever changes its order changes the trainer's."""
    found = getattr(trainer, "_hooks", None)
    found = getattr(trainer, "hooks", None) if found is None else found
    return found if isinstance(found, list) else []


def average_of(trainer: Any) -> nn.Module | None:
    """Return the average of the weights that a hook of the trainer keeps, as mayaku's ``EMAHook`` does."""
    for hook in hooks_of(trainer):
        shadow = getattr(getattr(hook, "ema", None), "shadow", None)
        if isinstance(shadow, nn.Module):
            return shadow
    return None


def checkpointer_of(trainer: Any) -> Any:
    """Return detectron2's checkpointer, which a trainer or one of its hooks holds; None where there is none."""
    for one in (trainer, *hooks_of(trainer)):
        if hasattr(found := getattr(one, "checkpointer", None), "get_checkpoint_file"):
            return found
    return None


def writers_of(trainer: Any) -> list[Any]:
    """Return the hooks that write checkpoints with data of the user's beside the weights, as mayaku's do."""
    return [hook for hook in hooks_of(trainer) if hasattr(hook, "metadata") and hasattr(hook, "output_dir")]


def output_dir_of(trainer: Any) -> Path | None:
    """Return where the trainer writes its checkpoints; None where that is not known."""
    named = (
        getattr(getattr(trainer, "cfg", None), "OUTPUT_DIR", None),
        getattr(checkpointer_of(trainer), "save_dir", None),
        *(hook.output_dir for hook in writers_of(trainer)),
    )
    return next((Path(folder) for folder in named if folder), None)


def length_of(trainer: Any) -> int:
    """Return the number of iterations of the whole training.

    Raises:
        ConfigError: None is left.
    """
    start, end = int(getattr(trainer, "start_iter", 0)), int(getattr(trainer, "max_iter", 0))
    if end - start < 1:
        raise ConfigError(
            f"{kind(trainer)} has no iteration to go: it starts at {start} and max_iter is {end}. Train longer."
        )
    return end


def go_first(trainer: Any, hook: Any) -> None:
    """Put a hook before all others: what is saved, evaluated and written after a step is then what the cut left."""
    hooks = hooks_of(trainer)
    if hook in hooks:  # also while the trainer goes through its list: only places that it has passed change
        hooks.remove(hook)
        hooks.insert(0, hook)


def first_batch(trainer: Any) -> Any:
    """Return one batch of the trainer's loader.

    Raises:
        ConfigError: There is no loader, or it yields nothing.
    """
    loader = find_part(trainer, "data_loader")
    if not isinstance(loader, Iterable):
        raise ConfigError(
            f"{kind(trainer)} has no data loader: expected one as trainer.data_loader, got {kind(loader)}."
        )
    for batch in loader:
        return batch
    raise ConfigError(f"the data loader of {kind(trainer)} yields no batch.")


def frozen_norms(model: nn.Module) -> int:
    """Count the BatchNorms whose scales are buffers."""
    return sum(
        "running_var" in layer._buffers and layer._buffers.get("weight") is not None
        for layer in unwrapped(model).modules()
    )


def kind(value: Any) -> str:
    """Return the name of a value's class; a proxy says what it stands for."""
    return str(value.__class__.__name__)


def is_first() -> bool:
    """Tell whether this process is the only one or the first: it prints and writes."""
    return not is_distributed() or torch.distributed.get_rank() == 0
