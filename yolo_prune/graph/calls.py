"""What is known of a call of PyTorch besides its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Request:
    """What a Python call asked for that the operators which it runs do not show.

    Attributes:
        parts: It asked for a number of parts, whatever their sizes.
        sizes: The sizes or bounds that it gave, in order, see :class:`yolo_prune.graph.sizes.Size`.
    """

    parts: bool = False
    sizes: tuple[Any, ...] = ()


@cache
def is_pointwise(namespace: str, name: str) -> bool:
    """Tell whether PyTorch tags any form of an operator as elementwise: it forgets some that work in place."""
    packet = getattr(getattr(torch.ops, namespace), name.rpartition("::")[2], None)
    overloads = (getattr(packet, overload) for overload in packet.overloads()) if packet else ()
    return any(torch.Tag.pointwise in operator.tags for operator in overloads)
