"""Measure one model, or two alternately, until the limits are decided or the time is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.bench.clock import FIELDS
from yolo_prune.bench.comparison import as_request, ask_worker
from yolo_prune.bench.limits import Limit, Samples
from yolo_prune.bench.machine import MachineState
from yolo_prune.bench.parity import Parity
from yolo_prune.bench.results import Timing, summarise
from yolo_prune.errors import BenchmarkError
from yolo_prune.imgsz import ImageSize, read_size
from yolo_prune.runtimes.runtime import Settings


@dataclass(frozen=True)
class Candidate:
    """A file, the size of its input in pixels, and what it must agree with where it was made from a checkpoint."""

    path: Path
    imgsz: ImageSize
    reference: Path | None = None


@dataclass(frozen=True)
class Watched:
    """What a measurement found.

    Attributes:
        samples: Steps in ms by candidate.
        timings: A summary of each.
        read_ms: Median of reading and decoding, of the first candidate; None where images were in memory.
        phases: What a step does, in words.
        seconds: How long was measured.
        machine: The machine when measuring began, and when it ended.
        memory_mb: Most memory of the process in 1e6 bytes, and what it held before the model was loaded.
        ended_early: Whether everything was decided before the time was over.
        parities: Of the files that were made here, how far they are from their checkpoints in PyTorch.
    """

    samples: Samples = field(repr=False)
    timings: dict[str, Timing]
    read_ms: float | None
    phases: str
    seconds: float
    machine: tuple[MachineState, MachineState]
    memory_mb: tuple[float | None, float | None]
    ended_early: bool
    parities: dict[str, Parity] = field(default_factory=dict)


def measure_until_decided(
    candidates: Mapping[str, Candidate],
    *,
    runtime: str,
    settings: Settings,
    seconds: float,
    limits: Sequence[Limit],
    source: str | None = None,
    imports: Sequence[str] = (),
) -> Watched:
    """Measure in a process of its own.

    Args:
        candidates: One, or two that take turns.
        runtime: What runs them.
        settings: Device, threads, batch.
        seconds: Longest time per candidate, without warm-up; at least ten rounds are run.
        limits: What ends the measuring early once all of them are decided; without any it takes its time.
        source: Where images come from while the clock runs; None takes drawn images from memory.
        imports: Python files or modules that hold classes of checkpoints.

    Raises:
        BenchmarkError: The device is not there, the measuring process died, or a file does not compute what its
            checkpoint computes.
        ConfigError: A file does not take such an input.
    """
    request: dict[str, Any] = {
        "runtime": runtime,
        "settings": asdict(settings),
        "candidates": {
            name: as_request(one.path, one.imgsz, one.reference) for name, one in candidates.items()
        },
        "images": None,
        "source": source,
        "seconds": seconds,
        "rounds": None,
        "limits": [asdict(limit) for limit in limits],
        "imports": list(imports),
    }
    answer = ask_worker(request, settings.threads)
    if "not_measured" in answer:
        raise BenchmarkError(f"not measured: {answer['not_measured']}.")
    if refused := answer["result"]["refused"]:
        raise BenchmarkError(
            "; ".join(f"'{candidates[name].path.name}': {why}" for name, why in refused.items()) + "."
        )
    return _read(answer["result"], source is not None)


def _read(result: Mapping[str, Any], streamed: bool) -> Watched:
    samples = {name: np.array(steps, dtype=np.float64) for name, steps in result["samples"].items()}
    timings = {
        name: summarise(
            samples[name], {**facts, "imgsz": read_size(facts["imgsz"]), "load1": result["load1"]}
        )
        for name, facts in result["facts"].items()
    }
    first = next(iter(samples.values()))
    before, after = (MachineState(**state) for state in result["machine"])
    return Watched(
        samples=samples,
        timings=timings,
        read_ms=float(np.median(first[..., FIELDS.index("read_ms")])) if streamed else None,
        phases=result["phases"],
        seconds=result["seconds"],
        machine=(before, after),
        memory_mb=(result["memory_mb"]["before"], result["memory_mb"]["peak"]),
        ended_early=len(first) < result["rounds"],
        parities={name: Parity(**values) for name, values in result["parities"].items()},
    )
