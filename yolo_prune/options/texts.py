"""What a text means: on the command line, and in a YAML file, where numbers and switches are texts at first too.

YAML 1.1 would read the name ``2024_01`` as 202401, ``012`` as 10 and ``on`` as true. So a text stays one until the
key says what it is.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from yolo_prune.options.host_keys import HostKeys

YES, NO, NOTHING = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null", "~", "")
_INTEGER = re.compile(r"[-+]?\d+")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ITEM = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,]*?))\s*(?:,|$)""")
_TRUTHS = dict.fromkeys(YES[:-1], True) | dict.fromkeys(NO[:-1], False)  # without the digits
_PAIRS = {"[": "]", "(": ")", "{": "}"}


class Quoted(str):
    """A text in quotes: it means itself, also where it reads ``null`` or ``true``."""

    __slots__ = ()


class _TextLoader(yaml.SafeLoader):
    """The safe loader, to which every plain scalar is a text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as the base class declares it

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        return Quoted(value) if node.style in ("'", '"') and isinstance(value, str) else value


def read_yaml(text: str) -> Any:
    """Read YAML whose scalars stay texts; those in quotes come as :class:`Quoted`.

    Raises:
        yaml.YAMLError: It is not valid, or asks for more than plain values.
    """
    return yaml.load(text, Loader=_TextLoader)


def unquoted(text: str) -> str:
    """Return a text without the quotes around all of it.

    Example:
        >>> unquoted('"a,b.pt"')
        'a,b.pt'
    """
    whole = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]
    return text[1:-1] if whole else text


def list_items(text: str) -> list[str]:
    """Split a text with commas; brackets around all of it are left out, and quotes keep a comma in an item.

    Example:
        >>> list_items('["a,b.pt", c.pt]')
        ['a,b.pt', 'c.pt']
    """
    text = text.strip()
    if text[:1] in ("[", "(") and text.endswith(_PAIRS[text[0]]):
        text = text[1:-1].strip()
    items, at = [], 0
    while at < len(text):
        found = _ITEM.match(text, at)
        if found is None or found.end() == at:  # a quote in the middle of an item is part of it
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            items.append(text[at:end].strip())
            at = end + 1
            continue
        items.append(next(group for group in found.groups() if group is not None))
        at = found.end()
    return [item for item in items if item]


def host_value(key: str, value: Any, host: HostKeys) -> Any:
    """Return what the host makes of a value of one of its own keys; other values than texts stay as they are.

    Args:
        key: A key of the host.
        value: A text of the command line or of a YAML file, or a value from Python.
        host: How the host reads its keys.

    Example:
        >>> host = HostKeys(texts=("name",), lists=("freeze",))
        >>> [host_value(*pair, host) for pair in (("name", "2024_01"), ("mosaic", "1e-3"), ("freeze", "0,23.cv2"))]
        ['2024_01', 0.001, [0, '23.cv2']]
    """
    if isinstance(value, list):
        return [host_value("", item, host) for item in value]
    if isinstance(value, dict):
        return {name: host_value("", item, host) for name, item in value.items()}
    if isinstance(value, Quoted):
        return str(value)
    if not isinstance(value, str):
        return value
    text, lower = value.strip(), value.strip().lower()
    if lower in NOTHING:
        return None
    if key in host.texts:
        return unquoted(text)
    if key in host.switches_or_texts:
        return lower in YES if lower in (*YES, *NO) else unquoted(text)
    return _listed(key, text, host)


def _listed(key: str, text: str, host: HostKeys) -> Any:
    """Read a text that may be a list."""
    if text[0] in _PAIRS and text.endswith(_PAIRS[text[0]]):
        try:
            return host_value("", list_items(text) if text[0] == "(" else read_yaml(text), host)
        except yaml.YAMLError:
            return text
    if key in host.lists:
        items = [_scalar(item) for item in list_items(text)]
        return items[0] if len(items) == 1 and isinstance(items[0], int) else items
    items = [_scalar(item) for item in text.split(",")]
    numbers = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items)
    return items if len(items) > 1 and numbers else _scalar(text)


def _scalar(text: str) -> Any:
    """Read one number or switch, in decimal; anything else is a text."""
    text = text.strip()
    if text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else unquoted(text)
