"""Check training arguments against the installed host before hours are spent."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from yolo_prune.adapters.ultralytics.keys import IDLE_KEYS
from yolo_prune.device import check_training_device
from yolo_prune.errors import ConfigError
from yolo_prune.options import TrainConfig
from yolo_prune.options.fields import SEED_MAX
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.options.written import difference

OPTIMIZERS = ("auto", "SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "MuSGD")
"""What the host's trainer builds; it keeps the list inside a function and complains only when training begins."""

_LOWEST = {"epochs": 1, "patience": 0, "nbs": 1, "max_det": 1, "mask_ratio": 1, "seed": 0, "workers": 0}
_LOWEST |= {"close_mosaic": 0}


def check_train_args(train_args: Mapping[str, Any]) -> None:
    """Refuse arguments that the installed host does not know or whose values it would not take.

    Args:
        train_args: Training arguments of the host by name.

    Raises:
        ConfigError: A name is unknown to this version or means nothing in a training, or a value is of another
            type, outside its range, or a device that is not there.
    """
    from ultralytics import __version__ as version
    from ultralytics.cfg import check_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    for key in train_args:
        if key not in DEFAULT_CFG_DICT:
            raise ConfigError(f"'{key}' is no training argument of the installed ultralytics {version}.")
        if key in IDLE_KEYS and train_args[key] != DEFAULT_CFG_DICT[key]:
            raise ConfigError(f"'{key}' changes nothing in a training: leave it out.")
    optimizer = str(train_args.get("optimizer", "auto"))
    if optimizer.lower() not in {name.lower() for name in OPTIMIZERS}:
        near = difflib.get_close_matches(optimizer, OPTIMIZERS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"unknown optimizer '{optimizer}'; the host has {', '.join(OPTIMIZERS)}.{hint}")
    try:
        check_cfg(dict(train_args), hard=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    _check_ranges(train_args)
    check_training_device(train_args.get("device"))


def _check_ranges(train_args: Mapping[str, Any]) -> None:
    """Refuse numbers that the host would take and stumble over later.

    Raises:
        ConfigError: A number is out of range.
    """
    for key, low in _LOWEST.items():
        value = train_args.get(key)
        if isinstance(value, (int, float)) and value < low:
            raise ConfigError(f"{key} must be at least {low}, got {value:g}.")
    seed, batch = train_args.get("seed"), train_args.get("batch")
    if isinstance(seed, int) and seed > SEED_MAX:
        raise ConfigError(f"seed must be at most {SEED_MAX}, got {seed}.")
    if isinstance(batch, (int, float)) and batch != -1 and not (0 < batch < 1 or batch >= 1):
        raise ConfigError(f"batch must be at least 1, a share of the GPU's memory, or -1, got {batch:g}.")


def check_pruned_training_args(train_args: Mapping[str, Any]) -> None:
    """Refuse what a training of a cut model, or one that cuts, cannot do as the host does.

    Args:
        train_args: Training arguments of the host by name.

    Raises:
        ConfigError: One of them would be passed over.
    """
    if train_args.get("save") is False:
        raise ConfigError("save=false leaves nothing to resume from or to choose the best of: leave it out.")


def check_retraining_args(train_args: Mapping[str, Any]) -> None:
    """Refuse what means nothing, or cannot be, when a model that is already cut is trained.

    Args:
        train_args: Training arguments of the host by name.

    Raises:
        ConfigError: One of them would be passed over, or would change what the model tells apart.
    """
    check_pruned_training_args(train_args)
    if train_args.get("pretrained", True) is not True:
        raise ConfigError("'pretrained' changes nothing when a cut model is trained: leave it out.")
    if train_args.get("single_cls"):
        raise ConfigError(
            "single_cls=true changes the classes, which a cut model keeps: train its parent so."
        )


def check_pruning_options(
    config: TrainConfig, *, pruned: bool, started_with: Mapping[str, Any] | None
) -> None:
    """Refuse options of ``train`` that the training at hand would pass over.

    Args:
        config: What was asked for.
        pruned: The model is already cut, and no budget is given: it is trained on.
        started_with: Pruning options of the interrupted run that goes on; None for a new run.

    Raises:
        ConfigError: Options of the pruning without a budget, others than those of the interrupted run, or a teacher
            or recipe where they do not count.
    """
    defaults = {field.name: field.default for field in fields(InRunSettings) if field.name != "threads"}
    given = {key: getattr(config, key) for key in defaults if getattr(config, key) != defaults[key]}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    if started_with is not None:
        changed = [key for key, value in given.items() if started_with.get(key) != value]
        if changed:
            raise ConfigError(
                f"the run of '{config.model}' was started with {difference(started_with, given, changed)}. Leave "
                "that out to go on, or train anew."
            )
    elif given and config.budget is None:
        raise ConfigError(
            f"{', '.join(given)}: for pruning in the training, and no budget is given: keep_macs=..."
        )
    if not pruned and (config.teacher is not None or config.recipe != "gentle"):
        raise ConfigError("teacher= and recipe= are for a model that is already pruned, without a budget.")
