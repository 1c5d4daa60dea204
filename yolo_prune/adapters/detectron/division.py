"""A training that counts iterations, divided into equal parts: the epochs of a session."""

from __future__ import annotations

import math
from dataclasses import dataclass

from yolo_prune.errors import ConfigError
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.train.schedule import check_schedule


@dataclass(frozen=True)
class Division:
    """Which iterations make a part.

    Attributes:
        length: Iterations of the whole training.
        each: Iterations of a part; the last one may be shorter.
        parts: How many there are.
        prune_at: When to cut, as a share of the training or a word.
        cuts_after: Iterations after which it is cut.
    """

    length: int
    each: int
    parts: int
    prune_at: float | str
    cuts_after: tuple[int, ...]

    @staticmethod
    def of(length: int, parts: int, settings: InRunSettings) -> Division:
        """Divide a training.

        Args:
            length: Iterations.
            parts: How many parts there shall be; fewer where an iteration each is not enough.
            settings: When to cut; ``prune_at`` from 1 on is a number of iterations.

        Raises:
            ConfigError: Nothing is left after the last cut, or two cuts fall together.
        """
        prune_at = settings.moment
        if not isinstance(prune_at, str) and prune_at >= 1:
            if prune_at >= length:
                raise ConfigError(
                    f"prune_at={prune_at:g} leaves no iteration after the cut: the training has {length}."
                )
            prune_at = prune_at / length
        each = math.ceil(length / parts)
        total = math.ceil(length / each)
        before = check_schedule(prune_at, settings.cuts, total)
        return Division(length, each, total, prune_at, tuple(min(part * each, length) for part in before))

    def over(self, done: int) -> int:
        """Return how many parts are over after so many iterations."""
        return self.parts if done >= self.length else done // self.each
