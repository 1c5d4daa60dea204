"""What the layers of a network take on a runtime here: measured in one process, kept on disk for the next run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from yolo_prune import __version__
from yolo_prune.bench.comparison import ask_worker
from yolo_prune.errors import BenchmarkError
from yolo_prune.files import cache_folder, write_text
from yolo_prune.imgsz import ImageSize, plain_size
from yolo_prune.layers import NOTHING, LayerShape, shapes_to_time
from yolo_prune.progress import LOGGER
from yolo_prune.runtimes.layers import ending_of, write_layer
from yolo_prune.runtimes.runtime import Settings, check_runtime, cpu_name, import_runtime

_HOW = "2"  # of the way layers are timed: older times are not read
_REFERENCES = 8  # layers that are timed again, to tell how fast the machine is today


@dataclass(frozen=True)
class LayerTimes:
    """Times of layers, and of the network that they are from, in the same rounds.

    Attributes:
        ms: Of each layer, without the call itself.
        network_ms: Of the whole network.
        fixed_ms: Of what is before and after it: resizing, suppression.
        facts: runtime, runtime_version, device, device_name, threads, imgsz.
    """

    ms: Mapping[LayerShape, float]
    network_ms: float
    fixed_ms: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """A whole network to time beside its layers.

    Attributes:
        file: What the runtime runs.
        imgsz: Size of its input in pixels.
        images: Files that it runs on; None takes drawn images.
        imports: Python files or modules that hold classes of a checkpoint.
    """

    file: Path
    imgsz: ImageSize
    images: Sequence[Path] | None = None
    imports: Sequence[str] = ()


def measure_layers(
    layers: Sequence[LayerShape],
    network: Network,
    *,
    runtime: str,
    settings: Settings,
    probes: Sequence[LayerShape] = (),
) -> LayerTimes:
    """Return the times of the whole ladders of layers; those that an earlier run measured here are not measured again.

    Some of these are, and the others are scaled by how much faster or slower the machine is now.

    Args:
        layers: Of the network, as they are.
        network: The network.
        runtime: What runs them.
        settings: Device and threads.
        probes: What else is timed, as it is.

    Raises:
        ConfigError: There is no such runtime, or no layers are timed on it.
        BenchmarkError: The device is not there, or the measuring process died.
        MissingRuntimeError: The runtime, or what writes its files, is not installed.
    """
    check_runtime(runtime)
    ending = ending_of(runtime)
    store = cache_file(runtime, settings)
    known, wanted = read_cache(store), list(dict.fromkeys([*shapes_to_time(layers), *probes]))
    missing = [shape for shape in wanted if shape not in known]
    again = sorted((shape for shape in wanted if shape in known), key=lambda shape: -known[shape])
    again = again[:_REFERENCES]
    LOGGER.info(
        "timing %d layers on %s, %d more are known from before (%s)",
        *(len(missing), runtime, len(wanted) - len(missing), store),
    )
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        files = write_layers([NOTHING, *missing, *again], Path(folder), ending)
        times = time_files(files, network, runtime=runtime, settings=settings)
    now = statistics.median([times.ms[shape] / known[shape] for shape in again] or [1.0])
    write_cache(store, {**known, **{shape: times.ms[shape] / now for shape in missing}})
    fresh = {shape: times.ms[shape] for shape in missing}
    return replace(times, ms={shape: fresh.get(shape, known.get(shape, 0.0) * now) for shape in wanted})


def write_layers(shapes: Iterable[LayerShape], folder: Path, ending: str) -> dict[LayerShape, Path | None]:
    """Write every layer as a file into a folder; without an ending there are no files."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        shape: write_layer(shape, folder / f"{number:04d}{ending}") if ending else None
        for number, shape in enumerate(shapes)
    }


def time_files(
    files: Mapping[LayerShape, Path | None], network: Network, *, runtime: str, settings: Settings
) -> LayerTimes:
    """Time layers in a process of its own.

    Args:
        files: What is timed; :data:`yolo_prune.layers.NOTHING` among them is what a call takes.
        network: Timed in the same rounds.
        runtime: What runs them.
        settings: Device and threads.

    Raises:
        BenchmarkError: The device is not there, or the measuring process died.
        MissingRuntimeError: The runtime is not installed.
    """
    request: dict[str, Any] = {
        "runtime": runtime,
        "settings": asdict(settings),
        "candidates": {"network": {"path": str(network.file), "imgsz": plain_size(network.imgsz)}},
        "images": None if network.images is None else [str(path) for path in network.images],
        "imports": list(network.imports),
        "layers": [
            {"file": None if file is None else str(file), "shape": shape.to_dict()}
            for shape, file in files.items()
        ],
    }
    answer = ask_worker(request, settings.threads)
    if "not_measured" in answer:
        raise BenchmarkError(f"not measured: {answer['not_measured']}.")
    result = answer["result"]
    taken = dict(zip(files, result["ms"], strict=True))
    call = taken.get(NOTHING, 0.0)
    ms = {shape: max(value - call, 1e-6) for shape, value in taken.items() if shape != NOTHING}
    return LayerTimes(ms, result["network_ms"], result["fixed_ms"], result["facts"])


def cache_file(runtime: str, settings: Settings) -> Path:
    """Return where times of layers are kept: a file for each package, runtime, CPU, device and number of threads."""
    try:
        version = importlib.metadata.version(runtime)
    except importlib.metadata.PackageNotFoundError:  # a build of another name, or none
        version = str(import_runtime(runtime).__version__)
    where = [_HOW, __version__, runtime, version, cpu_name(), settings.device, str(settings.threads)]
    key = hashlib.sha256("\n".join(where).encode()).hexdigest()[:16]
    return cache_folder() / "latency" / f"{runtime.replace(':', '-')}-{version}-{key}.json"


def read_cache(file: Path) -> dict[LayerShape, float]:
    """Return the times that a file keeps; one that cannot be read keeps none."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {LayerShape.from_dict(entry["shape"]): float(entry["ms"]) for entry in entries}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        LOGGER.warning("'%s' cannot be read (%s): all layers are timed again.", file, error)
        return {}


def write_cache(file: Path, ms: Mapping[LayerShape, float]) -> None:
    """Keep times; where that is not possible, they are measured again next time."""
    entries = [{"shape": shape.to_dict(), "ms": value} for shape, value in ms.items()]
    try:
        write_text(file, json.dumps(entries))
    except OSError as error:
        LOGGER.warning("times of layers cannot be kept in '%s': %s.", file, error.strerror)
