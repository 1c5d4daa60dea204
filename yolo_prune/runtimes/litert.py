"""LiteRT: a .tflite file on the CPU. It is run only: nothing here writes one."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, ConfigError, one_line
from yolo_prune.imgsz import ImageSize
from yolo_prune.runtimes.files import (
    FileRuntime,
    check_input,
    refuse_options_of_torch,
    refuse_other_devices,
)
from yolo_prune.runtimes.runtime import FileFacts, Loader, Settings, facts_of, import_runtime

_MOST_CHANNELS = 16  # of images: a last side up to this is one of channels, the order of most exporters
_PRECISIONS = {"float32": "float32", "float16": "float16", "int8": "int8", "uint8": "int8"}


def open_runtime(path: Path, imgsz: ImageSize, settings: Settings, load: Loader | None = None) -> FileRuntime:
    """Load a file, with XNNPACK as the library chooses it.

    Images are handed over in the order of the file, [B, H, W, C] or [B, C, H, W]; what that costs is timed.

    Args:
        path: The .tflite file, whose input is in floating point.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.
        load: Not needed: the file is all there is to load.

    Returns:
        The runtime.

    Raises:
        MissingRuntimeError: ai_edge_litert is not installed.
        DeviceUnavailableError: Another device than the CPU is asked for.
        ConfigError: The file takes another input, or half precision or compilation is asked for.
        CheckpointError: LiteRT cannot load the file.
    """
    refuse_options_of_torch("litert", settings)
    refuse_other_devices("litert", settings)
    interpreter = _loaded(path, settings.threads)
    facts = _facts(interpreter, path)
    check_input(facts.shape, path, imgsz, settings.batch)
    given, found = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    last = _channels_last(given["shape"])

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        images = np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if last else batch
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        output: NDArray[Any] = interpreter.get_tensor(found["index"])  # a copy
        return output

    version = importlib.metadata.version("ai-edge-litert")
    return FileRuntime(
        run,
        imgsz=imgsz,
        channels=facts.channels or 3,
        file=facts,
        classifies=len(found["shape"]) == 2,
        facts=facts_of("litert", version, settings),
    )


def read_file(path: Path) -> FileFacts:
    """Return what a file takes; what its exporter says of its outputs is left aside, because their units differ.

    Raises:
        MissingRuntimeError: ai_edge_litert is not installed.
        CheckpointError: The file is missing or no model of LiteRT.
        ConfigError: It has several inputs, or one that is no batch of images in floating point.
    """
    return _facts(_loaded(path, 1), path)


def _loaded(path: Path, threads: int) -> Any:
    import_runtime("litert")
    library: Any = importlib.import_module("ai_edge_litert.interpreter")
    try:
        interpreter = library.Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' is not a model that litert can load: {one_line(error)}.") from error
    return interpreter


def _facts(interpreter: Any, path: Path) -> FileFacts:
    inputs = interpreter.get_input_details()
    shape, kind = [int(side) for side in inputs[0]["shape"]], np.dtype(inputs[0]["dtype"]).name
    if len(inputs) != 1 or len(shape) != 4 or kind != "float32":
        raise ConfigError(
            f"'{path}' takes {len(inputs)} input(s), the first a {kind} of shape {shape}: expected one batch of images "
            "[B, H, W, C] or [B, C, H, W] in 32-bit floating point."
        )
    if _channels_last(shape):
        batch, height, width, channels = shape
    else:
        batch, channels, height, width = shape
    return FileFacts(batch, channels, height, width, _precision(interpreter), {})


def _channels_last(shape: Any) -> bool:
    return int(shape[3]) <= _MOST_CHANNELS < int(shape[1])


def _precision(interpreter: Any) -> str:
    """Return what most of the constants are kept in: those that have values before anything was run."""
    kept = Counter[str]()
    moving = {one["index"] for one in (*interpreter.get_input_details(), *interpreter.get_output_details())}
    for tensor in interpreter.get_tensor_details():
        kind = _PRECISIONS.get(np.dtype(tensor["dtype"]).name)
        if kind is not None and tensor["index"] not in moving and len(tensor["shape"]) in (2, 4):
            kept[kind] += int(np.prod(tensor["shape"]))
    return kept.most_common(1)[0][0] if kept else "float32"
