"""What goes into a checkpoint that the host writes, added before it is written: no file is read and written again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@contextmanager
def completed(complete: Callable[[dict[str, Any]], None]) -> Iterator[list[dict[str, Any]]]:
    """Have ``complete`` change every checkpoint that this thread hands to ``torch.save`` inside the block.

    The host builds its checkpoint and writes it in one function, so this is the one place between the two. Other
    threads save as ever, and so does this one what is no checkpoint.

    Yields:
        The checkpoints that were completed so far.
    """
    original, here, found = torch.save, threading.get_ident(), list[dict[str, Any]]()

    def save(value: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == here and is_checkpoint(value):
            value = on_cpu(value)
            complete(value)
            found.append(value)
        return original(value, *args, **kwargs)

    torch.save = save  # type: ignore[assignment]
    try:
        yield found
    finally:
        torch.save = original


def is_checkpoint(value: Any) -> bool:
    """Tell a checkpoint of the host from whatever else is saved."""
    return isinstance(value, dict) and any(isinstance(value.get(key), nn.Module) for key in ("ema", "model"))


def on_cpu(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint whose tensors are on the CPU, so that every machine can load it; nothing is changed."""

    def moved(value: Any) -> Any:
        if isinstance(value, nn.Module):
            there = any(not tensor.is_cpu for tensor in [*value.parameters(), *value.buffers()])
            return deepcopy(value).cpu() if there else value
        return value.cpu() if isinstance(value, Tensor) else value

    moved_checkpoint: dict[str, Any] = pytree.tree_map(moved, checkpoint)
    return moved_checkpoint
