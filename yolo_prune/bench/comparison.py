"""Measure candidates alternately in one worker process and compare them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

import yolo_prune.errors
from yolo_prune.bench.exports import Exports, shared_exports
from yolo_prune.bench.judged import FileAccuracy, Judged
from yolo_prune.bench.parity import Parity
from yolo_prune.bench.results import Comparison, Timing, compare_samples, summarise
from yolo_prune.errors import BenchmarkError, CheckpointError, ConfigError, YoloPruneError
from yolo_prune.imgsz import ImageSize, height_width, read_size
from yolo_prune.progress import LOGGER, track
from yolo_prune.runtimes import RUNTIMES, is_exported
from yolo_prune.runtimes.runtime import (
    Settings,
    available_cpus,
    check_runtime,
    cpu_name,
    parse_device,
)

DEFAULT_SECONDS = 6.0


def compare(
    candidates: Mapping[str, Path | str],
    *,
    runtime: str,
    imgsz: ImageSize | Mapping[str, ImageSize],
    device: str | int = "cpu",
    threads: int | None = None,
    batch: int = 1,
    rounds: int | None = None,
    seconds: float = DEFAULT_SECONDS,
    images: Sequence[Path | str] | None = None,
    half: bool = False,
    compile: bool = False,
    trust: bool = False,
    imports: Sequence[str] = (),
    exports: Exports | None = None,
    references: Mapping[str, Path] | None = None,
    judged: Judged | None = None,
) -> Comparison:
    """Time candidates against each other: A B, B A, A B, ... in one process, so that drift hits all of them.

    Args:
        candidates: Name -> checkpoint or exported file. Ratios refer to the first.
        runtime: A key of ``RUNTIMES``: ``torch`` runs checkpoints, the others files; checkpoints are exported first.
        imgsz: Size of the network input in pixels, for all or by name: the side of a square, or (height, width).
        device: ``cpu``, ``cuda``, ``cuda:N`` or N.
        threads: CPU threads; all that this process may use when None.
        batch: Images per step.
        rounds: Rounds to measure; chosen from ``seconds`` when None.
        seconds: Time budget per candidate, without loading and warm-up.
        images: Image files to run on, the first 32; drawn images when None. Decoding them is not timed.
        half: 16-bit floating point: torch on CUDA, OpenVINO and ncnn on CPUs that can.
        compile: Compile the networks with ``torch.compile``, torch only; not timed, but it takes minutes on a CPU.
        trust: Load checkpoints that may run code of their own.
        imports: Python files or modules that hold their classes.
        exports: Exported files that several comparisons share; when None they are made for this one.
        references: What :meth:`Reference.save` wrote, for exported files of which the caller knows what they are of.
        judged: What the accuracy of candidates is measured on, each as it is timed, when the clock has stopped.

    Returns:
        Timings, ratios with intervals and the conditions. Timings are None where the device is not there, and of a
        file that does not compute what its checkpoint computes in PyTorch.

    Raises:
        ConfigError: An argument is out of range or does not fit the files.
        CheckpointError: A candidate is missing or cannot be loaded.
        MissingRuntimeError: The runtime, or what the export needs, is not installed.
        BenchmarkError: The measuring process died.
    """
    sizes = check_candidates(candidates, runtime, imgsz, batch, rounds, seconds)
    settings = Settings(parse_device(device), check_threads(threads), batch, half, compile, trust)
    with ExitStack() as stack:
        files, known = {name: Path(path) for name, path in candidates.items()}, dict(references or {})
        if ending := RUNTIMES[runtime].exported:
            exports = exports or stack.enter_context(shared_exports())
            known |= exports.references(files, sizes, images=images, trust=trust)
            files = exports.of(files, sizes, ending=ending, batch=batch, trust=trust)
        request: dict[str, Any] = {
            "runtime": runtime,
            "settings": asdict(settings),
            "candidates": {
                name: as_request(path, sizes[name], known.get(name)) for name, path in files.items()
            },
            "images": None if images is None else [str(path) for path in images],
            "seconds": seconds,
            "rounds": rounds,
            "imports": list(imports),
        }
        if judged is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yolo-prune-")))
            request["judged"] = judged.save(folder / "judged.pickle")
        answer = ask_worker(request, settings.threads)
    conditions = {
        "images": "drawn" if images is None else "files",
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "runtime": runtime,
        "half": half,
        "compile": compile,
    }
    return read_answer(list(candidates), answer, conditions)


def as_request(file: Path, imgsz: ImageSize, reference: Path | None) -> dict[str, Any]:
    """Return a candidate as the worker is asked for it."""
    return {"path": str(file), "imgsz": imgsz, "reference": None if reference is None else str(reference)}


def read_answer(names: Sequence[str], answer: Mapping[str, Any], conditions: dict[str, Any]) -> Comparison:
    """Turn the worker's last message into a Comparison."""
    base = names[0]
    if "not_measured" in answer:
        LOGGER.info("not measured: %s", answer["not_measured"])
        nothing: dict[str, Timing | None] = dict.fromkeys(names)
        return Comparison(base, nothing, {}, conditions, not_measured=answer["not_measured"])
    result = answer["result"]
    samples = {name: np.array(steps, dtype=np.float64) for name, steps in result["samples"].items()}
    timings: dict[str, Timing | None] = dict.fromkeys(names)
    for name, facts in result["facts"].items():
        known = {**facts, "imgsz": read_size(facts["imgsz"]), "load1": result["load1"]}
        timings[name] = summarise(samples[name], known)
    ratios = {
        name: compare_samples(samples[base], steps) for name, steps in samples.items() if base in samples
    }
    measured = {
        "image_count": result["images"],
        "timed": result["phases"],
        "rounds": result["rounds"],
        "timed_steps": result["timed"],
        "untimed_steps": result["untimed"],
    }
    return Comparison(
        base,
        timings,
        ratios,
        {**conditions, **measured},
        refused=dict(result["refused"]),
        accuracies={name: FileAccuracy.read(values) for name, values in result["accuracies"].items()},
        parities={name: Parity(**values) for name, values in result["parities"].items()},
    )


def check_candidates(
    candidates: Mapping[str, Path | str],
    runtime: str,
    imgsz: ImageSize | Mapping[str, ImageSize],
    batch: int,
    rounds: int | None,
    seconds: float,
) -> dict[str, ImageSize]:
    """Check the arguments of ``compare`` and return the input size of every candidate.

    Raises:
        ConfigError: One of them is wrong.
        CheckpointError: A candidate's file is missing.
    """
    check_runtime(runtime)
    entry = RUNTIMES[runtime]
    for name, path in candidates.items():
        if not is_exported(str(path)) and not entry.checkpoints and not entry.exported:
            files = ", ".join(f"*{one}" for one in entry.endings)
            raise ConfigError(
                f"the '{runtime}' runtime runs {files} alone, which are not made here: '{path}' (candidate '{name}') "
                "is a checkpoint."
            )
    if not candidates:
        raise ConfigError("nothing to measure: give at least one checkpoint or exported file.")
    if batch < 1 or (rounds is not None and rounds < 1) or seconds <= 0:
        raise ConfigError(
            "batch, rounds and seconds must be positive, "
            f"got batch={batch}, rounds={rounds}, seconds={seconds}."
        )
    for name, path in candidates.items():
        if is_exported(str(path)) and not Path(path).exists():
            raise CheckpointError(f"there is no file '{path}' (candidate '{name}').")
    given = {name: imgsz.get(name, 0) if isinstance(imgsz, Mapping) else imgsz for name in candidates}
    sizes = {name: read_size(size) for name, size in given.items()}
    for name, size in sizes.items():
        if min(height_width(size)) < 1:
            raise ConfigError(f"imgsz of candidate '{name}' is missing or not positive.")
    return sizes


def check_threads(threads: int | None) -> int:
    """Return the number of CPU threads to use.

    Raises:
        ConfigError: It is below 1.
    """
    if threads is None:
        return available_cpus()
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}.")
    return threads


def ask_worker(request: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Start the worker, show its rounds as a progress bar and return its last message.

    Raises:
        YoloPruneError: The worker reported one; it is raised here as the same class.
        BenchmarkError: The worker died.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        with started_worker(threads, log) as worker:
            answer = follow(worker, request)
        if "error" in answer:
            kind = getattr(yolo_prune.errors, answer["error"]["type"], YoloPruneError)
            raise kind(answer["error"]["text"])
        if "result" in answer or "not_measured" in answer:
            return answer
        log.seek(0)
        raise BenchmarkError(describe_death(worker.returncode, log.read()))


@contextmanager
def started_worker(threads: int, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the worker for the duration of the block; whatever ends the block early, Ctrl-C too, kills it."""
    command = [sys.executable, "-m", "yolo_prune.bench.worker"]
    pipe = subprocess.PIPE
    worker = subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=log,
        text=True,
        encoding="utf-8",
        env=worker_environment(threads),
    )
    try:
        yield worker
        worker.wait()
    finally:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
        for stream in (worker.stdin, worker.stdout):
            if stream is not None and not stream.closed:
                stream.close()


def worker_environment(threads: int) -> dict[str, str]:
    """Return the worker's environment: a fixed number of threads that sleep while they wait."""
    package_root = str(Path(__file__).resolve().parents[2])
    search_path = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "YOLO_AUTOINSTALL": "false",
        "PYTHONPATH": os.pathsep.join(search_path),
    }


def follow(worker: subprocess.Popen[str], request: Mapping[str, Any]) -> dict[str, Any]:
    """Hand the request over and follow the worker's messages to the last one.

    Returns:
        The last message; empty when the worker died before it.
    """
    if worker.stdin is None or worker.stdout is None:
        raise BenchmarkError("the benchmark worker was started without pipes.")
    try:
        with worker.stdin:
            json.dump(request, worker.stdin)
    except BrokenPipeError:
        return {}
    messages = (json.loads(line) for line in worker.stdout if line.endswith("\n"))
    last: dict[str, Any] = next(messages, {})
    while "rounds" in last:
        for _ in track(range(last["rounds"]), last.get("what", "measure"), total=last["rounds"]):
            last = next(messages, {})
            if "round" not in last:
                break
        else:
            last = next(messages, {})
    return last


def describe_death(returncode: int, log: str) -> str:
    """Say how the worker ended: by which signal, or with which last words."""
    if returncode < 0:
        cause = " It was probably stopped for using too much memory." if returncode == -9 else ""
        return f"the benchmark worker was killed by signal {-returncode}.{cause} Nothing was measured."
    words = log.strip().splitlines()
    last = words[-1] if words else "it said nothing"
    return f"the benchmark worker stopped with exit code {returncode} before it had measured: {last}"
