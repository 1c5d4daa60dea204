"""What the command line says of itself, made from the documentation of the options."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import textwrap
import typing
from collections.abc import Iterable
from typing import Any

from yolo_prune import __version__
from yolo_prune.adapters.hosts import hosts
from yolo_prune.cli.registry import COMMANDS
from yolo_prune.options.common import TITLES
from yolo_prune.options.fields import REST, is_required, option_fields
from yolo_prune.runs.configure import rest_keys

_COLUMNS = 110
_LONGEST_WORD = 32  # a longer list of choices stands in the text instead
_FIRST = ("demo", "inspect", "prune", "train")  # to try, in this order
_GLUE = "\0"  # a blank that no line ends at


def version_text() -> str:
    """Return the package's version and those that its numbers depend on, without importing them."""
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", *(package for host in hosts() for package in host.packages)):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"yolo-prune {__version__} ({', '.join(found)})"


def welcome() -> str:
    """Return what to try first, and where the rest is said."""
    lines = []
    for name in _FIRST:
        lines += [f"  {COMMANDS[name].example}", f"      {COMMANDS[name].summary}"]
    return "\n".join(
        [
            f"yolo-prune {__version__} makes trained detectors smaller and faster, and proves what it cost.",
            "",
            "Four commands to try:",
            *lines,
            "",
            "All commands: yolo-prune help. Options of one: yolo-prune COMMAND -h. What works here: yolo-prune doctor.",
            'Tab completion: eval "$(yolo-prune completion bash)" (or zsh, fish).',
        ]
    )


def general_help() -> str:
    """Return the commands, one a line, and how to go on."""
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    examples = [f"  {COMMANDS[name].example}" for name in ("prune", "demo")]
    return "\n".join(
        [
            "yolo-prune COMMAND key=value ...   (--key value means the same)",
            "",
            "Commands:",
            *lines,
            "",
            "Examples:",
            *examples,
            "",
            "yolo-prune COMMAND -h lists the options of a command; cfg=FILE.yaml reads them from a recipe.",
            "Commas separate the items of a list; quotes keep one in an item: model='\"a,b.pt\",c.pt'.",
            "yolo-prune --version names the versions in use.",
        ]
    )


def command_help(name: str) -> str:
    """Return the options of a command, under their titles."""
    command = COMMANDS[name]
    hints, fields = typing.get_type_hints(command.kind), option_fields(command.kind)
    words = {key: _word(key, hints[key], field) for key, field in fields.items()}
    width = max(map(len, words.values()))
    lines = [f"yolo-prune {name}: {command.summary}"]
    for title in TITLES:
        group = [key for key, field in fields.items() if field.metadata["group"] == title]
        if group:
            lines += ["", f"{title}:"]
        for key in group:
            lines += _entry(
                words[key], _text(fields[key], inline=words[key].endswith(_choices(fields[key]))), width
            )
    lines += ["", "Options from a file:"]
    lines += _entry("cfg=FILE", "YAML file with any of these keys; the command line wins", width)
    if any(field.name == REST for field in dataclasses.fields(command.kind)):
        lines += ["", "Training arguments of the host that are passed on:"]
        lines += _wrapped(rest_keys(command.kind))
    return "\n".join([*lines, "", f"Example: {command.example}"])


def _entry(word: str, text: str, width: int) -> list[str]:
    """Return an option and what it does, the latter in a column of its own."""
    indent = width + 4
    whole = text.replace("(default ", f"(default{_GLUE}")
    lines = textwrap.wrap(whole, _COLUMNS - indent, break_on_hyphens=False)
    starts = [f"  {word:<{width}}  ", *[" " * indent] * len(lines)]
    return [start + line.replace(_GLUE, " ") for start, line in zip(starts, lines, strict=False)]


def _word(key: str, hint: Any, field: dataclasses.Field[Any]) -> str:
    """Return a key and the placeholder of its value: its choices where they are short, else its type."""
    choices = _choices(field)
    if choices and len(f"{key}={choices}") <= _LONGEST_WORD:
        return f"{key}={choices}"
    text = str(hint)
    kinds = (
        ("tuple[int, int]", "INT|H,W"),
        ("tuple", "A,B"),
        ("float", "FLOAT"),
        ("bool", "BOOL"),
        ("int", "INT"),
    )
    name = next((name for kind, name in kinds if kind in text), "NAME" if choices else "TEXT")
    return f"{key}={'|'.join([*field.metadata['words'], name])}"


def _choices(field: dataclasses.Field[Any]) -> str:
    return "|".join(map(_shown, field.metadata["choices"]))


def _text(field: dataclasses.Field[Any], *, inline: bool) -> str:
    """Return what an option does, its choices unless they stand before it, and its default."""
    listed = "" if inline else f"; one of {', '.join(map(_shown, field.metadata['choices']))}"
    if field.metadata["prefix"]:
        listed += f", {field.metadata['prefix']}NAME"
    if is_required(field):
        return f"{field.metadata['help']}{listed} (required)"
    shown = (
        ",".join(map(_shown, field.default)) if isinstance(field.default, tuple) else _shown(field.default)
    )
    default = "" if field.default is None or shown == "" else f" (default {shown})"
    return f"{field.metadata['help']}{listed}{default}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wrapped(words: Iterable[str]) -> list[str]:
    return textwrap.wrap(" ".join(words), _COLUMNS, initial_indent="  ", subsequent_indent="  ")
