"""Tensors in whatever a model takes or returns: sequences, mappings, named tuples, dataclasses, objects with fields."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Set
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

Value = TypeVar("Value")
# What holds no result of a forward pass, or far more than that.
_CLOSED = (
    *(str, bytes, bytearray, range, int, float, complex, type(None)),
    *(type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, nn.Module),
)


def tensors_in(value: Any) -> list[Tensor]:
    """Find the tensors in a value, however its author packed them.

    Args:
        value: Tensors, sequences, sets, mappings, dataclasses and any objects with fields, nested as they like.
            Modules, classes and functions are not looked into.

    Returns:
        Each tensor once, in the order of the fields.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> [tensor.item() for tensor in tensors_in({"boxes": SimpleNamespace(tensor=torch.tensor(4)), "n": 1})]
        [4]
    """
    found: list[Tensor] = []
    met: dict[int, Any] = {}  # by identity, and held, so that no identity is used twice
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, _CLOSED) or id(item) in met:
            continue
        met[id(item)] = item
        if isinstance(item, Tensor):
            found.append(item)
        else:
            pending += reversed(list(_contents(item)))
    return found


def _contents(item: Any) -> Iterable[Any]:
    """Return what an object holds: its items, then its fields."""
    if isinstance(item, Mapping):
        yield from item.values()
    elif isinstance(item, (list, tuple, Set)) or type(item).__module__ == "collections":
        yield from item
    if hasattr(item, "__dict__"):
        yield from vars(item).values()
    for base in type(item).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(item, name):
                yield getattr(item, name)


def change_tensors(value: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """Copy a value deeply, with ``change(tensor)`` in the place of every tensor that :func:`tensors_in` finds."""
    memo: dict[int, object] = {id(tensor): change(tensor) for tensor in tensors_in(value)}
    return copy.deepcopy(value, memo)
