"""What stays whole though nothing freezes it by itself: single channels, and parts tied in number to what is frozen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolo_prune.graph.atoms import BoolArray, IntArray

TIED = "keeps as many channels as a part that "


def hold_(
    cells: Sequence[IntArray], ties: Sequence[Sequence[int]], frozen: BoolArray, reasons: dict[int, str]
) -> None:
    """Freeze, in place, every set of channels of which none can go, with the reason.

    Args:
        cells: Channel ids of every group.
        ties: Indices of the groups that must keep equally many channels.
        frozen: Per channel: must stay.
        reasons: Per frozen channel, one reason.
    """
    for tie in ties:
        members = [cells[index] for index in tie]
        held = next((cell for cell in members if frozen[cell].all()), None)
        single = next((cell for cell in members if len(cell) == 1), None)
        if held is None and single is None:
            continue
        why = (
            "is one channel, or several that only go together"
            if held is None
            else reasons.get(int(held[0]), "")
        )
        if held is None and single is not None:
            held = single
            _freeze(single, why, frozen, reasons)
        for cell in members:
            if cell is not held:
                _freeze(cell, TIED + why.removeprefix(TIED), frozen, reasons)


def _freeze(cell: IntArray, reason: str, frozen: BoolArray, reasons: dict[int, str]) -> None:
    frozen[cell] = True
    for channel in np.asarray(cell).tolist():
        reasons.setdefault(channel, reason)
