"""What checkpoints hold of a pruned training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from yolo_prune.errors import ConfigError
from yolo_prune.progress import LOGGER

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


def check_weights(model: nn.Module, saved: float, checkpointer: Any) -> None:
    """See that a model which was cut as a saved one has its weights, too.

    Args:
        model: The cut model.
        saved: What :func:`weigh` said of the saved one.
        checkpointer: detectron2's, which loads weights before it loads hooks, when they did not fit: its last
            checkpoint is loaded once more. None: there is none.

    Raises:
        ConfigError: The weights are other ones.
    """
    now = weigh(model)
    if not _same(now, saved) and checkpointer is not None and checkpointer.has_checkpoint():
        LOGGER.info("the model is cut as the checkpoint's was: its weights are loaded once more")
        checkpointer.load(checkpointer.get_checkpoint_file(), checkpointables=[])
        now = weigh(model)
    if not _same(now, saved):
        raise ConfigError(
            f"the weights are not those of the checkpoint: their magnitudes add up to {now:.6g}, the saved ones to "
            f"{saved:.6g}. Load the hook's state first, and then the weights."
        )


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-4)
