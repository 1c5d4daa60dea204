"""What a pruned training says in its host's own log and storage."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from yolo_prune.adapters.detectron.parts import is_first
from yolo_prune.cut.record import PrunePlan
from yolo_prune.progress import LOGGER

_HOST = "detectron2"


class Journal:
    """Sends the messages of this package to where those of the training go, and numbers to its storage.

    detectron2 has a logger of its own, whose handlers get them too. mayaku prints, so they go to stdout where nobody
    has set up logging.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._handlers: list[logging.Handler] = []
        self._level = LOGGER.level
        self.numbers: dict[str, float] = {}

    def open(self) -> None:
        """Begin to pass messages on."""
        self._handlers = list(logging.getLogger(_HOST).handlers)
        if not self._handlers and not LOGGER.hasHandlers() and is_first():
            self._handlers = [logging.StreamHandler(sys.stdout)]
            self._handlers[0].setFormatter(logging.Formatter("[prune] %(message)s"))
        for handler in self._handlers:
            LOGGER.addHandler(handler)
        self._level = LOGGER.level
        if not LOGGER.isEnabledFor(logging.INFO):
            LOGGER.setLevel(logging.INFO)

    def close(self) -> None:
        """Leave the package's logger as it was."""
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
        self._handlers = []
        LOGGER.setLevel(self._level)

    def write(self) -> None:
        """Put the numbers into the storage of this iteration."""
        storage: Any = getattr(self._trainer, "storage", None)
        if isinstance(storage, dict):
            storage.update(self.numbers)
        elif hasattr(storage, "put_scalars"):
            storage.put_scalars(smoothing_hint=False, **self.numbers)

    def latest(self, name: str) -> tuple[float, int] | None:
        """Return a number of the storage that remembers iterations, and its iteration; None without one."""
        storage: Any = getattr(self._trainer, "storage", None)
        found = storage.latest().get(name) if hasattr(storage, "latest") else None
        return (float(found[0]), int(found[1])) if found is not None else None


def say_begin(budget: tuple[str, float], gmacs: float, params: int, cuts: Sequence[int]) -> None:
    """Say what will be cut, and when."""
    name, value = budget
    LOGGER.info(
        "pruning on the way to %s=%g, from %.4g GMACs and %s parameters, after iteration %s",
        *(name, value, gmacs, f"{params:,}"),
        " and ".join(map(str, cuts)),
    )


def say_frozen_norms(count: int, criterion: str) -> None:
    """Say what cannot be made sparse."""
    LOGGER.info(
        "%d BatchNorms are frozen: their scales are buffers, which are cut along and cannot be made sparse%s",
        count,
        ", and rank as they are (criterion=bn_scale)" if criterion == "bn_scale" else "",
    )


def say_cut(plan: PrunePlan, iteration: int) -> None:
    """Say what a cut left, and what its proof compared."""
    proof: Mapping[str, Any] = plan.equivalence or {}
    LOGGER.info(
        "cut after iteration %d: %.3f of the MACs stay (%.4g GMACs) and %s parameters; the proof compared %d tensors, "
        "whose largest difference is %.2g of %.2g (%s)",
        *(iteration, plan.kept_macs, plan.gmacs, f"{plan.params:,}"),
        *(proof.get("compared", 0), proof.get("max_difference", 0.0), proof.get("scale", 0.0)),
        proof.get("dtype", ""),
    )
    if plan.frozen:
        LOGGER.info(
            "what could not be cut: %s", "; ".join(f"{name} {why}" for name, why in plan.frozen.items())
        )
