"""Blocks of known libraries that bake a width into an attribute: their rules, by the library that has them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path

import yolo_prune.adapters
from yolo_prune.graph.module_rules import ModuleRule


@functools.cache
def known_blocks() -> Mapping[str, ModuleRule]:
    """Return the rules that adapters have for classes of their libraries; none of the libraries is imported by it.

    An adapter has them in ``blocks.py`` as ``BLOCKS``.

    Returns:
        Where a class is defined, as in ``timm.layers.attention.Attention`` -> its rule.
    """
    folders = [Path(place) for place in yolo_prune.adapters.__path__]
    names = sorted(file.parent.name for folder in folders for file in folder.glob("*/blocks.py"))
    found: dict[str, ModuleRule] = {}
    for name in names:
        found |= importlib.import_module(f"{yolo_prune.adapters.__name__}.{name}.blocks").BLOCKS
    return found
