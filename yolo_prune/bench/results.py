"""What a comparison hands back: plain frozen values that turn into JSON and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.bench.clock import FIELDS, Ratio, frames_per_second, paired_ratio, percentiles
from yolo_prune.bench.judged import FileAccuracy
from yolo_prune.bench.parity import Parity
from yolo_prune.imgsz import ImageSize

RATIO_FIELDS = {"latency": "latency_ms", "net": "net_ms", "cpu": "cpu_ms"}


@dataclass(frozen=True)
class Timing:
    """How fast one candidate ran, with the conditions it ran under.

    Attributes:
        latency_ms: p10, p50, p90 and p99 of one batch through preprocessing, network and postprocessing.
        fps: Images per second from the median of ``latency_ms``.
        pre_ms: Median of resizing, BGR to RGB, scaling to [0, 1] and the copy to the device.
        net_ms: Median of the network alone; on CUDA between two events.
        post_ms: Median of the copy back and non-maximum suppression (of a classifier: sorting).
        runtime: ``torch`` or ``onnxruntime``.
        runtime_version: Its version.
        device: ``cpu`` or ``cuda:N``.
        device_name: What the device calls itself.
        threads: CPU threads the runtime may use.
        batch: Images per step.
        imgsz: Size of the network input, in pixels.
        cpu_ms: Median CPU time of one batch, all threads together; hardly depends on other load.
        load1: One-minute load average of the machine when measuring began; None where the system has none.
        samples: Number of timed steps.
        precision: Of its weights: ``float32``, ``float16`` or ``int8``.
    """

    latency_ms: dict[str, float]
    fps: float
    pre_ms: float
    net_ms: float
    post_ms: float
    runtime: str
    runtime_version: str
    device: str
    device_name: str
    threads: int
    batch: int
    imgsz: ImageSize
    cpu_ms: float
    load1: float | None
    samples: int
    precision: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Candidates measured alternately in one process.

    Attributes:
        base: The candidate the ratios refer to: the first one.
        timings: Timing per candidate; None means not measured.
        ratios: Per candidate, how many times faster than ``base``: ``latency`` (all phases, so FPS too),
            ``net`` (network alone) and ``cpu`` (process CPU time, the steadiest on a busy machine). Empty
            when not measured.
        conditions: What else was true: images, rounds, steps per turn, processor.
        not_measured: Why there are no timings, or None.
        refused: Candidate -> why its file was not timed: it does not compute what its checkpoint computes.
        parities: Of the files that were made here, how far they are from their checkpoints in PyTorch.
        accuracies: Of the candidates that were judged.
    """

    base: str
    timings: dict[str, Timing | None]
    ratios: dict[str, dict[str, Ratio]]
    conditions: dict[str, Any]
    not_measured: str | None = None
    refused: dict[str, str] = field(default_factory=dict)
    parities: dict[str, Parity] = field(default_factory=dict)
    accuracies: dict[str, FileAccuracy] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        return asdict(self)


def summarise(samples: NDArray[np.float64], facts: Mapping[str, Any]) -> Timing:
    """Turn the steps of one candidate into a Timing.

    Args:
        samples: Steps in ms, [rounds, timed, len(FIELDS)].
        facts: The fields of Timing that are not measured: runtime, device, threads, batch and so on.

    Returns:
        The timing.
    """
    flat = samples.reshape(-1, len(FIELDS))
    column = {field: flat[:, index] for index, field in enumerate(FIELDS)}
    latency = percentiles(column["latency_ms"])
    return Timing(
        latency_ms=latency,
        fps=frames_per_second(latency["p50"], int(facts["batch"])),
        pre_ms=float(np.median(column["pre_ms"])),
        net_ms=float(np.median(column["net_ms"])),
        post_ms=float(np.median(column["post_ms"])),
        cpu_ms=float(np.median(column["cpu_ms"])),
        samples=len(flat),
        **facts,
    )


def compare_samples(base: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Ratio]:
    """Return the paired ratios of two candidates' steps, each [rounds, timed, len(FIELDS)] in ms.

    A ratio is left out where a clock was too coarse to see a step, so that its time is 0.
    """
    ratios = {}
    for name, column in RATIO_FIELDS.items():
        ours, theirs = base[..., FIELDS.index(column)], other[..., FIELDS.index(column)]
        if (np.median(ours, axis=1) > 0).all() and (np.median(theirs, axis=1) > 0).all():
            ratios[name] = paired_ratio(ours, theirs)
    return ratios
