"""Check a model against what it must reach: speed beyond the noise, accuracy of the file itself, size and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.bench.comparison import check_threads
from yolo_prune.bench.exports import shared_exports
from yolo_prune.bench.limits import FPS, LATENCY, MET, MISSED, SPEEDUP, Bounds, Limit
from yolo_prune.bench.machine import warnings_of
from yolo_prune.bench.watched import Candidate, Watched, measure_until_decided
from yolo_prune.errors import BenchmarkError, ConfigError
from yolo_prune.imgsz import plain_size, size_text
from yolo_prune.options import CheckConfig
from yolo_prune.progress import LOGGER
from yolo_prune.report.checks import INTERVALS, CheckReport, Finding
from yolo_prune.runs.subject import Subject, accuracy_of, open_subject, size_mb
from yolo_prune.runtimes.resampling import resized_by
from yolo_prune.runtimes.runtime import Settings, available_cpus, parse_device, runtime_for

if TYPE_CHECKING:
    from yolo_prune.accuracy.number import Accuracy

_OWN, _OTHER = "model", "against"


def run_check(config: CheckConfig) -> CheckReport:
    """Measure what the limits ask for, and judge it.

    Speed is measured whatever the limits are, in a process of its own; a speed-up in a second one, where both models
    take turns.

    Args:
        config: The options.

    Returns:
        The report, with one finding a limit.

    Raises:
        ConfigError: The file does not run there, or does not take such an input.
        CheckpointError: It is missing or damaged.
        DataError: The data is missing, broken, or of other classes.
        MissingRuntimeError: The runtime, or what reads images or scores boxes, is not installed.
        BenchmarkError: The device is not there, or the measuring process died.
    """
    began = time.perf_counter()
    runtime = runtime_for(config.model, config.runtime)
    with ExitStack() as stack:
        exports = stack.enter_context(shared_exports())
        own = open_subject(config.model, runtime, config, exports, stack)
        _refuse_wrong_accuracy(config, own)
        settings = Settings(
            parse_device(config.device), check_threads(config.threads), own.batch, trust=config.trust
        )
        subjects = {_OWN: own}
        if config.against is not None:
            subjects[_OTHER] = open_subject(config.against, runtime, config, exports, stack)
        limits = _time_limits(config, own.batch)
        LOGGER.info("measuring %s on %s, at most %g s", own.name, runtime, config.seconds)
        alone = _watch(config, runtime, settings, {_OWN: own}, [one for one in limits if one.kind != SPEEDUP])
        paired = None
        if config.against is not None:
            LOGGER.info("measuring it and %s in turns", config.against)
            paired = _watch(
                config, runtime, settings, subjects, [one for one in limits if one.kind == SPEEDUP]
            )
        accuracy = None if config.data is None else accuracy_of(own, runtime, settings, config)
        size = size_mb(own.file)
    findings = [*_timed(limits, alone, paired, config), *_counted(config, accuracy, size, alone)]
    return CheckReport(
        model=own.name,
        findings=tuple(findings),
        conditions=_conditions(own, alone),
        details=_details(own, alone, accuracy, size),
        warnings=_warnings(config, alone, paired, settings.threads),
        values=_values(own, alone, paired, accuracy, size),
        seconds=time.perf_counter() - began,
    )


def _refuse_wrong_accuracy(config: CheckConfig, own: Subject) -> None:
    """Say before the measuring that accuracy cannot be measured, or is another kind than was asked for."""
    if config.data is None:
        return
    if own.task is None:
        raise ConfigError(
            f"'{own.name}' does not say its task, classes and image size, which accuracy needs: expected a file that "
            "'yolo-prune export' or its host wrote."
        )
    if own.deployed is not None:
        from yolo_prune.accuracy.deployed import check_installed

        check_installed(own.task)
    classifies = own.task == "classify"
    if classifies and config.min_ap is not None:
        raise ConfigError(f"'{own.name}' is a classifier: give min_top1= in place of min_ap=.")
    if not classifies and config.min_top1 is not None:
        raise ConfigError(f"'{own.name}' is a detector: give min_ap= in place of min_top1=.")


def _time_limits(config: CheckConfig, batch: int) -> list[Limit]:
    found = []
    if config.min_fps is not None:
        found.append(Limit(FPS, config.min_fps, _OWN, batch=batch))
    if config.max_latency_ms is not None:
        found.append(Limit(LATENCY, config.max_latency_ms, _OWN, config.percent))
    if config.min_speedup is not None:
        found.append(Limit(SPEEDUP, config.min_speedup, _OWN, base=_OTHER))
    return found


def _watch(
    config: CheckConfig,
    runtime: str,
    settings: Settings,
    subjects: dict[str, Subject],
    limits: Sequence[Limit],
) -> Watched:
    return measure_until_decided(
        {name: Candidate(one.file, one.imgsz, one.reference) for name, one in subjects.items()},
        runtime=runtime,
        settings=settings,
        seconds=config.seconds,
        limits=limits if config.early else (),
        source=config.source,
        imports=config.imports,
    )


def _timed(
    limits: Sequence[Limit], alone: Watched, paired: Watched | None, config: CheckConfig
) -> list[Finding]:
    """Judge what has an interval of times."""
    words = {
        FPS: ("min_fps", "FPS", "", 2),
        LATENCY: ("max_latency_ms", f"{config.percentile} latency", " ms", 2),
        SPEEDUP: ("min_speedup", f"speed-up over {Path(config.against or '').name}", "x", 3),
    }
    found = []
    for limit in limits:
        watched = paired if limit.kind == SPEEDUP and paired is not None else alone
        bounds: Bounds = limit.bounds(watched.samples)
        key, name, unit, digits = words[limit.kind]
        values = (limit.value, bounds.value, bounds.low, bounds.high)
        found.append(Finding(key, name, *values, unit, digits, limit.verdict(bounds)))
    return found


def _counted(config: CheckConfig, accuracy: Accuracy | None, size: float, alone: Watched) -> list[Finding]:
    """Judge what is the same every time."""
    found = []
    if accuracy is not None:
        key, name = ("min_ap", "AP") if config.min_ap is not None else ("min_top1", "top-1")
        limit = float(getattr(config, key))
        verdict = MET if accuracy.value >= limit else MISSED
        found.append(Finding(key, name, limit, accuracy.value, *_interval(accuracy), "", 4, verdict))
    peak = alone.memory_mb[1]
    if config.max_memory_mb is not None and peak is None:
        raise BenchmarkError(
            "max_memory_mb= cannot be measured: this system does not say what a process holds."
        )
    for key, name, limit_mb, value in (
        ("max_size_mb", "size", config.max_size_mb, size),
        ("max_memory_mb", "memory", config.max_memory_mb, peak),
    ):
        if limit_mb is not None and value is not None:
            verdict = MET if value <= limit_mb else MISSED
            found.append(Finding(key, name, limit_mb, value, None, None, " MB", 2, verdict))
    return found


def _interval(accuracy: Accuracy) -> tuple[float | None, float | None]:
    """Return what chance in the choice of images explains; the verdict is that of the number itself."""
    from yolo_prune.accuracy.bootstrap import interval_of, resampled_accuracy

    if accuracy.sample is None:
        return None, None
    bounds = interval_of(resampled_accuracy(accuracy.sample))
    return (bounds.low, bounds.high) if bounds else (None, None)


def _conditions(own: Subject, alone: Watched) -> dict[str, str]:
    timing = alone.timings[_OWN]
    return {
        "runtime": f"{timing.runtime} {timing.runtime_version}",
        "device": timing.device
        if timing.device_name == timing.device
        else f"{timing.device} ({timing.device_name})",
        "threads": f"{timing.threads} thread{'s' if timing.threads > 1 else ''}",
        "batch": f"batch {timing.batch}",
        "imgsz": f"{size_text(own.imgsz)} px",
        "precision": own.precision,
    }


def _details(own: Subject, alone: Watched, accuracy: Accuracy | None, size: float) -> dict[str, str]:
    timing, (before, after) = alone.timings[_OWN], alone.machine
    reading = "" if alone.read_ms is None else f"read {alone.read_ms:.2f}, "
    quantiles = ", ".join(f"{name} {value:.2f}" for name, value in timing.latency_ms.items())
    held, peak = alone.memory_mb
    memory = "" if peak is None else f"; process {peak:.0f} MB at most, {held or 0:.0f} MB before the model"
    clocks = [f"{state.mhz:.0f} MHz" for state in alone.machine if state.mhz]
    loads = [f"{state.load1:.2f}" for state in alone.machine if state.load1 is not None]
    machine = {
        "load": " -> ".join(loads),
        "governor": after.governor or "not known",
        "clock": " -> ".join(clocks) or "not known",
        "heat": " -> ".join(
            f"{state.celsius:.0f} C" for state in (before, after) if state.celsius is not None
        ),
    }
    found = {
        "latency ms": f"{quantiles} ({reading}prepare {timing.pre_ms:.2f}, network {timing.net_ms:.2f}, "
        f"finish {timing.post_ms:.2f}; CPU {timing.cpu_ms:.2f})",
        "timed": f"{timing.samples} steps in {alone.seconds:.1f} s{', then all was decided' * alone.ended_early}: "
        f"{alone.phases}; resized by {resized_by()}",
        "intervals": INTERVALS,
        "machine": ", ".join(f"{name} {text}" for name, text in machine.items() if text),
        "size": f"{own.file.name} {size:.2f} MB{memory}",
    }
    if _OWN in alone.parities:
        found["compared"] = f"with its checkpoint in PyTorch: {alone.parities[_OWN].sentence}"
    if accuracy is not None:
        found["accuracy"] = (
            f"{accuracy.images} images, {accuracy.source}; bounds: 95 % over the choice of images"
        )
        if accuracy.notes:
            found["note"] = " ".join(accuracy.notes)
    return found


def _warnings(config: CheckConfig, alone: Watched, paired: Watched | None, threads: int) -> tuple[str, ...]:
    """Say each thing that makes the times doubtful once."""
    found = [
        text
        for watched in (alone, paired)
        if watched is not None
        for text in warnings_of(*watched.machine, available_cpus(), threads)
    ]
    if config.source is not None and config.source.isdecimal():
        found.append(
            "A camera gives images at its own rate: FPS are the camera's where it is the slower of the two."
        )
    return tuple(dict.fromkeys(found))


def _values(
    own: Subject, alone: Watched, paired: Watched | None, accuracy: Accuracy | None, size: float
) -> dict[str, Any]:
    timing = alone.timings[_OWN]
    found: dict[str, Any] = {
        "file": str(own.file),
        "imgsz": plain_size(own.imgsz),
        "precision": own.precision,
        "size_mb": size,
        "memory_mb": {"before": alone.memory_mb[0], "peak": alone.memory_mb[1]},
        "fps": timing.fps,
        "latency_ms": timing.latency_ms,
        "phases_ms": {
            **({} if alone.read_ms is None else {"read": alone.read_ms}),
            **{"pre": timing.pre_ms, "net": timing.net_ms, "post": timing.post_ms, "cpu": timing.cpu_ms},
        },
        "samples": timing.samples,
        "measured_s": alone.seconds,
        "machine": {
            name: state.to_dict() for name, state in zip(("before", "after"), alone.machine, strict=True)
        },
    }
    if paired is not None:
        found["paired_latency_ms"] = {name: one.latency_ms for name, one in paired.timings.items()}
    if accuracy is not None:
        found["accuracy"] = {
            accuracy.metric: accuracy.value,
            "images": accuracy.images,
            "source": accuracy.source,
        }
    return found
