"""Sizes that code asked an activation for: they tell a width that follows the channels from a number in the code."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from yolo_prune.graph.labels import rows_along


class Size(int):
    """A size of an activation along its channels, or a share of it: ``x.shape[1] // 2`` is one too.

    Whatever is not such a share (a sum with a number, a float) is a plain number again.
    """

    label: Tensor
    dim: int
    share: Fraction

    @classmethod
    def of(cls, label: Tensor, dim: int, value: int, share: Fraction = Fraction(1)) -> Size:
        """Return the ``share`` of the width that ``label`` has along ``dim``; its value is ``value``."""
        size = cls(value)
        size.label, size.dim, size.share = label, dim, share
        return size

    def scaled(self, factor: Fraction) -> int:
        """Return a share of this size; a plain number where it is none of an equal part."""
        value = int(self) * factor
        if value.denominator != 1 or value <= 0:
            return int(value)
        return Size.of(self.label, self.dim, int(value), self.share * factor)

    def __floordiv__(self, other: Any) -> Any:
        plain = int(self) // other
        by_number = type(other) is int and other > 0 and int(self) % other == 0
        return self.scaled(Fraction(1, other)) if by_number else plain

    def __mul__(self, other: Any) -> Any:
        return self.scaled(Fraction(other)) if type(other) is int and other > 0 else int(self) * other

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> Any:
        same = isinstance(other, Size) and other.label is self.label and other.dim == self.dim
        return self.scaled(1 - other.share / self.share) if same else int(self) - other


def sized(label: Tensor, shape: torch.Size) -> torch.Size:
    """Return the shape of an activation with its sizes along channels marked."""
    marked = [
        Size.of(label, dim, size) if size > 1 and label.stride(dim) else size
        for dim, size in enumerate(shape)
    ]
    return torch.Size(marked)


def is_share_of(size: Any, channels: Tensor) -> bool:
    """Tell whether a number is a share of the width of exactly these channels."""
    if not isinstance(size, Size) or size.label.shape[size.dim] != len(channels):
        return False
    return any(torch.equal(row, channels) for row in rows_along(size.label, size.dim))


def share_of(sizes: Sequence[Any], number: int, channels: Tensor) -> Fraction | None:
    """Return the share that ``number`` is of the channels, if code gave it as one, and as nothing else."""
    given = [size for size in sizes if size == number]
    if not given or not all(is_share_of(size, channels) for size in given):
        return None
    return Fraction(given[0].share)
