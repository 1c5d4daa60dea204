"""Check training arguments against the installed host before hours are spent."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from yolo_prune.errors import ConfigError

OPTIMIZERS = ("auto", "SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "MuSGD")
"""What the host's trainer builds; it keeps the list inside a function and complains only when training begins."""


def check_train_args(train_args: Mapping[str, Any]) -> None:
    """Refuse arguments that the installed host does not know or whose values it would not take.

    Args:
        train_args: Training arguments of the host by name.

    Raises:
        ConfigError: A name is unknown to this version, or a value is of another type or outside its range.
    """
    from ultralytics import __version__ as version
    from ultralytics.cfg import check_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    for key in train_args:
        if key not in DEFAULT_CFG_DICT:
            raise ConfigError(f"'{key}' is no training argument of the installed ultralytics {version}.")
    optimizer = str(train_args.get("optimizer", "auto"))
    if optimizer.lower() not in {name.lower() for name in OPTIMIZERS}:
        near = difflib.get_close_matches(optimizer, OPTIMIZERS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"unknown optimizer '{optimizer}'; the host has {', '.join(OPTIMIZERS)}.{hint}")
    try:
        check_cfg(dict(train_args), hard=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
