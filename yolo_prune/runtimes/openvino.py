"""OpenVINO: an .onnx file or a network of its own format on the CPU, with neither torch nor a host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
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
    metadata_beside,
    refuse_options_of_torch,
    refuse_other_devices,
    the_file_in,
)
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    FileFacts,
    Loader,
    Settings,
    facts_of,
    import_runtime,
)

_PRECISIONS = {
    **dict.fromkeys(("i8", "u8", "i4", "u4"), "int8"),
    **dict.fromkeys(("f16", "bf16"), "float16"),
    **dict.fromkeys(("f32", "f64"), "float32"),
}


def open_runtime(path: Path, imgsz: ImageSize, settings: Settings, load: Loader | None = None) -> FileRuntime:
    """Compile a file for the CPU: one stream, for latency, in float32 whatever the CPU could do faster.

    Weights that the file keeps in 16 bits are computed with in float32, too: the CPU would otherwise choose bfloat16
    where it has it, and the same file would give other numbers elsewhere. Layers of 8 bits stay such. With half they
    are computed with in 16, where the CPU can. An input of open size is fixed at ``imgsz`` first.

    Args:
        path: An .onnx file, the .xml of an OpenVINO network, or the folder that holds one.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.
        load: Not needed: the file is all there is to load.

    Returns:
        The runtime.

    Raises:
        MissingRuntimeError: openvino is not installed.
        DeviceUnavailableError: Another device than the CPU is asked for, or half precision on one that has none.
        ConfigError: The file was exported for another input, or compilation is asked for.
        CheckpointError: OpenVINO cannot read or compile the file.
    """
    openvino = import_runtime("openvino")
    refuse_options_of_torch("openvino", settings, half=True)
    refuse_other_devices("openvino", settings)
    core = openvino.Core()
    model, metadata = _read(core, path)
    facts = _facts(model, metadata, path)
    shape, channels = _shape(model), facts.channels or 3
    check_input(shape, path, imgsz, settings.batch)
    fixed = [settings.batch, channels, *height_width(imgsz)] if None in shape else None
    compiled = _compiled(core, model, path, settings, fixed)
    return FileRuntime(
        _runner(compiled),
        imgsz=imgsz,
        channels=channels,
        file=facts,
        classifies=compiled.output(0).partial_shape.rank.get_length() == 2,
        facts=facts_of("openvino", openvino.__version__.partition("-")[0], settings),
        dtype=model.input(0).get_element_type().to_dtype(),
    )


def open_network(
    path: Path, settings: Settings, *, channels_last: bool = False
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what turns the one input of a file, of a fixed size, into its first output.

    Args:
        path: The file.
        settings: Threads.
        channels_last: The input has shape [B, H, W, C], and so has the output: the order that convolutions compute in
            inside of a network. A layer alone would else be put into that order and back, a fifth of its time.
    """
    refuse_other_devices("openvino", settings)
    openvino = import_runtime("openvino")
    core = openvino.Core()
    model = _read(core, path)[0]
    return _runner(
        _compiled(core, _channels_last(openvino, model) if channels_last else model, path, settings)
    )


def _channels_last(openvino: Any, model: Any) -> Any:
    """Return a network that takes and makes its channels last."""
    within, outside = openvino.Layout("NCHW"), openvino.Layout("NHWC")
    edges = openvino.preprocess.PrePostProcessor(model)
    for edge in (edges.input(), edges.output()):
        edge.tensor().set_layout(outside)
        edge.model().set_layout(within)
    return edges.build()


def _compiled(
    core: Any, model: Any, path: Path, settings: Settings, shape: Sequence[int] | None = None
) -> Any:
    """Compile a network for the CPU, its input of open size fixed at ``shape``.

    Raises:
        DeviceUnavailableError: Half precision is asked for and the CPU has none.
        CheckpointError: OpenVINO cannot.
    """
    offered = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if settings.half else ["FP16"]
    if "FP16" not in offered:
        raise DeviceUnavailableError(f"openvino computes in {', '.join(offered)} on this CPU, not in FP16")
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": settings.threads,
        "INFERENCE_PRECISION_HINT": "f16" if settings.half else "f32",
        "ENABLE_CPU_PINNING": False,  # as the other runtimes: another program may own that very core
    }
    try:
        if shape is not None:
            model.reshape(list(shape))
        return core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise CheckpointError(f"openvino cannot compile '{path}': {one_line(error)}.") from error


def _runner(compiled: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    request = compiled.create_infer_request()

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        output: NDArray[Any] = request.infer({0: batch})[0]
        return output

    return run


def read_file(path: Path) -> FileFacts:
    """Return what a file takes.

    Raises:
        MissingRuntimeError: openvino is not installed.
        CheckpointError: OpenVINO cannot read it.
        ConfigError: It has several inputs, or one that is no batch of images.
    """
    return _facts(*_read(import_runtime("openvino").Core(), path), path)


def _facts(model: Any, metadata: dict[str, str], path: Path) -> FileFacts:
    """Return what a network that was read takes."""
    shape, kind = _shape(model), model.input(0).get_element_type().get_type_name()
    if len(model.inputs) != 1 or len(shape) != 4 or kind not in ("f32", "f16"):
        raise ConfigError(
            f"'{path}' takes {len(model.inputs)} input(s), the first a {kind} of shape {shape}: "
            "expected one batch of images [B, C, H, W] in floating point."
        )
    batch, _, height, width = shape
    return FileFacts(batch, channel_count(shape, metadata), height, width, _precision(model), metadata)


def _read(core: Any, path: Path) -> tuple[Any, dict[str, str]]:
    """Return a network and what its exporter said of it, values as text: in the network, or in a file beside it."""
    file = the_file_in(path, ".xml")
    try:
        model = core.read_model(str(file))
    except RuntimeError as error:
        raise CheckpointError(f"'{path}' is not a model that openvino can load: {one_line(error)}") from error
    written = dict(model.rt_info.items()).get("framework", {})  # there, from an .onnx file, its metadata goes
    found = {key: str(value.value) for key, value in written.items()}
    return model, {**(metadata_beside(file) if file.suffix == ".xml" else {}), **found}


def _shape(model: Any) -> list[int | None]:
    """Return the shape of the first input; None stands for a size that is left open."""
    shape = model.input(0).get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [size.get_length() if size.is_static else None for size in shape]


def _precision(model: Any) -> str:
    """Return what most of the weights are kept in."""
    kept = Counter[str]()
    for operation in model.get_ops():
        kind = operation.get_output_element_type(0).get_type_name() if operation.get_output_size() else ""
        if operation.get_type_name() == "Constant" and kind in _PRECISIONS:
            kept[_PRECISIONS[kind]] += int(np.prod(list(operation.get_output_shape(0))))
    return kept.most_common(1)[0][0] if kept else "float32"
