"""JSON Schemas (2020-12) of what a run writes, made from the dataclasses that write it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Union

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS = {str: "string", bool: "boolean", int: "integer", float: "number"}


def schema_of(kind: type, title: str, version_key: str, version: int) -> dict[str, Any]:
    """Return the schema of a file that holds one dataclass.

    Args:
        kind: The dataclass.
        title: Of the schema.
        version_key: Where the file says its version.
        version: The one that is described.

    Returns:
        Every key that this release writes, and no others; those that earlier releases did not write are not required.
    """
    parts: dict[str, Any] = {}
    whole = _object(kind, parts)
    whole["properties"] = {version_key: {"const": version}, **without(whole["properties"], version_key)}
    whole["required"] = list(dict.fromkeys([version_key, *whole["required"]]))
    return {"$schema": _DIALECT, "title": title, **whole, **({"$defs": parts} if parts else {})}


def without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping without one key."""
    return {name: value for name, value in values.items() if name != key}


def _object(kind: type, parts: dict[str, Any]) -> dict[str, Any]:
    """Return what a dataclass looks like; a key with a default may be missing."""
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    optional = [field for field in fields if _has_default(field)]
    return {
        "type": "object",
        "properties": {field.name: _schema(hints[field.name], parts) for field in fields},
        "required": [field.name for field in fields if field not in optional],
        "additionalProperties": False,
    }


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)


def _schema(hint: Any, parts: dict[str, Any]) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(one, parts) for one in inner]}
    if hint is type(None):
        return {"type": "null"}
    if hint is Any:
        return {}
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return {"type": "array", "items": _schema(inner[0], parts)}
    if origin is tuple:
        each = [_schema(one, parts) for one in inner]
        return {"type": "array", "prefixItems": each, "items": False, "minItems": len(each)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1], parts)}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in parts:
            parts[hint.__name__] = {}  # before its own parts, which come behind it
            parts[hint.__name__].update(_object(hint, parts))
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": _SCALARS[hint]}
