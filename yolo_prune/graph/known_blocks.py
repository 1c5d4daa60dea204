"""Blocks of known libraries that bake a width into an attribute: adapters plug their rules in, and are asked here."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE = __name__.partition(".")[0]
_ADAPTERS = "adapters"


@functools.cache
def known_blocks() -> Mapping[str, Any]:
    """Return the rules that adapters have for classes of their libraries; none of the libraries is imported by it.

    An adapter is a folder; it has its rules in ``blocks.py`` as ``BLOCKS``.

    Returns:
        Where a class is defined, as in ``timm.layers.attention.Attention`` -> its
        :class:`yolo_prune.graph.module_rules.ModuleRule`.
    """
    found: dict[str, Any] = {}
    for file in sorted((Path(__file__).parents[1] / _ADAPTERS).glob("*/blocks.py")):
        found |= importlib.import_module(f"{_PACKAGE}.{_ADAPTERS}.{file.parent.name}.blocks").BLOCKS
    return found
