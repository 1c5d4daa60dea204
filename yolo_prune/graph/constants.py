"""Which tensors of a forward pass follow from numbers in its code alone: no weight and no input goes into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_FROM_PYTHON = torch.ops.aten.lift_fresh.default
"""What ``torch.tensor`` calls. Of more than a number the values may be NumPy's, who took them from other tensors."""


class Constants:
    """Told every operator of a run, knows the tensors that no weight and no input reaches.

    Tensors are known by their storage, so that a view of a constant is one, and one that something else was written
    into is none any more.
    """

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}  # held, so that no storage's place is used twice

    def follow(self, func: Any, read: Sequence[Tensor], results: Iterable[Any]) -> bool:
        """Note the results of an operator.

        Args:
            func: The operator.
            read: The tensors whose values it looks at; none for one that fills a tensor by numbers.
            results: What it returned.

        Returns:
            Whether they are constants. Random numbers are none.
        """
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        constant = not drawn and all(
            tensor.layout is torch.strided and storage_of(tensor) in self._held for tensor in read
        )
        constant |= func is _FROM_PYTHON and read[0].dim() == 0
        for result in results:
            if not isinstance(result, Tensor) or result.layout is not torch.strided:
                continue
            if constant:
                self._held.setdefault(storage_of(result), result)
            else:
                self._held.pop(storage_of(result), None)
        return constant


def storage_of(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from others as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
