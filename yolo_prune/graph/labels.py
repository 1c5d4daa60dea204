"""Label tensors: per element of an activation, the atom it came from (0: none).

Labels are kept *compact*: a dimension along which nothing changes has stride 0, so that the work does not grow with
the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def compact(label: Tensor) -> Tensor:
    """Return the label with every dimension of stride 0 narrowed to one element."""
    for dim, (size, stride) in enumerate(zip(label.shape, label.stride(), strict=True)):
        if size > 1 and stride == 0:
            label = label.narrow(dim, 0, 1)
    return label


def varying_dims(label: Tensor) -> list[int]:
    """Return the dimensions along which the channel changes."""
    label = compact(label)
    return [
        dim
        for dim, size in enumerate(label.shape)
        if size > 1 and not torch.equal(label.narrow(dim, 1, size - 1), label.narrow(dim, 0, size - 1))
    ]


def join(labels: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate labels and keep the dimensions compact that are so in all of them."""
    dim = dim % labels[0].dim()
    fixed = [
        other
        for other in range(labels[0].dim())
        if other != dim and all(label.stride(other) == 0 or label.shape[other] == 1 for label in labels)
    ]
    shape = list(labels[0].shape)
    shape[dim] = sum(label.shape[dim] for label in labels)
    for other in fixed:
        labels = [label.narrow(other, 0, 1) if label.shape[other] else label for label in labels]
    return torch.cat(list(labels), dim).expand(shape)


def per_channel(atoms: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """Spread one atom per index of ``dim`` over a shape."""
    return atoms.reshape([-1 if index == dim else 1 for index in range(len(shape))]).expand(shape)


def rows_along(label: Tensor, dim: int) -> list[Tensor]:
    """Take a label apart along every other dimension in which channels vary (attention heads).

    Returns:
        One vector a row, each of shape (label.shape[dim],).
    """
    rows = [label]
    for other in varying_dims(label):
        if other != dim:
            rows = [row.narrow(other, index, 1) for row in rows for index in range(row.shape[other])]
    return [row.movedim(dim, 0).reshape(row.shape[dim], -1)[:, 0] for row in map(compact, rows)]


def reshape_blocks(before: torch.Size, after: torch.Size) -> list[tuple[list[int], list[int]]]:
    """Match dimensions of two shapes in the smallest blocks of equal product, leaving out dimensions of size 1."""
    left = [(dim, size) for dim, size in enumerate(before) if size != 1]
    right = [(dim, size) for dim, size in enumerate(after) if size != 1]
    blocks = []
    while left and right:
        sources, targets = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(s for _, s in sources)) != (b := math.prod(s for _, s in targets)):
            (sources if a < b else targets).append((left if a < b else right).pop(0))
        blocks.append(([dim for dim, _ in sources], [dim for dim, _ in targets]))
    return blocks
