"""Make the configuration of a command from words, values and recipes, and write it down again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

from yolo_prune.cut.budget import BUDGETS
from yolo_prune.options.fields import REST, config_from, option_fields, parse_overrides
from yolo_prune.options.host_keys import HOST_OWN_KEYS, HOST_TRAIN_KEYS, NOT_OF_A_TRAINING
from yolo_prune.options.runs import TrainConfig

_Config = TypeVar("_Config")


def make_config(kind: type[_Config], overrides: Mapping[str, Any] | Sequence[str]) -> _Config:
    """Make the configuration of a command: defaults, then the ``cfg`` recipe, then ``overrides``.

    Args:
        kind: ``PruneConfig`` or another class of ``runs``.
        overrides: Values by key, or command-line words. A budget here replaces the recipe's.

    Returns:
        The checked configuration; host training arguments are in its ``train_args``, where it has that field.

    Raises:
        ConfigError: A key is unknown or missing, or a value is of another type or outside its range.

    Example:
        >>> from yolo_prune.options import PruneConfig
        >>> words = ["model=best.pt", "data=d.yaml", "--keep_macs", "0.5", "epochs=9", "mosaic=0"]
        >>> make_config(PruneConfig, words).train_args
        {'mosaic': 0}
    """
    values = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    ignored = NOT_OF_A_TRAINING if kind is TrainConfig else ()
    return config_from(kind, values, rest=rest_keys(kind), exclusive=BUDGETS, ignored=ignored)


def rest_keys(kind: type) -> tuple[str, ...]:
    """Return the arguments of the host that a command passes on."""
    if not any(item.name == REST for item in dataclasses.fields(kind)):
        return ()
    return HOST_OWN_KEYS if kind is TrainConfig else HOST_TRAIN_KEYS


def to_yaml(config: object) -> str:
    """Return a configuration as YAML that ``cfg=`` reads back to an equal one (``args.yaml``)."""
    values = {name: getattr(config, name) for name in option_fields(config)}
    values.update(getattr(config, REST, {}))
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
