"""The process that measures, ``python -m yolo_prune.bench.worker``: JSON in on stdin, JSON lines on stdout.

A process of its own, because waiting policy and number of OpenMP threads are fixed when torch or onnxruntime
is first imported, and because a crash must not take the run with it. Only ``comparison.py`` starts it.

Lines out: {"rounds": n} once warm, {"round": k} after each round, the same for what is evaluated, then one of
{"result": ...}, {"not_measured": reason} or {"error": {"type", "text"}}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.bench.clock import Schedule, Stepper, make_stepper, measure, plan_schedule, warm_up
from yolo_prune.bench.judged import FileAccuracy, judge
from yolo_prune.bench.layer_rounds import signs, time_layers, together
from yolo_prune.bench.limits import Limit, all_decided, look_after
from yolo_prune.bench.machine import load_average, peak_memory_mb, read_machine
from yolo_prune.bench.parity import stored_parity
from yolo_prune.errors import BenchmarkError, YoloPruneError
from yolo_prune.imgsz import ImageSize, read_size
from yolo_prune.layers import LayerShape
from yolo_prune.runtimes.images import load_images, use_threads
from yolo_prune.runtimes.runtime import DeviceUnavailableError, Runtime, Settings, open_runtime
from yolo_prune.runtimes.sources import Held, Source, open_source

if TYPE_CHECKING:
    from yolo_prune.accuracy.deployed import DeployedModel


def main() -> int:
    """Measure what stdin asks for; return the exit code."""
    with private_stdout() as out:
        try:
            request = json.load(sys.stdin)
            answer: dict[str, Any] = {"result": (run_layers if "layers" in request else run)(request, out)}
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
        request: runtime, settings, candidates (name -> path, imgsz, and what its file must agree with: reference),
            images, seconds, rounds, imports; where measuring may end early, limits (fields of :class:`Limit`); where
            images come from a stream, source; what is evaluated afterwards, judged.
        out: Where progress goes.

    Returns:
        facts and samples [rounds][timed][field] in ms per candidate, load1, timed and untimed steps, what a step
        does, the machine before and after, memory in 1e6 bytes and seconds of measuring. A file that disagrees with
        its reference is not timed: why is in refused. Those that are judged have an entry in accuracies.
    """
    settings = prepared(request)
    began_mb = peak_memory_mb()
    opened = open_candidates(request, settings)
    load1 = load_average()
    step_seconds = [warm_up(stepper, time.perf_counter) for stepper in opened.steppers.values()]
    if not step_seconds:
        raise BenchmarkError(f"nothing was timed: {'; '.join(opened.refused.values())}.")
    schedule = plan_schedule(
        step_seconds, request["seconds"], request["rounds"], fill=request.get("limits") is not None
    )
    send(out, {"rounds": schedule.rounds})
    before, start = read_machine(), time.perf_counter()
    samples = run_rounds(
        opened.steppers, schedule, tuple(Limit(**one) for one in request.get("limits", ())), out
    )
    seconds, after, peak_mb = time.perf_counter() - start, read_machine(), peak_memory_mb()
    return {
        "accuracies": {name: asdict(one) for name, one in judged(request, opened, settings, out).items()},
        "facts": opened.facts,
        "parities": opened.parities,
        "refused": opened.refused,
        "samples": {name: np.round(steps, 5).tolist() for name, steps in samples.items()},
        "load1": load1,
        "images": opened.images,
        "rounds": schedule.rounds,
        "timed": schedule.timed,
        "untimed": schedule.untimed,
        "phases": "; ".join(opened.phases),
        "seconds": seconds,
        "machine": [before.to_dict(), after.to_dict()],
        "memory_mb": {"before": began_mb, "peak": peak_mb},
    }


def judged(
    request: dict[str, Any], opened: Opened, settings: Settings, out: IO[str]
) -> dict[str, FileAccuracy]:
    """Evaluate the candidates that are to be, after the clock has stopped."""
    if not request.get("judged"):
        return {}

    def watch(items: range, what: str) -> Iterator[int]:
        send(out, {"rounds": len(items), "what": what})
        for number, item in enumerate(items, 1):
            yield item
            send(out, {"round": number})

    sizes = {name: read_size(facts["imgsz"]) for name, facts in opened.facts.items()}
    return judge(request["judged"], opened.runtimes, opened.models, sizes, settings.batch, watch)


def run_layers(request: dict[str, Any], out: IO[str]) -> dict[str, Any]:
    """Time layers in turns with the network that they are from, and show what is done.

    Args:
        request: runtime, settings, candidates (the network alone), images, imports, and layers (file, shape).
        out: Where progress goes.

    Returns:
        ms of each layer, network_ms, fixed_ms, and the facts of the runtime.
    """
    settings = prepared(request)
    opened = open_candidates(request, settings)
    ((name, network),) = opened.steppers.items()
    warm_up(network, time.perf_counter)
    layers = [
        (LayerShape.from_dict(one["shape"]), Path(one["file"]) if one["file"] else None)
        for one in request["layers"]
    ]
    groups = together(layers, settings.threads)
    send(out, {"rounds": signs(groups)})
    result: dict[str, Any] = {}
    clocks = time.perf_counter, time.process_time
    timed = time_layers(groups, request["runtime"], settings, network, *clocks)
    for number, answer in enumerate(timed, 1):
        result = answer or {}
        send(out, {"round": number})
    return {**result, "facts": opened.facts[name]}


def prepared(request: dict[str, Any]) -> Settings:
    """Import the classes of checkpoints, pin the threads, and return the settings."""
    settings = Settings(**request["settings"])
    if request.get("imports"):
        from yolo_prune.adapters.hosts import hosts

        for host in hosts():
            host.import_classes(request["imports"])
    use_threads(settings.threads)
    return settings


@dataclass
class Opened:
    """Candidates that are ready to run.

    Attributes:
        steppers: By name.
        facts: Of each: runtime, device, threads, batch, imgsz.
        runtimes: By name.
        models: What the output of each means, where somebody knows.
        parities: Of each that was compared with its checkpoint, how far it is from it: fields of :class:`Parity`.
        refused: Name -> why a file is not timed.
        phases: What their steps do, in words, each once.
        images: How many images they run on; None for a stream.
    """

    steppers: dict[str, Stepper] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    runtimes: dict[str, Runtime] = field(default_factory=dict)
    models: dict[str, Callable[[], DeployedModel | None]] = field(default_factory=dict)
    parities: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    phases: dict[str, None] = field(default_factory=dict)
    images: int | None = None


def open_candidates(request: dict[str, Any], settings: Settings) -> Opened:
    """Load every candidate, and the images that each is fed with."""
    loaded: dict[Path, Any] = {}

    def load(path: Path) -> Any:
        from yolo_prune.adapters.checkpoint import (
            load_detector,  # torch and a host, which a file does without
        )

        loaded[path] = load_detector(path, trust=settings.trust)
        return loaded[path]

    paths = None if request["images"] is None else [Path(path) for path in request["images"]]
    held: dict[int, Held] = {}
    opened = Opened()
    for name, candidate in request["candidates"].items():
        runtime = open_runtime(
            request["runtime"], Path(candidate["path"]), read_size(candidate["imgsz"]), settings, load
        )
        precision = _precision_of(runtime, settings)
        reference = candidate.get("reference")
        parity = stored_parity(runtime, reference and Path(reference), precision, settings.batch)
        if parity is not None:
            opened.parities[name] = asdict(parity)
            if why := parity.refusal("the file"):
                opened.refused[name] = why
                continue
        opened.runtimes[name] = runtime
        path, imgsz = Path(candidate["path"]), read_size(candidate["imgsz"])
        opened.models[name] = partial(_meaning, runtime, path, loaded.get(path), imgsz)
        if request.get("source"):
            source: Source = open_source(request["source"], runtime.channels)
        else:
            if runtime.channels not in held:
                held[runtime.channels] = Held(load_images(paths, runtime.channels))
            source = held[runtime.channels]
            opened.images = len(held[runtime.channels].images)
        opened.phases[f"{'reading and decoding, ' if source.timed else ''}{runtime.phases}"] = None
        facts = {"batch": settings.batch, "imgsz": candidate["imgsz"], "precision": precision}
        opened.facts[name] = {**runtime.facts, **facts}
        clocks = time.perf_counter, time.process_time
        opened.steppers[name] = make_stepper(runtime, source, settings.batch, *clocks)
    return opened


def _meaning(runtime: Runtime, path: Path, loaded: Any, imgsz: ImageSize) -> DeployedModel | None:
    """Return what a candidate puts out: what its exporter wrote into a file, of a checkpoint what its host knows."""
    from yolo_prune.adapters.hosts import find_host, hosts

    if runtime.file is None:
        return find_host(path).deployed_model(loaded, imgsz)
    stated = (host.read_export(runtime.file.metadata) for host in hosts())
    return next((each for each in stated if each is not None), None)


def _precision_of(runtime: Runtime, settings: Settings) -> str:
    """Return what a candidate computes in: what an exported file says of its weights, unless half was asked for."""
    if settings.half:
        return "float16"
    return "float32" if runtime.file is None else runtime.file.precision


def run_rounds(
    steppers: dict[str, Stepper], schedule: Schedule, limits: tuple[Limit, ...], out: IO[str]
) -> dict[str, NDArray[np.float64]]:
    """Run the rounds, until all limits are decided where there are some, and return the steps of each candidate."""
    turns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in steppers}
    looks = look_after(schedule.rounds)
    for number, turn in enumerate(measure(steppers, schedule), 1):
        for name, steps in turn.items():
            turns[name].append(steps)
        send(out, {"round": number})
        if (
            limits
            and number in looks
            and all_decided(limits, {name: np.stack(done) for name, done in turns.items()})
        ):
            break
    return {name: np.stack(done) for name, done in turns.items()}


if __name__ == "__main__":
    sys.exit(main())
