"""Read options: ``key=value`` words and YAML files into typed, checked dataclasses, with errors that help."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml

from yolo_prune.errors import ConfigError
from yolo_prune.options.host_keys import NO_HOST, HostKeys
from yolo_prune.options.texts import NO, NOTHING, YES, Quoted, host_value, list_items, read_yaml, unquoted

RECIPE_KEY = "cfg"
REST = "train_args"
SEED_MAX = 2**32 - 1
"""The largest seed that NumPy takes."""
_Config = TypeVar("_Config")


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    group: str,
    low: float | None = None,
    high: float | None = None,
    inside: bool = False,
    multiple: int | None = None,
    choices: tuple[Any, ...] = (),
    prefix: str | None = None,
    words: tuple[str, ...] = (),
    read: Callable[[Any], Any] | None = None,
    was: str | None = None,
) -> Any:
    """Declare one option of a run: a dataclass field with its documentation and its limits.

    Args:
        help: What it does, with its unit, in one line.
        default: Its value when it is not given; without one the option is required.
        group: The title that it stands under in the help.
        low: Smallest value allowed.
        high: Largest value allowed.
        inside: Exclude ``low`` and ``high`` themselves.
        multiple: What the value must be a multiple of.
        choices: The only values allowed, also for each item of a tuple.
        prefix: Beside the choices, texts that begin so are allowed; what stands behind it is checked where it is used.
        words: Texts that it takes beside numbers, for the help.
        read: Makes the value of what was given, where the type alone does not say how; it raises ConfigError.
        was: Its name in earlier releases, which is answered with the present one.
    """
    limits = {"low": low, "high": high, "inside": inside, "multiple": multiple, "choices": choices}
    texts = {"help": help, "group": group, "words": words, "was": was, "prefix": prefix}
    return dataclasses.field(default=default, metadata={**texts, "read": read, **limits})


def option_fields(config: type | object) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a configuration class by name, without the host arguments that ride along."""
    return {name: field for name, field in _fields(config).items() if name != REST}


def renamed(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an earlier release wrote under the present names of a dataclass's fields.

    Args:
        kind: The dataclass; the former name of a field is in its metadata under ``was``.
        content: Values by key.
    """
    former = {item.metadata.get("was"): name for name, item in _fields(kind).items()}
    return {former.get(key, key): value for key, value in content.items()}


def _fields(kind: type | object) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Tell whether an option has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Read command-line words into texts by key.

    ``key=value``, ``--key value``, ``--key=value`` and a lone ``--key`` (true) are the same; a hyphen in
    a key is an underscore.

    Raises:
        ConfigError: A word is none of these, or a key is given twice.

    Example:
        >>> parse_overrides(["model=best.pt", "--keep-macs", "0.5", "--exist_ok"])
        {'model': 'best.pt', 'keep_macs': '0.5', 'exist_ok': 'true'}
    """
    found: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") and not equals:
            raise ConfigError(
                f"'{word}' is not key=value. Options look like model=best.pt or --model best.pt."
            )
        if not equals:
            follows = words and not words[0].startswith("--") and "=" not in words[0]
            value = words.pop(0) if follows else "true"
        key = key.strip().replace("-", "_")
        if not key.isidentifier():
            raise ConfigError(f"'{word}' has no usable key. Options look like model=best.pt.")
        if key in found:
            raise ConfigError(f"key '{key}' is given twice: '{found[key]}' and '{value}'.")
        found[key] = value.strip()
    return found


def config_from(
    kind: type[_Config],
    overrides: Mapping[str, Any],
    *,
    rest: Iterable[str] = (),
    host: HostKeys = NO_HOST,
    exclusive: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> _Config:
    """Make a configuration: its defaults, changed by the YAML recipe under ``cfg``, changed by ``overrides``.

    Args:
        kind: The dataclass to make.
        overrides: Values or texts by key, as ``parse_overrides`` returns them.
        rest: Keys that are not fields of ``kind`` and are collected in its ``train_args``.
        host: How the values of those are read.
        exclusive: Keys of which one in ``overrides`` replaces any in the recipe.
        ignored: Keys that a recipe may have and that mean nothing here.

    Raises:
        ConfigError: A key is unknown or missing, or a value is of another type or outside its range.
    """
    typed = dict(overrides)
    recipe_file = typed.pop(RECIPE_KEY, None)
    recipe = {} if recipe_file is None else read_recipe(recipe_file)
    recipe = {key: value for key, value in recipe.items() if key not in set(ignored)}
    check_keys(recipe, kind, f" in {recipe_file}", also=[*rest])
    check_keys(typed, kind, "", also=[*rest, RECIPE_KEY])
    exclusive = set(exclusive)
    if exclusive & typed.keys():
        recipe = {key: value for key, value in recipe.items() if key not in exclusive}
    values = {**recipe, **typed}
    mine = {key: value for key, value in values.items() if key in option_fields(kind)}
    if REST in _fields(kind):
        mine[REST] = {key: host_value(key, value, host) for key, value in values.items() if key not in mine}
    for name, field in option_fields(kind).items():
        if is_required(field) and name not in mine:
            raise ConfigError(f"'{name}' is missing: {field.metadata['help']}. Give {name}=...")
    return kind(**mine)


def read_recipe(path: Path | str) -> dict[str, Any]:
    """Read a YAML file of options; numbers and switches are still texts, as on the command line.

    Raises:
        ConfigError: It is missing, not YAML, or not a mapping of keys to values.
    """
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe '{path}' cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"recipe '{path}' is not valid YAML{line}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"recipe '{path}' must map keys to values, such as 'keep_macs: 0.5'.")
    return content


def check_keys(given: Iterable[str], kind: type, where: str, *, also: Sequence[str] = ()) -> None:
    """Refuse the first unknown key: with its present name where it had another, else with the nearest known one.

    Args:
        given: Keys.
        kind: The dataclass that has them as fields.
        where: What follows the key in the error, such as `` in FILE``.
        also: Other keys that are known.

    Raises:
        ConfigError: A key is not known.
    """
    fields = option_fields(kind)
    for key in given:
        if key not in fields and key not in also:
            for name, field in fields.items():
                if key == field.metadata["was"]:
                    raise ConfigError(f"'{key}'{where} is called '{name}' now: {field.metadata['help']}.")
            near = difflib.get_close_matches(key, [*fields, *also], n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"unknown key '{key}'{where}.{hint}")


def coerce_(config: object) -> None:
    """Bring every option of a frozen dataclass to its type and check its limits, in ``__post_init__``.

    Raises:
        ConfigError: A value is of another type or outside its limits.
    """
    hints = typing.get_type_hints(type(config))
    for name, field in option_fields(config).items():
        value = _coerced(name, getattr(config, name), hints[name], field.metadata["read"])
        object.__setattr__(config, name, value)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                _check_limits(name, item, field.metadata)
    if getattr(config, "imports", ()) and not getattr(config, "trust", False):
        raise ConfigError("imports= runs the code of what it names: it needs trust=true.")


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    low, high, multiple = limits["low"], limits["high"], limits["multiple"]
    if value in limits["words"]:
        return
    named = limits["prefix"] is not None and str(value).startswith(limits["prefix"])
    if limits["choices"] and value not in limits["choices"] and not named:
        listed = ", ".join(_shown(choice) for choice in limits["choices"])
        near = difflib.get_close_matches(str(value), [str(choice) for choice in limits["choices"]], n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        more = f", {limits['prefix']}NAME" if limits["prefix"] else ""
        raise ConfigError(f"{name} must be one of {listed}{more}, got {_shown(value)}.{hint}")
    if limits["inside"] and not low < value < high:
        raise ConfigError(
            f"{name} must be larger than {_digits(low)} and smaller than {_digits(high)}, got {_digits(value)}."
            + _share_meant(name, value, high)
        )
    if low is not None and high is not None and not low <= value <= high:
        raise ConfigError(
            f"{name} must be between {_digits(low)} and {_digits(high)}, got {_digits(value)}."
            + _share_meant(name, value, high)
        )
    if low is not None and value < low:
        raise ConfigError(f"{name} must be at least {_digits(low)}, got {_digits(value)}.")
    if high is not None and value > high:
        raise ConfigError(f"{name} must be at most {_digits(high)}, got {_digits(value)}.")
    if multiple is not None and value % multiple:
        below = value - value % multiple
        raise ConfigError(f"{name} must be a multiple of {multiple}, got {value}: try {below + multiple}.")


def _share_meant(name: str, value: float, high: float) -> str:
    """Return the share that a number of per cent was meant to be, as a question; nothing for other options."""
    return f" Did you mean {name}={value / 100:g}?" if high == 1 and 2 <= value <= 100 else ""


def _per_cent(name: str, value: Any) -> str:
    """Return the number that a text such as ``50%`` was meant to be, as a question."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(value))
    return f" Did you mean {name}={float(found[1]) / 100:g}?" if found else ""


def _digits(number: float) -> str:
    """Return a whole number with all its digits, another with six."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _coerced(name: str, value: Any, hint: Any, read: Callable[[Any], Any] | None = None) -> Any:
    """Return a value as the type of its field; texts are read, nothing is rounded."""
    kinds = list(typing.get_args(hint)) if typing.get_origin(hint) in (Union, types.UnionType) else [hint]
    optional = type(None) in kinds
    kinds = [kind for kind in kinds if kind is not type(None)]
    if value is None or (optional and _says_nothing(value)):
        if optional:
            return None
        raise ConfigError(f"{name} must not be empty.")
    if read is not None:
        return read(value)
    for kind in kinds:
        converted = _as_tuple(value, kind) if typing.get_origin(kind) is tuple else _as_scalar(value, kind)
        if converted is not None:
            return converted
    expected = " or ".join(_described(kind) for kind in kinds)
    meant = _per_cent(name, value) if any(float in (kind, *typing.get_args(kind)) for kind in kinds) else ""
    raise ConfigError(f"{name} must be {expected}, got {_shown(value)}.{meant}")


def _says_nothing(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Quoted) and value.strip().lower() in NOTHING


def _as_tuple(value: Any, kind: Any) -> tuple[Any, ...] | None:
    """Read a list, or a text with commas, whose items are of the tuple's type; None when it is not."""
    items = list_items(value) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        items = [items]
    converted = [_as_scalar(item, typing.get_args(kind)[0]) for item in items if item != ""]
    return None if None in converted else tuple(converted)


def _as_scalar(value: Any, kind: type) -> Any:
    """Return the value as ``kind``, or None when it is not one."""
    if kind is bool:
        text = str(value).lower()
        return True if text in YES else False if text in NO else None
    if kind is str:
        if isinstance(value, str):
            return str(value) if isinstance(value, Quoted) else unquoted(value)
        return str(value) if isinstance(value, (int, Path)) and not isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if kind is int:
        return int(number) if math.isfinite(number) and number == int(number) else None
    return number if math.isfinite(number) else None


def _described(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list with commas"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'"
