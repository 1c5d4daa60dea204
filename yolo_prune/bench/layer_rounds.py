"""What the measuring process does with layers: all of them in turns with the whole network, so that drift hits both.

As many layers are open at once as memory and threads allow. What a layer took is scaled by what the whole network took
in the same rounds. With one thread on a CPU both are seconds of that CPU: on a busy machine a long network is stopped
and a short layer is not, which no clock on the wall could tell from a slower one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.bench.clock import Clock, Step, Stepper
from yolo_prune.layers import LayerShape
from yolo_prune.runtimes.layers import open_layer
from yolo_prune.runtimes.runtime import Settings

ROUNDS = 16
_WEIGHTS, _THREADS = (
    50_000_000,
    1024,
)  # that are held at once: 400 MB, where a runtime keeps a copy of its own
_OPENED = 32  # layers from one sign of progress to the next
_SHORT_SECONDS = 1e-3
_TIMED_SHORT, _TIMED_LONG = 3, 1
_NETWORK_STEPS = 2  # in each round, the first one untimed
_QUARTILE = 25  # of the times, in per cent: what others do on the machine only ever adds

Call = Callable[[], Any]
Layer = tuple[LayerShape, Path | None]


def together(layers: Sequence[Layer], threads: int) -> list[list[Layer]]:
    """Divide layers into those that are open at once."""
    groups: list[list[Layer]] = [[]]
    weights = 0
    for layer in layers:
        weights += layer[0].weights
        full = weights > _WEIGHTS or (len(groups[-1]) + 1) * (threads - 1) > _THREADS
        if full and groups[-1]:
            groups.append([])
            weights = layer[0].weights
        groups[-1].append(layer)
    return groups


def signs(groups: Sequence[Sequence[Layer]]) -> int:
    """Return how often :func:`time_layers` shows a sign of progress."""
    return sum(-(-len(group) // _OPENED) + ROUNDS for group in groups)


def time_layers(
    groups: Sequence[Sequence[Layer]],
    runtime: str,
    settings: Settings,
    network: Stepper,
    clock: Clock,
    cpu_clock: Clock,
) -> Iterator[dict[str, Any] | None]:
    """Time layers and the network that they are from.

    Args:
        groups: Layers that are open at once, with their files (None for PyTorch).
        runtime: What runs them.
        settings: Device and threads.
        network: Runs the whole network once, already warm.
        clock: Wall clock in seconds.
        cpu_clock: CPU time of the process in seconds.

    Yields:
        None as a sign of progress; with the last one ``ms`` of every layer, without disturbances at the speed that
        gives the network its median, ``network_ms``, and ``fixed_ms`` of what is before and after it.
    """
    alone = settings.device == "cpu" and settings.threads == 1
    found: list[tuple[list[float], float]] = []
    steps: list[Step] = []
    left = signs(groups)
    for group in groups:
        calls: list[Call] = []
        for number, (shape, file) in enumerate(group, 1):
            calls.append(open_layer(runtime, file, shape, settings))
            if number % _OPENED == 0 or number == len(group):
                left -= 1
                yield None
        rounds, taken = _Rounds(calls, network, cpu_clock if alone else clock), list[Step]()
        for turn in range(ROUNDS):
            taken.append(rounds.run(turn, len(steps) + turn))
            left -= 1
            if turn < ROUNDS - 1:
                yield None
        steps += taken
        found.append((rounds.ms, _usual([_network_ms(step, alone) for step in taken])))
        if left:
            yield None
    network_ms = float(np.median([step.net_ms for step in steps]))
    yield {
        "ms": [ms * network_ms / whole for times, whole in found for ms in times],
        "network_ms": network_ms,
        "fixed_ms": float(np.median([step.latency_ms - step.net_ms for step in steps])),
    }


def _network_ms(step: Step, alone: bool) -> float:
    """Return what the network took on the clock that its layers were timed by."""
    return step.cpu_ms * step.net_ms / step.latency_ms if alone else step.net_ms


class _Rounds:
    """Layers that are open, and what they took so far."""

    def __init__(self, calls: Sequence[Call], network: Stepper, clock: Clock) -> None:
        self._calls = calls
        self._network = network
        self._clock = clock
        self._samples: list[list[float]] = [[] for _ in calls]
        self._often: list[int] = []
        for call in calls:
            call()
            self._often.append(_TIMED_SHORT if self._seconds(call) < _SHORT_SECONDS else _TIMED_LONG)

    @property
    def ms(self) -> list[float]:
        """What each layer usually took."""
        return [1e3 * _usual(each) for each in self._samples]

    def run(self, turn: int, number: int) -> Step:
        """Run one round, begun somewhere else each time; return the timed step of the network.

        Args:
            turn: Rounds of these layers before it.
            number: Rounds of any layers before it.
        """
        for step in range(_NETWORK_STEPS):
            last = self._network(_NETWORK_STEPS * number + step)
        shift = turn * len(self._calls) // ROUNDS
        for index in np.roll(np.arange(len(self._calls)), -shift).tolist():
            self._calls[index]()
            self._samples[index] += [self._seconds(self._calls[index]) for _ in range(self._often[index])]
        return last

    def _seconds(self, call: Call) -> float:
        start = self._clock()
        call()
        return self._clock() - start


def _usual(times: Sequence[float]) -> float:
    return float(np.percentile(times, _QUARTILE))
