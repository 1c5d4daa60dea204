"""The process that measures, ``python -m yolo_prune.bench.worker``: JSON in on stdin, JSON lines on stdout.

A process of its own, because waiting policy and number of OpenMP threads are fixed when torch or onnxruntime
is first imported, and because a crash must not take the run with it. Only ``comparison.py`` starts it.

Lines out: {"rounds": n} once warm, {"round": k} after each round, then one of {"result": ...},
{"not_measured": reason} or {"error": {"type", "text"}}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from yolo_prune.bench.clock import make_stepper, measure, plan_schedule, warm_up
from yolo_prune.errors import YoloPruneError
from yolo_prune.imgsz import read_size
from yolo_prune.runtimes.images import Image, load_images, use_threads
from yolo_prune.runtimes.runtime import DeviceUnavailableError, Settings, open_runtime


def main() -> int:
    """Measure what stdin asks for; return the exit code."""
    with private_stdout() as out:
        try:
            answer: dict[str, Any] = {"result": run(json.load(sys.stdin), out)}
        except DeviceUnavailableError as error:
            answer = {"not_measured": str(error)}
        except YoloPruneError as error:
            answer = {"error": {"type": type(error).__name__, "text": str(error)}}
        send(out, answer)
    return 0


def private_stdout() -> IO[str]:
    """Keep stdout for the protocol and send whatever else is printed to stderr instead."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def send(out: IO[str], message: dict[str, Any]) -> None:
    """Write one line of JSON at once."""
    out.write(json.dumps(message) + "\n")
    out.flush()


def run(request: dict[str, Any], out: IO[str]) -> dict[str, Any]:
    """Warm every candidate up, run the rounds and report each.

    Args:
        request: runtime, settings, candidates (name -> path, imgsz), images, seconds, rounds, imports.
        out: Where progress goes.

    Returns:
        facts and samples [rounds][timed][field] in ms per candidate, load1, timed and untimed steps, and what a step
        does.
    """
    settings = Settings(**request["settings"])
    if request.get("imports"):
        from yolo_prune.adapters.hosts import hosts

        for host in hosts():
            host.import_classes(request["imports"])

    def load(path: Path) -> Any:
        from yolo_prune.adapters.checkpoint import (
            load_detector,  # torch and a host, which a file does without
        )

        return load_detector(path, trust=settings.trust)

    use_threads(settings.threads)
    paths = None if request["images"] is None else [Path(path) for path in request["images"]]
    images: dict[int, list[Image]] = {}
    facts: dict[str, dict[str, Any]] = {}
    phases: dict[str, None] = {}
    steppers = {}
    for name, candidate in request["candidates"].items():
        runtime = open_runtime(
            request["runtime"], Path(candidate["path"]), read_size(candidate["imgsz"]), settings, load
        )
        phases[runtime.phases] = None
        facts[name] = {**runtime.facts, "batch": settings.batch, "imgsz": candidate["imgsz"]}
        if runtime.channels not in images:
            images[runtime.channels] = load_images(paths, runtime.channels)
        shown = images[runtime.channels]
        steppers[name] = make_stepper(runtime, shown, settings.batch, time.perf_counter, time.process_time)
    load1 = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    step_seconds = [warm_up(stepper, time.perf_counter) for stepper in steppers.values()]
    schedule = plan_schedule(step_seconds, request["seconds"], request["rounds"])
    send(out, {"rounds": schedule.rounds})
    turns: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in steppers}
    for index, turn in enumerate(measure(steppers, schedule)):
        for name, steps in turn.items():
            turns[name].append(steps)
        send(out, {"round": index + 1})
    samples = {name: np.round(np.stack(steps), 5).tolist() for name, steps in turns.items()}
    counts = {"timed": schedule.timed, "untimed": schedule.untimed, "phases": "; ".join(phases)}
    return {"facts": facts, "samples": samples, "load1": load1, "images": len(shown), **counts}


if __name__ == "__main__":
    sys.exit(main())
