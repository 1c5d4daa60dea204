"""Meet a budget of time: what is predicted aims, what is measured decides.

The prediction is right for the parent. For a cut model it saves more or less than what is then measured; from there on
the way is aimed by that ratio. At the end the last step is made once more, or a small one after it, until the model
that was measured is as fast as was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from yolo_prune.progress import LOGGER
from yolo_prune.words import counted

TOLERANCE = 0.03
_CLOSE = 0.02  # what is aimed at: the report measures once more
_TRIES = 5
_MIN_TURN, _MAX_TURN = 0.25, 4.0  # of what is saved: beyond that a measurement is a mistake
_State = TypeVar("_State")


def waypoints(target: float, steps: int) -> list[float]:
    """Return the budgets of the steps, as fractions of the parent: evenly spaced from 1 (left out) to ``target``."""
    return [float(value) for value in np.linspace(1.0, target, steps + 1)[1:]]


@dataclass(frozen=True)
class Timed:
    """A measured latency in ms with its interval, brought to the time that the parent took at first."""

    ms: float
    low: float
    high: float


@dataclass(frozen=True)
class Reached:
    """How a budget of time was met.

    Attributes:
        target_ms: What was asked for.
        parent_ms: What the parent took.
        predicted_ms: What the model of latency says of the model at the end, as it was before it was corrected.
        measured: What was measured of the model at the end.
        looks: What was predicted and measured on the way.
        missed: Why it is not within 3 % of the target; empty where it is.
    """

    target_ms: float
    parent_ms: float
    predicted_ms: float
    measured: Timed
    looks: tuple[tuple[float, float], ...] = ()
    missed: str = ""

    @property
    def speedup(self) -> float:
        """How many times as fast as the parent."""
        return self.parent_ms / self.measured.ms

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "looks": [list(look) for look in self.looks]}


def how_it_was_met(
    reached: Reached | None, *, target_ms: float, parent_ms: float, predicted_ms: float
) -> dict[str, Any]:
    """Return what a plan keeps of a budget of time: how closely it was met, else what is predicted."""
    if reached is not None:
        return {**reached.to_dict(), "speedup": reached.speedup}
    asked = {"target_ms": target_ms, "parent_ms": parent_ms, "predicted_ms": predicted_ms}
    return {**asked, "measured": None, "speedup": None}


def target_sentence(met: Mapping[str, Any] | None) -> str | None:
    """Say how a budget of time was met, None of another budget."""
    if met is None:
        return None
    measured = met["measured"]
    if measured is None:
        return (
            f"target {met['target_ms']:.4g} ms an image on {met['runtime']}, {met['device_name']}, {met['threads']} "
            f"threads, by the table {met['table']} (the parent took {met['parent_ms']:.4g}); predicted "
            f"{met['predicted_ms']:.4g}, not measured"
        )
    threads = counted(met["threads"], "thread")
    return (
        f"target {met['target_ms']:.4g} ms an image on {met['runtime']}, {met['device']}, {threads} (the parent took "
        f"{met['parent_ms']:.4g}); predicted {met['predicted_ms']:.4g}, reached {measured['ms']:.4g} "
        f"[{measured['low']:.4g}, {measured['high']:.4g}], {met['speedup']:.2f} times as fast"
    )


@dataclass
class Aim(Generic[_State]):
    """Where to aim, so that what is measured meets a limit; without anything that measures, the prediction holds.

    Attributes:
        whole: What the parent takes, measured and predicted.
        limit: What was asked for, in ms.
        measure: Measures a state.
        amount: What is predicted of a state.
        looks: What was predicted and measured so far.
        why: What is known to be in the way.
    """

    whole: float
    limit: float
    measure: Callable[[_State], Timed] | None
    amount: Callable[[_State], float]
    looks: list[tuple[float, float]] = field(default_factory=list)
    why: str = ""

    def at(self, ms: float) -> float:
        """Return the prediction that stands for a measured time."""
        if not self.looks:
            return ms
        predicted, measured = self.looks[-1]
        turn = (self.whole - predicted) / max(self.whole - measured, 1e-9)
        return self.whole - (self.whole - ms) * min(max(turn, _MIN_TURN), _MAX_TURN)

    def look(self, state: _State) -> Timed | None:
        """Measure a model, and aim by that from now on."""
        if self.measure is None:
            return None
        timed, predicted = self.measure(state), self.amount(state)
        self.looks.append((predicted, timed.ms))
        LOGGER.info(
            "measured %.2f ms [%.2f, %.2f], %.2fx; predicted %.2f ms; target %.2f ms",
            *(timed.ms, timed.low, timed.high, self.whole / timed.ms, predicted, self.limit),
        )
        return timed

    def settle(
        self, way: Sequence[_State], advance: Callable[[_State, float], _State]
    ) -> tuple[_State, Reached | None]:
        """Correct the last model of a way until it is as fast as was asked for.

        Args:
            way: Models on the way, the parent first, the last one at its end.
            advance: Cuts a model to a predicted time.

        Returns:
            The model that came closest, and how close; None where nothing measures.
        """
        path, best = list(way), way[-1]
        closest = self.look(best)
        if closest is None:
            return best, None
        timed = closest
        for _ in range(_TRIES):
            if self._off(timed) <= _CLOSE:
                break
            wanted = self.at(self.limit)
            while len(path) > 1 and self.amount(path[-1]) <= wanted:
                path.pop()
            state = advance(path[-1], wanted)
            if self.amount(state) in [predicted for predicted, _ in self.looks]:
                self.why = self.why or "no step of allowed widths comes closer."
                break
            path.append(state)
            found = self.look(state)
            timed = found or timed
            if self._off(timed) < self._off(closest):
                best, closest = state, timed
        missed = "" if self._off(closest) <= TOLERANCE else self._missed(closest)
        if missed:
            LOGGER.warning("%s", missed)
        looks = tuple(self.looks)
        return best, Reached(self.limit, self.whole, self.amount(best), closest, looks, missed)

    def _off(self, timed: Timed) -> float:
        return abs(timed.ms / self.limit - 1.0)

    def _missed(self, timed: Timed) -> str:
        side = "above" if timed.ms > self.limit else "below"
        return (
            f"{timed.ms:.3g} ms ({self.whole / timed.ms:.2f}x) were reached, {100 * self._off(timed):.1f} % {side} the "
            f"target of {self.limit:.3g} ms: {self.why or f'{_TRIES} corrections came no closer.'}"
        )
