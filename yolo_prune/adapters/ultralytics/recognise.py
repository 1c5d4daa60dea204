"""Tell a model that was cut from one that only the host trained: by our record, else by what the host builds.

A model is built from its description anew and the shapes are compared. Two differences are the host's own: the class
layers, which follow the data, and the branches in front of them, whose width the host takes from the number of classes
and keeps when it goes on with fewer (YOLO11n from 80 classes to 3: 80 channels, where 3 classes would get 64).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import nn

from yolo_prune.adapters.stored import record_of_cut
from yolo_prune.adapters.ultralytics.undisturbed import undisturbed
from yolo_prune.progress import LOGGER

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_FEW, _MANY = 1, 1000  # class counts that any dependence on the classes shows between
_UNBUILDABLE = (TypeError, KeyError, AttributeError, ValueError, IndexError, RuntimeError)


def is_cut(module: nn.Module, meta: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a model was cut: the host's own training would build it anew, in other shapes.

    Args:
        module: A model of the host.
        meta: What yolo_prune recorded in its checkpoint. Without a record the shapes decide, and a line says so where
            they leave a doubt.
    """
    said = record_of_cut(meta)
    if said is not None:
        return said
    if not isinstance(getattr(module, "yaml", None), Mapping):
        return False
    stock = _built(module)
    if stock is None:
        LOGGER.info(
            "the model cannot be built from its description: without a record it counts as never pruned."
        )
        return False
    found = _shapes(module)
    if found == stock:
        return False
    if _has_shorter_list(module, stock):
        return True
    return not _comes_from_classes(module, found, stock)


def _comes_from_classes(module: nn.Module, found: Shapes, stock: Shapes) -> bool:
    """Tell whether some number of classes explains every tensor that differs."""
    differing = [name for name, shape in found.items() if stock.get(name) != shape]
    layers: Any = module.model
    if not all(name.startswith(f"model.{len(layers) - 1}.") for name in differing):
        return False  # only the head depends on the classes
    class_dims, branch_dims = _dims_by_classes(module, stock)
    if not all(len(stock.get(name, ())) == len(found[name]) for name in differing):
        return False
    odd = {
        (name, dim)
        for name in differing
        for dim, size in enumerate(found[name])
        if size != stock[name][dim] and (name, dim) not in class_dims
    }
    if not odd:
        return True
    widths = {found[name][dim] for name, dim in odd}
    if not odd <= branch_dims or len(widths) > 1:
        return False
    width = widths.pop()
    built = _built(module, width)
    if built is None or any(
        name in found and found[name][dim] != built[name][dim] for name, dim in branch_dims
    ):
        return False
    LOGGER.info(
        "the class branches are %d channels wide, as the host builds them for %d classes and keeps them for fewer: "
        "without a record the model counts as never pruned.",
        width,
        width,
    )
    return True


def _dims_by_classes(module: nn.Module, stock: Shapes) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """Return the dimensions (tensor, dim) that count the classes, and the others that depend on their number."""
    own = int(getattr(module, "yaml")["nc"])  # noqa: B009 - a plain attribute, no submodule
    counted: set[tuple[str, int]] = set()
    dependent: set[tuple[str, int]] = set()
    for classes in (_FEW, _MANY):
        other = _built(module, classes) or {}
        for name, shape in stock.items():
            for dim, (size, changed) in enumerate(zip(shape, other.get(name, shape), strict=True)):
                if size != changed:
                    kind = counted if changed - size == classes - own else dependent
                    kind.add((name, dim))
    return counted - dependent, dependent


def _has_shorter_list(module: nn.Module, stock: Shapes) -> bool:
    """Tell whether a list of blocks lost some; where they were added up, no width says so."""
    lists = (nn.ModuleList, nn.Sequential)
    held = {name: len(layer) for name, layer in module.named_modules() if isinstance(layer, lists)}
    return any(
        part.isdecimal() and held.get(".".join(parts[:place]), math.inf) <= int(part)
        for parts in (name.split(".") for name in stock)
        for place, part in enumerate(parts)
    )


def _built(module: nn.Module, classes: int | None = None) -> Shapes | None:
    """Return the shapes that the host builds from a model's description, None where it cannot."""
    description = dict(getattr(module, "yaml"))  # noqa: B009 - a plain attribute, no submodule
    channels = description.get("channels", description.get("ch", 3))
    with undisturbed():
        try:
            stock = type(module)(deepcopy(description), ch=channels, nc=classes, verbose=False)
        except _UNBUILDABLE:  # a class of the user's own, or one of another version of the host
            return None
    return _shapes(stock)


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
