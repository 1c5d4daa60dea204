"""Which channels some weight reads: the others end where they are made, in a head or where no trace could follow."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from yolo_prune.graph.atoms import Axis, BoolArray, IntArray


def read_channels(axes: Iterable[Axis], channel_of: IntArray, contracted: BoolArray) -> BoolArray:
    """Return which channels a weight or a product of two activations sums over, shape (channels,)."""
    read: BoolArray = contracted.copy()
    for axis in axes:
        if axis.role in ("in", "grouped"):
            read[channel_of[axis.atoms]] = True
    return read


def last_weights(axes: Iterable[Axis], channel_of: IntArray, contracted: BoolArray) -> frozenset[str]:
    """Return the names of the weights that make channels which nothing reads: the last layer of each head."""
    axes = tuple(axes)
    read = read_channels(axes, channel_of, contracted)
    return frozenset(
        axis.name for axis in axes if axis.role == "out" and not read[channel_of[axis.atoms]].any()
    )


def unread_channels(
    axes: Iterable[Axis], channel_of: IntArray, contracted: BoolArray, returned: Iterable[IntArray]
) -> IntArray:
    """Return the channels that a weight makes and that neither a weight nor, as far as was seen, the caller reads.

    They are no waste: a result left by a way that no trace sees (an array of another library, a queue), or by one of
    which only a part was run.
    """
    axes = tuple(axes)
    seen = read_channels(axes, channel_of, contracted)
    for atoms in returned:
        seen[channel_of[atoms]] = True
    made = np.zeros_like(seen)
    for axis in axes:
        if axis.role == "out":
            made[channel_of[axis.atoms]] = True
    return np.flatnonzero(made & ~seen)
