"""Whether a run that goes on is asked for what it was started with, by the ``args.yaml`` in its folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from yolo_prune.errors import ConfigError
from yolo_prune.options.fields import REST, config_from, is_required, option_fields, read_recipe, renamed
from yolo_prune.options.written import difference
from yolo_prune.runs.configure import host_keys, rest_keys

ARGS_FILE = "args.yaml"
FREE_ON_RESUME = frozenset(
    {
        *("device", "workers", "threads", "project", "name", "exist_ok", "resume", "trust", "imports"),
        *("verbose", "debug", "bench", "file_images", "pictures", "runtimes", "quantize", "cache", "plots"),
    }
)
"""What may change when a run goes on: where and how it computes, and what is measured when all is done."""

_PATHS = ("model", "data", "weights")
_Config = TypeVar("_Config")


def check_resumed(folder: Path, asked: object, *, free: Collection[str] = FREE_ON_RESUME) -> None:
    """Refuse to go on with a run that was started with other options.

    Args:
        folder: The run folder.
        asked: The configuration that is asked for now.
        free: Options that may differ.

    Raises:
        ConfigError: An option differs, or something lies in the folder and nothing says how it was made.
    """
    file = folder / ARGS_FILE
    if not file.is_file():
        if any(path.is_file() for path in folder.rglob("*")):
            raise ConfigError(
                f"'{folder}' holds no {ARGS_FILE}, so nothing says how its files were made. Choose another name=."
            )
        return
    before, now = _values(options_of_run(file, type(asked))), _values(asked)
    keys = [key for key in {**now, **before} if key not in free]
    changed = [key for key in keys if not _same(key, before.get(key), now.get(key))]
    if changed:
        old, new = ({key: _shown(values.get(key)) for key in changed} for values in (before, now))
        raise ConfigError(
            f"the run in '{folder}' was started with {difference(old, new, changed)}. Give what it was started with, "
            "or choose another name=."
        )


def options_of_run(file: Path, kind: type[_Config]) -> _Config:
    """Read the options that a run wrote down, of this release or an earlier one.

    Keys that have another name now are read, those that mean nothing now are passed over, and new ones have their
    defaults.

    Args:
        file: The ``args.yaml`` of the run.
        kind: The options of its command.

    Raises:
        ConfigError: It cannot be read, or holds no options of that command.
    """
    fields, rest = option_fields(kind), rest_keys(kind)
    content = renamed(kind, read_recipe(file))
    content = {key: value for key, value in content.items() if key in (*fields, *rest)}
    if any(is_required(field) and key not in content for key, field in fields.items()):
        raise ConfigError(f"'{file}' does not hold the options of such a run: give another folder.")
    return config_from(kind, content, rest=rest, host=host_keys())


def _values(config: object) -> dict[str, Any]:
    """Return options and the host's arguments, by key."""
    mine = {key: getattr(config, key) for key in option_fields(config)}
    others: Mapping[str, Any] = getattr(config, REST, {})
    return {**mine, **others}


def _same(key: str, before: Any, now: Any) -> bool:
    if key in _PATHS and isinstance(before, str) and isinstance(now, str):
        return before == now or Path(before).resolve() == Path(now).resolve()
    return bool(before == now)


def _shown(value: Any) -> str:
    """Return a value as it would be typed."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
