"""Options as they are written down, and what two sets of them differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from yolo_prune.options.fields import REST, option_fields


def to_yaml(config: object) -> str:
    """Return a configuration as YAML that ``cfg=`` reads back to an equal one (``args.yaml``)."""
    values = {name: getattr(config, name) for name in option_fields(config)}
    values.update(getattr(config, REST, {}))
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def difference(before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Say what options were and what they are now.

    Example:
        >>> difference({"seed": 0}, {"seed": 1}, ["seed"])
        'seed=0, not seed=1'
    """
    old, new = (" and ".join(f"{key}={values.get(key)}" for key in keys) for values in (before, now))
    return f"{old}, not {new}"
