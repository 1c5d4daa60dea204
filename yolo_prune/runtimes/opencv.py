"""OpenCV's own network module: an .onnx file on the CPU, in float32, for applications that have OpenCV anyway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, ConfigError, one_line
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes.files import (
    FileRuntime,
    channel_count,
    check_input,
    refuse_options_of_torch,
    refuse_other_devices,
)
from yolo_prune.runtimes.onnx_facts import read_onnx
from yolo_prune.runtimes.runtime import FileFacts, Loader, Settings, facts_of, import_runtime


def open_runtime(path: Path, imgsz: ImageSize, settings: Settings, load: Loader | None = None) -> FileRuntime:
    """Load an .onnx file into OpenCV.

    Args:
        path: The file.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.
        load: Not needed: the file is all there is to load.

    Returns:
        The runtime.

    Raises:
        MissingRuntimeError: OpenCV is not installed.
        DeviceUnavailableError: Another device than the CPU is asked for.
        ConfigError: The file was exported for another input, has inputs in 16 bits, or half precision or compilation is
            asked for.
        CheckpointError: OpenCV cannot read or run the file.
    """
    cv2 = import_runtime("opencv")
    refuse_options_of_torch("opencv", settings)
    facts = read_file(path)
    check_input(facts.shape, path, imgsz, settings.batch)
    if facts.precision == "float16":
        raise ConfigError(f"the 'opencv' runtime takes inputs in 32 bits, and '{path}' wants them in 16.")
    channels = channel_count(facts.shape, facts.metadata)
    run = open_network(path, settings)
    first = run(np.zeros((settings.batch, channels, *height_width(imgsz)), np.float32))
    return FileRuntime(
        run,
        imgsz=imgsz,
        channels=channels,
        file=facts,
        classifies=first.ndim == 2,
        facts=facts_of("opencv", cv2.__version__, settings),
    )


def open_network(path: Path, settings: Settings) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what turns the one input of a file into its first output; its threads are those of all of OpenCV."""
    refuse_other_devices("opencv", settings)
    cv2 = import_runtime("opencv")
    cv2.setNumThreads(settings.threads)
    network = _read(cv2, path)

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        try:
            network.setInput(batch)
            output: NDArray[Any] = network.forward()
        except cv2.error as error:
            raise CheckpointError(
                f"opencv cannot run '{path}' on images of shape {batch.shape}: {one_line(error)}."
            ) from error
        return output

    return run


def read_file(path: Path) -> FileFacts:
    """Return what an .onnx file takes; it is read here, because OpenCV does not tell.

    Raises:
        MissingRuntimeError: OpenCV is not installed.
        CheckpointError: The file is missing or no ONNX model.
        ConfigError: It has several inputs, or one that is no batch of images.
    """
    import_runtime("opencv")
    try:
        return read_onnx(path)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is not a model that opencv can load: {one_line(error)}.") from error


def _read(cv2: Any, path: Path) -> Any:
    try:
        return cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise CheckpointError(f"'{path}' is not a model that opencv can load: {one_line(error)}.") from error
