"""What checkpoints hold of a pruned training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

PRUNING = "pruning"


class WithPruning(Mapping[str, Any]):
    """Data of the user's that a checkpoint holds, and what the hook is at the moment when it is written."""

    def __init__(self, given: Mapping[str, Any] | None, state: Callable[[], dict[str, Any]]) -> None:
        """Stand in for ``given``.

        Args:
            given: What the checkpoint was to hold.
            state: Called when it is written.
        """
        self._given = given or {}
        self._state = state

    def __getitem__(self, key: str) -> Any:
        return self._state() if key == PRUNING else self._given[key]

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in self._given if key != PRUNING)
        yield PRUNING

    def __len__(self) -> int:
        return len(list(iter(self)))


def weigh(model: nn.Module) -> float:
    """Return the magnitudes of all parameters added up: whether weights are the ones that belong to a state."""
    return float(sum(parameter.detach().double().abs().sum().cpu() for parameter in model.parameters()))
