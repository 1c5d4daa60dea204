"""What adapters know of classes of their libraries: they plug it in, and are asked here."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE = __name__.partition(".")[0]
_ADAPTERS = "adapters"


@functools.cache
def plugged_in(part: str) -> Mapping[str, Any]:
    """Return what adapters know of classes of their libraries; none of the libraries is imported by it.

    Args:
        part: An adapter is a folder; it has what it knows in a file of this name, under the same name in capitals.

    Returns:
        Where a class is defined, as in ``timm.layers.attention.Attention`` -> what is known. ``blocks`` bake a width
        into an attribute (:class:`yolo_prune.graph.module_rules.ModuleRule`); of detectors ``heads`` are known: a
        function from the detector to the names of its heads and what to make of what each returns; ``constants`` are
        the names of parameters that nobody may move.
    """
    found: dict[str, Any] = {}
    for file in sorted((Path(__file__).parents[1] / _ADAPTERS).glob(f"*/{part}.py")):
        module = importlib.import_module(f"{_PACKAGE}.{_ADAPTERS}.{file.parent.name}.{part}")
        found |= getattr(module, part.upper())
    return found


def known_of(part: str, kind: type) -> Any:
    """Return what adapters know of a class, or of the nearest of its bases; None where they know nothing.

    Args:
        part: As :func:`plugged_in` takes it.
        kind: The class.
    """
    known = plugged_in(part)
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return next((known[name] for name in names if name in known), None)
