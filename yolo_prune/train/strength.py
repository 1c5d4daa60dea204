"""Find lambda while training: as strong as the accuracy allows, as weak as the scales need."""

from __future__ import annotations

import math
from dataclasses import dataclass

_FIRST_SHARE, _FIRST_EPOCH, _MOST_EPOCH = 0.25, 0.005, 0.02
_MOST_NORMALISED = 0.5
_RAISE, _LOWER, _RANGE, _REST = 1.5, 0.25, 64.0, 2


def first_strength(median: float, reach: float, epochs: float) -> float:
    """Return a careful lambda to begin with.

    It would shrink the median scale by a quarter over all sparse epochs, but by no more than 0.5 % in each.

    Args:
        median: Median magnitude of the scales.
        reach: Sum over all sparse steps of the threshold that lambda = 1 would give.
        epochs: Number of sparse epochs.

    Returns:
        lambda; 0 when nothing can be reached.
    """
    return median * min(_FIRST_SHARE, _FIRST_EPOCH * epochs) / reach if reach > 0 else 0.0


def most_strength(median: float, reach: float, epochs: float, *, normalised: bool) -> float:
    """Return the largest lambda that the search may take: 2 % of the median scale in an epoch.

    Faster than that, all scales shrink together, useful ones as well, and the accuracy is gone within an epoch.

    Args:
        median: Median magnitude of the scales.
        reach: As for :func:`first_strength`.
        epochs: Number of sparse epochs.
        normalised: The optimizer normalises its steps (Adam): above 0.5 no gradient could hold a scale for long.
    """
    most = median * _MOST_EPOCH * epochs / reach if reach > 0 else 0.0
    return min(most, _MOST_NORMALISED) if normalised else most


@dataclass
class StrengthSearch:
    """A lambda that is judged after every validated epoch.

    The rule, in this order:

    1. the fitness is more than ``limit`` below the best one seen so far: lambda is quartered, and rests for two epochs;
    2. fewer scales are near zero than the schedule wants (``wanted`` at the end, in proportion before), and the
       fitness is within half the limit: lambda grows by half;
    3. else it stays.

    It never leaves the range from 1/64 of the first value to ``most``.

    Attributes:
        strength: lambda now.
        limit: Allowed drop of the fitness (for detection the host's AP, in [0, 1]).
        wanted: Share of scales that shall be near zero at the end.
        start: The first value; None: ``strength``.
        best: Highest fitness seen.
        most: Largest value allowed; None: 64 times the first.
        rest: Epochs until it may grow again.
    """

    strength: float
    limit: float
    wanted: float
    start: float | None = None
    best: float | None = None
    most: float | None = None
    rest: int = 0

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
        most = self.most if self.most is not None else start * _RANGE
        drop = 0.0
        if fitness is not None and math.isfinite(fitness):
            drop = (self.best if self.best is not None else fitness) - fitness
            self.best = max(fitness, self.best if self.best is not None else fitness)
        before, self.rest = self.strength, max(self.rest - 1, 0)
        if drop > self.limit:
            self.strength, self.rest = max(before * _LOWER, start / _RANGE), _REST
            reason = f"the fitness fell by {drop:.3f}, more than {self.limit:g}"
        elif below < self.wanted * done and drop <= self.limit / 2 and not self.rest:
            self.strength = max(min(before * _RAISE, most), before)
            reason = (
                f"{100 * below:.1f} % of the scales are near zero, {100 * self.wanted * done:.1f} % are due"
            )
        else:
            return ""
        return f"lambda {before:.3g} -> {self.strength:.3g}: {reason}" if self.strength != before else ""
