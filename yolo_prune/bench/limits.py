"""Whether a measured time is on one side of a limit: intervals that know of noise, looked at several times.

NumPy alone; nothing here reads a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_prune.bench.clock import FIELDS, paired_ratio

CONFIDENCE = 0.95
LOOK_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the rounds after which the intervals are looked at; measuring ends when every limit is decided."""
LOOK_CONFIDENCE = 1 - (1 - CONFIDENCE) / len(LOOK_SHARES)
"""Of each look (Bonferroni), so that all of them together are wrong in at most 5 % of the checks."""
MET, MISSED, UNDECIDED = "met", "missed", "undecided"
FPS, LATENCY, SPEEDUP = "fps", "latency_ms", "speedup"
_FEWEST_STEPS = 8  # of so many the smallest and the largest bound the median at 99 %
_BLOCKS, _FEWEST_BLOCKS, _RESAMPLES, _CELLS = 20, 5, 1000, 2_000_000
_LATENCY = FIELDS.index("latency_ms")

Samples = Mapping[str, NDArray[np.float64]]
"""Steps in ms by candidate, each [rounds, timed, len(FIELDS)]."""


@dataclass(frozen=True)
class Bounds:
    """A measured value and the interval that it lies in; bounds that too few steps say nothing of are infinite."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Limit:
    """What a model must reach.

    Attributes:
        kind: ``FPS`` (images per second at the median latency), ``LATENCY`` (a percentile, in ms) or ``SPEEDUP``
            (times faster than the base, all phases).
        value: The least FPS or speed-up, or the largest latency, that is enough.
        candidate: Name of the model.
        percentile: Of the latency, in (0, 100).
        base: Name of the model that a speed-up is over.
        batch: Images per step.
    """

    kind: str
    value: float
    candidate: str
    percentile: float = 50.0
    base: str = ""
    batch: int = 1

    def bounds(self, samples: Samples, confidence: float = LOOK_CONFIDENCE) -> Bounds:
        """Return what was measured, in the unit of the limit."""
        if self.kind == SPEEDUP:
            base, own = (samples[name][..., _LATENCY] for name in (self.base, self.candidate))
            ratio = paired_ratio(base, own, confidence)
            return Bounds(ratio.value, ratio.low, ratio.high)
        found = percentile_bounds(samples[self.candidate][..., _LATENCY], self.percentile, confidence)
        if self.kind == LATENCY:
            return found
        per_second = 1e3 * self.batch
        low = per_second / found.high if math.isfinite(found.high) else 0.0
        high = per_second / found.low if found.low > 0 else math.inf
        return Bounds(per_second / found.value, low, high)

    def verdict(self, bounds: Bounds) -> str:
        """Return ``MET`` or ``MISSED`` where the whole interval is on one side of the limit, else ``UNDECIDED``."""
        better = -1.0 if self.kind == LATENCY else 1.0
        sides = [better * (edge - self.value) for edge in (bounds.low, bounds.high)]
        if min(sides) >= 0:
            return MET
        return MISSED if max(sides) < 0 else UNDECIDED


def look_after(rounds: int) -> tuple[int, ...]:
    """Return after how many of the rounds the intervals are looked at.

    Example:
        >>> look_after(100)
        (7, 13, 25, 50, 100)
    """
    return tuple(sorted({math.ceil(rounds * share) for share in LOOK_SHARES}))


def all_decided(limits: tuple[Limit, ...], samples: Samples) -> bool:
    """Tell whether more steps can change no verdict that matters; without a limit nothing is ever decided."""
    return bool(limits) and all(each.verdict(each.bounds(samples)) != UNDECIDED for each in limits)


def percentile_bounds(
    latency_ms: NDArray[np.float64], percentile: float, confidence: float = LOOK_CONFIDENCE
) -> Bounds:
    """Return a percentile of all steps and an interval of it.

    The interval holds two: that of the order statistics, exact for steps that do not depend on each other (the k-th
    smallest is below the percentile as often as fewer than k of n throws succeed), for as many steps as the n measured
    ones are worth: n over ``1 + 2 * sum of autocorrelations`` of being below the percentile (Geyer, 1992, initial
    positive sequence). And the percentile bootstrap over at most 20 blocks of rounds. Both see what lasts for several
    steps: other programs, heat.

    Args:
        latency_ms: Steps in ms, [rounds, timed].
        percentile: In (0, 100).
        confidence: Coverage of the interval, in (0, 1).
    """
    steps, value = np.sort(latency_ms, axis=None), float(np.percentile(latency_ms, percentile))
    worth = max(int(len(steps) / _repetition(latency_ms.ravel() <= value)), min(len(steps), _FEWEST_STEPS))
    first, last = _ranks(worth, percentile / 100, confidence)
    each = len(steps) / worth
    low = float(steps[math.floor(first * each)]) if first is not None else 0.0
    high = float(steps[min(math.ceil((last + 1) * each), len(steps)) - 1]) if last is not None else math.inf
    below, above = _block_bounds(latency_ms, percentile, confidence)
    return Bounds(value, min(low, below), max(high, above))


def _repetition(below: NDArray[np.bool_]) -> float:
    """Return how many steps in a row say what one that does not depend on the others says, at least 1."""
    centred = below - below.mean()
    variance = float(centred @ centred)
    total = 1.0
    for lag in range(1, len(centred) - 1, 2) if variance > 0 else ():
        pair = sum(float(centred[:-each] @ centred[each:]) for each in (lag, lag + 1)) / variance
        if pair <= 0:
            break
        total += 2 * pair
    return max(total, 1.0)


def _ranks(count: int, share: float, confidence: float) -> tuple[int | None, int | None]:
    """Return the indices of the sorted steps that bound a quantile; None where there are too few steps."""
    successes = np.arange(count + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    log_ways = factorials[count] - factorials - factorials[::-1]
    chance = np.exp(log_ways + successes * math.log(share) + (count - successes) * math.log1p(-share))
    at_most = np.cumsum(chance)  # at_most[k]: at most k of the steps are below the quantile
    tail = (1 - confidence) / 2
    below = np.flatnonzero(at_most <= tail)
    above = np.flatnonzero(1 - at_most <= tail)
    first = int(below[-1]) if len(below) else None
    last = int(above[0]) if len(above) and above[0] < count else None
    return first, last


def _block_bounds(
    latency_ms: NDArray[np.float64], percentile: float, confidence: float
) -> tuple[float, float]:
    """Return the interval of the bootstrap over blocks of rounds; it is endless where there are too few rounds."""
    rounds, timed = latency_ms.shape
    if rounds < _FEWEST_BLOCKS:
        return 0.0, math.inf
    size = math.ceil(rounds / _BLOCKS)
    blocks = latency_ms[: rounds // size * size].reshape(-1, size * timed)
    random = np.random.default_rng(0)
    drawn: list[NDArray[np.float64]] = []
    at_once = max(_CELLS // blocks.size, 1)
    for start in range(0, _RESAMPLES, at_once):
        count = min(at_once, _RESAMPLES - start)
        chosen = blocks[random.integers(len(blocks), size=(count, len(blocks)))]
        drawn.append(np.percentile(chosen.reshape(count, -1), percentile, axis=1))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(drawn), [tail, 100 - tail])
    return float(low), float(high)
