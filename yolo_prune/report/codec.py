"""Frozen dataclasses to plain JSON values and back, strict on names and types; None is "not measured"."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeVar, Union

from yolo_prune.errors import ConfigError
from yolo_prune.options.fields import renamed

_T = TypeVar("_T")


def encode(value: Any) -> Any:
    """Turn dataclasses, tuples, mappings and numpy scalars into plain JSON values.

    Args:
        value: A dataclass instance or anything JSON knows. A number that is not finite was not measured.

    Returns:
        Nested dicts, lists, strings, bools, ints, floats and None.

    Raises:
        ConfigError: The value has a type that JSON cannot hold.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    raise ConfigError(f"a report cannot hold a {type(value).__name__}: expected numbers, text, lists, dicts.")


def decode(kind: type[_T], value: Any, where: str) -> _T:
    """Build a frozen dataclass from a plain dict; absent keys take the field's default, former names are read.

    Args:
        kind: The dataclass to build.
        value: A dict, usually out of a JSON file.
        where: The place named in errors, for example ``report.json rows[3]``.

    Returns:
        An instance of ``kind`` whose lists have become tuples.

    Raises:
        ConfigError: An unknown key, an absent required key, or a value of another type.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a table of keys in {where}, got {type(value).__name__}.")
    value = renamed(kind, value)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise ConfigError(unknown_key(str(key), list(fields), where))
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in value:
            raise ConfigError(f"key '{name}' is missing in {where}.")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _convert(hints[key], item, f"{where} {key}") for key, item in value.items()})


def unknown_key(key: str, known: list[str], where: str) -> str:
    """Say that ``key`` is unknown and what was probably meant."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else f"Known keys: {', '.join(known)}."
    return f"unknown key '{key}' in {where}. {hint}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [option for option in inner if option is not type(None)]
        listed = [option for option in kinds if typing.get_origin(option) is tuple]
        kind = listed[0] if listed and isinstance(value, (list, tuple)) else kinds[0]
        made = _convert(kind, value, where)
        return None if isinstance(made, float) and not math.isfinite(made) else made
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"expected a list in {where}, got {type(value).__name__}.")
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise ConfigError(f"expected {len(inner)} values in {where}, got {len(value)}.")
        return tuple(_convert(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected a table of keys in {where}, got {type(value).__name__}.")
        return {str(key): _convert(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else decode(hint, value, where)
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    number = not isinstance(value, bool)
    if number and hint is float and isinstance(value, Real):
        return float(value)
    if number and hint is int and isinstance(value, Integral):
        return int(value)
    if hint in (str, bool) and isinstance(value, hint):
        return value
    raise ConfigError(f"expected {hint.__name__} in {where}, got {value!r}.")
