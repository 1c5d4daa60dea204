"""ONNX Runtime: an exported file on the CPU, a CUDA GPU or a named provider, with neither torch nor a host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.runtimes import PROVIDERS
from yolo_prune.runtimes.files import (
    FileRuntime,
    channel_count,
    check_input,
    refuse_options_of_torch,
)
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    FileFacts,
    Loader,
    Settings,
    device_index,
    facts_of,
    import_runtime,
)

CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_ON_GPU = (CUDA, PROVIDERS["tensorrt"])
_IMAGES = ("tensor(float)", "tensor(float16)")
_QUANTISED = b"DequantizeLinear"  # the operator that every ONNX file with weights of 8 bits has


def open_runtime(path: Path, imgsz: ImageSize, settings: Settings, load: Loader | None = None) -> FileRuntime:
    """Load an ONNX file with a pinned number of threads that do not spin while they wait.

    Args:
        path: The exported file.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.
        load: Not needed: the file is all there is to load.

    Returns:
        The runtime; on CUDA, network time includes the copies both ways.

    Raises:
        MissingRuntimeError: onnxruntime is not installed.
        DeviceUnavailableError: A GPU or a provider is asked for that this build or machine has not, or a provider on
            another device than its own.
        ConfigError: The file was exported for another input, or half precision or compilation is asked for.
        CheckpointError: The file is not a readable ONNX model.
    """
    onnxruntime = import_runtime("onnxruntime")
    refuse_options_of_torch("onnxruntime", settings)
    session = _usable_session(onnxruntime, path, settings)
    image = session.get_inputs()[0]
    check_input(image.shape, path, imgsz, settings.batch)
    facts = _facts(session, path)
    wanted = _wanted(settings)
    name = f"onnxruntime:{settings.provider}" if settings.provider else "onnxruntime"
    return FileRuntime(
        _runner(session),
        imgsz=imgsz,
        channels=facts.channels or 3,
        file=facts,
        classifies=len(session.get_outputs()[0].shape) == 2,
        facts=facts_of(name, onnxruntime.__version__, settings, None if settings.device == "cpu" else wanted),
        dtype=np.float16 if "float16" in image.type else np.float32,
    )


def open_network(path: Path, settings: Settings) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what turns the one input of a file into its first output, whatever they are."""
    return _runner(_usable_session(import_runtime("onnxruntime"), path, settings))


def _runner(session: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    name = session.get_inputs()[0].name

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        output: NDArray[Any] = session.run(None, {name: batch})[0]
        return output

    return run


def _usable_session(onnxruntime: Any, path: Path, settings: Settings) -> Any:
    """Return an InferenceSession on the device and with the provider that were asked for.

    Asked for a provider that it has not, or that does not start, ONNX Runtime runs on the CPU and goes on.

    Raises:
        DeviceUnavailableError: They are not there.
    """
    wanted = _wanted(settings)
    if (settings.device == "cpu") == (wanted in _ON_GPU):
        raise DeviceUnavailableError(
            f"{wanted} is measured on {'a GPU: device=cuda:0' if wanted in _ON_GPU else 'the CPU alone'}"
        )
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise DeviceUnavailableError(
            f"this build of onnxruntime has no {wanted}, only {', '.join(available)}"
        )
    session = open_session(onnxruntime, path, settings)
    found = session.get_providers()
    if found[0] != wanted:
        raise DeviceUnavailableError(
            f"onnxruntime found no usable {'GPU' if wanted in _ON_GPU else 'device'} for {wanted} and fell back to "
            f"{found[0]}"
        )
    return session


def _wanted(settings: Settings) -> str:
    """Return the provider that runs the network."""
    if settings.provider:
        return PROVIDERS[settings.provider]
    return _CPU if settings.device == "cpu" else CUDA


def _providers(settings: Settings) -> list[Any]:
    """Return what ONNX Runtime tries in turn for every part of a network."""
    wanted, options = _wanted(settings), dict[str, Any]()
    if wanted == PROVIDERS["openvino"]:
        options = {"device_type": "CPU", "precision": "FP32", "num_of_threads": settings.threads}
    if wanted in _ON_GPU:
        options = {"device_id": device_index(settings.device)}
    first = [] if wanted == _CPU else [(wanted, options)]
    second = [(CUDA, options)] if wanted == PROVIDERS["tensorrt"] else []
    return [*first, *second, _CPU]


def read_file(path: Path) -> FileFacts:
    """Return what an ONNX file takes.

    Raises:
        MissingRuntimeError: onnxruntime is not installed.
        CheckpointError: The file is missing or no ONNX model.
        ConfigError: It has several inputs, or one that is no batch of images.
    """
    return _facts(open_session(import_runtime("onnxruntime"), path, Settings("cpu", 1, 1)), path)


def _facts(session: Any, path: Path) -> FileFacts:
    """Return what an opened file takes, and what it says of itself."""
    inputs = session.get_inputs()
    shape = [size if isinstance(size, int) else None for size in inputs[0].shape]
    if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in _IMAGES:
        raise ConfigError(
            f"'{path}' takes {len(inputs)} input(s), the first a {inputs[0].type} of shape {list(inputs[0].shape)}: "
            "expected one batch of images [B, C, H, W] in floating point."
        )
    batch, _, height, width = shape
    precision = "float16" if "float16" in inputs[0].type else "float32"
    if _QUANTISED in path.read_bytes():
        precision = "int8"
    metadata = session.get_modelmeta().custom_metadata_map
    return FileFacts(batch, channel_count(shape, metadata), height, width, precision, metadata)


def open_session(onnxruntime: Any, path: Path, settings: Settings) -> Any:
    """Return an InferenceSession of ``path``.

    Raises:
        CheckpointError: The file is not a readable ONNX model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    errors = onnxruntime.capi.onnxruntime_pybind11_state
    broken = (
        errors.InvalidProtobuf,
        errors.InvalidGraph,
        errors.NoSuchFile,
        errors.InvalidArgument,
        errors.Fail,
    )
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=_providers(settings))
    except broken as error:
        raise CheckpointError(f"'{path}' is not an ONNX model that onnxruntime can load: {error}") from error
