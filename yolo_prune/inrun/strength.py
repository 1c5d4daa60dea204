"""Find lambda while training: as strong as the accuracy allows, as weak as the scales need."""

from __future__ import annotations

import math
from dataclasses import dataclass

_FIRST_SHARE = 0.25
_RAISE, _LOWER, _RANGE = 1.5, 0.5, 64.0


def first_strength(median: float, reach: float) -> float:
    """Return a careful lambda to begin with: all its steps together would shrink the median scale by a quarter.

    Args:
        median: Median magnitude of the scales.
        reach: Sum over all sparse steps of the threshold that lambda = 1 would give.

    Returns:
        lambda; 0 when nothing can be reached.
    """
    return _FIRST_SHARE * median / reach if reach > 0 else 0.0


@dataclass
class StrengthSearch:
    """A lambda that is judged after every validated epoch.

    The rule, in this order:

    1. the fitness is more than ``limit`` below the best one seen so far: lambda is halved;
    2. fewer scales are near zero than the schedule wants (``wanted`` at the end, in proportion before): lambda
       grows by half;
    3. else it stays.

    It never leaves the range of 1/64 to 64 times the first value.

    Attributes:
        strength: lambda now.
        limit: Allowed drop of the fitness (for detection the host's AP, in [0, 1]).
        wanted: Share of scales that shall be near zero at the end.
        start: The first value; None: ``strength``.
        best: Highest fitness seen.
    """

    strength: float
    limit: float
    wanted: float
    start: float | None = None
    best: float | None = None

    def update(self, fitness: float | None, below: float, done: float) -> str:
        """Judge an epoch and set :attr:`strength`.

        Args:
            fitness: Of the epoch, None or NaN when it is not known.
            below: Share of scales near zero.
            done: Share of the sparse epochs that are over, in [0, 1].

        Returns:
            What was decided and why, in a few words; empty when lambda stays.
        """
        start = self.start = self.start if self.start is not None else self.strength
        drop = 0.0
        if fitness is not None and math.isfinite(fitness):
            drop = (self.best if self.best is not None else fitness) - fitness
            self.best = max(fitness, self.best if self.best is not None else fitness)
        before = self.strength
        if drop > self.limit:
            self.strength = max(before * _LOWER, start / _RANGE)
            reason = f"the fitness fell by {drop:.3f}, more than {self.limit:g}"
        elif below < self.wanted * done:
            self.strength = min(before * _RAISE, start * _RANGE)
            reason = (
                f"{100 * below:.1f} % of the scales are near zero, {100 * self.wanted * done:.1f} % are due"
            )
        else:
            return ""
        return f"lambda {before:.3g} -> {self.strength:.3g}: {reason}" if self.strength != before else ""
