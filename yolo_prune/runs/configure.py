"""Make the configuration of a command from words, values and recipes; the arguments of the hosts ride along."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from yolo_prune.adapters.hosts import hosts
from yolo_prune.cut.budget import BUDGETS, TARGETS
from yolo_prune.options.fields import REST, config_from, parse_overrides
from yolo_prune.options.host_keys import HostKeys
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
        >>> from yolo_prune.runs.configure import make_config
        >>> words = ["model=best.pt", "data=d.yaml", "--keep_macs", "0.5", "epochs=9", "mosaic=0"]
        >>> make_config(PruneConfig, words).train_args
        {'mosaic': 0}
    """
    values = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    host = host_keys()
    ignored = host.ignored if kind is TrainConfig else ()
    return config_from(
        kind, values, rest=rest_keys(kind), host=host, exclusive=(*BUDGETS, *TARGETS), ignored=ignored
    )


def rest_keys(kind: type) -> tuple[str, ...]:
    """Return the arguments of the host that a command passes on."""
    if not any(item.name == REST for item in dataclasses.fields(kind)):
        return ()
    return host_keys().train if kind is TrainConfig else host_keys().retrain


@functools.cache
def host_keys() -> HostKeys:
    """Return the options that any of the hosts takes."""
    names = [field.name for field in dataclasses.fields(HostKeys)]
    every = {
        name: dict.fromkeys(key for host in hosts() for key in getattr(host.keys, name)) for name in names
    }
    return HostKeys(**{name: tuple(keys) for name, keys in every.items()})
