"""The one timing protocol: warm up, then alternate the candidates so that drift hits all of them alike.

A *step* is one batch through preprocessing, network and postprocessing, and through reading and decoding before that
where images come from a stream. A *turn* is a few steps of one
candidate in a row, the first of them untimed where steps are short, because the others have just used the
caches. A *round* is one turn of every candidate. Ratios are taken inside a round, where the machine was the
same for all. This file needs numpy only and reads no clock that it was not given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_prune.runtimes.runtime import Runtime
from yolo_prune.runtimes.sources import Source

PERCENTILES = (10, 50, 90, 99)
FIELDS = ("latency_ms", "pre_ms", "net_ms", "post_ms", "cpu_ms", "read_ms")
WARM_UP_STEPS = 3
WARM_UP_SECONDS = 0.3
MIN_ROUNDS, MAX_ROUNDS = 10, 2000
SLOW_STEP_SECONDS = 0.2

Clock = Callable[[], float]


@dataclass(frozen=True)
class Step:
    """One batch: wall time in all and per phase, and the CPU time of all threads of the process, in ms.

    ``read_ms`` is reading and decoding of the images, where they come from a stream.
    """

    latency_ms: float
    pre_ms: float
    net_ms: float
    post_ms: float
    cpu_ms: float
    read_ms: float = 0.0


Stepper = Callable[[int], Step]
"""Runs step number k of a candidate; every candidate sees the same images at the same k."""


@dataclass(frozen=True)
class Schedule:
    """How often to measure: ``rounds`` turns of each candidate, of ``untimed`` + ``timed`` steps."""

    rounds: int
    timed: int
    untimed: int


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the base a candidate is, with a bootstrap interval; above 1 is faster."""

    value: float
    low: float
    high: float
    confidence: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def make_stepper(runtime: Runtime, source: Source, batch: int, clock: Clock, cpu_clock: Clock) -> Stepper:
    """Return a function that runs one batch and times its phases.

    Args:
        runtime: The loaded model.
        source: Gives the images: step k uses number k * batch and the following ones.
        batch: Images per step.
        clock: Wall clock in seconds.
        cpu_clock: CPU time of the process in seconds.

    Returns:
        The stepper.
    """

    def step(index: int) -> Step:
        held = None if source.timed else source.take(index * batch, batch)
        cpu_start, start = cpu_clock(), clock()
        chosen = source.take(index * batch, batch) if held is None else held
        read = start if held is not None else clock()
        inputs = runtime.preprocess(chosen)
        prepared = clock()
        output, device_ms = runtime.infer(inputs)
        inferred = clock()
        runtime.postprocess(output)
        end, cpu_end = clock(), cpu_clock()
        return Step(
            latency_ms=1e3 * (end - start),
            pre_ms=1e3 * (prepared - read),
            net_ms=1e3 * (inferred - prepared) if device_ms is None else device_ms,
            post_ms=1e3 * (end - inferred),
            cpu_ms=1e3 * (cpu_end - cpu_start),
            read_ms=1e3 * (read - start),
        )

    return step


def warm_up(stepper: Stepper, clock: Clock) -> float:
    """Run a candidate until it has settled and return what one step then takes.

    Args:
        stepper: The candidate.
        clock: Wall clock in seconds.

    Returns:
        Median time of the second half of the warm-up steps, in seconds.
    """
    start = clock()
    seconds: list[float] = []
    while len(seconds) < WARM_UP_STEPS or clock() - start < WARM_UP_SECONDS:
        before = clock()
        stepper(len(seconds))
        seconds.append(clock() - before)
    return float(np.median(seconds[len(seconds) // 2 :]))


def plan_schedule(
    step_seconds: Sequence[float], seconds: float, rounds: int | None = None, *, fill: bool = False
) -> Schedule:
    """Choose rounds and steps per turn that fit a time budget.

    Args:
        step_seconds: What one step of each candidate takes, in seconds.
        seconds: Budget per candidate, in seconds. At least ``MIN_ROUNDS`` rounds are run whatever they take.
        rounds: Number of rounds, overriding the budget.
        fill: Where the most rounds take less than the budget, fill it with untimed steps: the machine works all of it.

    Returns:
        The schedule; slow candidates run one step per turn, the others one untimed step and three timed ones.
    """
    slow = max(step_seconds) > SLOW_STEP_SECONDS
    timed, untimed = (1, 0) if slow else (3, 1)
    if rounds is None:
        per_round = max(sum(step_seconds) * (timed + untimed), 1e-9)
        rounds = math.ceil(seconds * len(step_seconds) / per_round)
        if fill and rounds > MAX_ROUNDS:
            untimed = math.ceil(rounds / MAX_ROUNDS * (timed + untimed)) - timed
        rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
    return Schedule(rounds, timed, untimed)


def alternate(names: Sequence[str], rounds: int) -> Iterable[tuple[str, ...]]:
    """Yield the order of the candidates in each round, rotated by one each time: nobody is always first.

    Example:
        >>> list(alternate(["a", "b"], 3))
        [('a', 'b'), ('b', 'a'), ('a', 'b')]
    """
    for index in range(rounds):
        shift = index % len(names)
        yield (*names[shift:], *names[:shift])


def measure(
    steppers: Mapping[str, Stepper], schedule: Schedule, orders: Iterable[Sequence[str]] | None = None
) -> Iterable[dict[str, NDArray[np.float64]]]:
    """Run the rounds one after the other.

    Args:
        steppers: The candidates by name, already warm.
        schedule: How many rounds and steps.
        orders: Order of the candidates in each round; ``alternate`` unless given.

    Yields:
        After each round, the timed steps of every candidate: float64 [timed, len(FIELDS)], in ms.
    """
    chosen = alternate(list(steppers), schedule.rounds) if orders is None else orders
    for index, order in enumerate(chosen):
        first = index * (schedule.untimed + schedule.timed)
        done: dict[str, NDArray[np.float64]] = {}
        for name in order:
            for step in range(schedule.untimed):
                steppers[name](first + step)
            timed = range(first + schedule.untimed, first + schedule.untimed + schedule.timed)
            done[name] = as_array([steppers[name](step) for step in timed])
        yield done


def as_array(steps: Sequence[Step]) -> NDArray[np.float64]:
    """Return steps as float64 [len(steps), len(FIELDS)], in ms."""
    return np.array([[getattr(step, field) for field in FIELDS] for step in steps], dtype=np.float64)


def percentiles(latency_ms: NDArray[np.float64]) -> dict[str, float]:
    """Return p10, p50, p90 and p99 of all steps, in the unit of the input."""
    values = np.percentile(latency_ms, PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, values, strict=True)}


def frames_per_second(median_ms: float, batch: int) -> float:
    """Return images per second from the median time of one batch in ms."""
    return 1e3 * batch / median_ms


def midmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the middle half along the last axis: a quarter is cut off at each end."""
    count = values.shape[-1]
    middle = np.sort(values, axis=-1)[..., count // 4 : count - count // 4]
    means: NDArray[np.float64] = middle.mean(axis=-1)
    return means


def paired_ratio(
    base_ms: NDArray[np.float64],
    other_ms: NDArray[np.float64],
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Ratio:
    """Compare two candidates round by round: r = exp(midmean over rounds of log(base / other)).

    Each round contributes the ratio of its two turn medians, so drift that lasts longer than a round cancels.
    The midmean forgets disturbed rounds like a median, and averages over the places that rotation gives a
    candidate, between which a median would jump. The interval is the percentile bootstrap (Efron, 1979):
    rounds are drawn with replacement.

    Args:
        base_ms: Times of the base, [rounds, timed], in ms.
        other_ms: Times of the candidate in the same rounds, [rounds, timed], in ms.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap, so that a report can be reproduced from its samples.

    Returns:
        The ratio; above 1 means that the candidate is faster.
    """
    logs = np.log(np.median(base_ms, axis=1)) - np.log(np.median(other_ms, axis=1))
    draws = np.random.default_rng(seed).integers(len(logs), size=(resamples, len(logs)))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(midmean(logs[draws]), [tail, 100 - tail])
    return Ratio(
        value=float(np.exp(midmean(logs))),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        confidence=confidence,
        rounds=len(logs),
    )
