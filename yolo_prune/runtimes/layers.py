"""One layer as a file of its own, and what runs it: a convolution with random weights, on the named runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import ConfigError, MissingRuntimeError
from yolo_prune.layers import LayerShape
from yolo_prune.runtimes import PROVIDERS, RUNTIMES
from yolo_prune.runtimes.runtime import Settings, with_provider

ENDINGS = {
    **{"torch": "", "onnxruntime": ".onnx", "openvino": ".onnx", "ncnn": ".param", "opencv": ".onnx"},
    "torchscript": "",
    **dict.fromkeys((f"onnxruntime:{provider}" for provider in PROVIDERS), ".onnx"),
}
"""Of the file that each runtime runs a layer from; PyTorch makes its layers itself."""
_OPSET, _IR = 17, 8
_CHANNELS_LAST = ("openvino",)  # whose networks keep channels last between layers

Run = Callable[[NDArray[Any]], Any]


def ending_of(runtime: str) -> str:
    """Return the ending of the files that a runtime runs layers from; empty where it makes them itself.

    Raises:
        ConfigError: No layer can be timed alone on it.
    """
    if runtime not in ENDINGS:
        raise ConfigError(f"no layers are timed on '{runtime}': expected one of {', '.join(ENDINGS)}.")
    return ENDINGS[runtime]


def open_layer(runtime: str, file: Path | None, shape: LayerShape, settings: Settings) -> Callable[[], Any]:
    """Return a call that runs one layer once.

    Args:
        runtime: A key of ``RUNTIMES``.
        file: What :func:`write_layer` wrote; None for PyTorch.
        shape: The layer.
        settings: Device and threads.

    Raises:
        MissingRuntimeError: The runtime is not installed.
        DeviceUnavailableError: The device is not there.
        CheckpointError: The file is none that the runtime can load.
    """
    size = (1, shape.channels, shape.height, shape.width)
    images = np.random.default_rng(0).random(size, dtype=np.float32)
    module: Any = importlib.import_module(RUNTIMES[runtime].module)
    if file is None:
        call: Callable[[], Any] = module.open_layer(shape, images, settings)
        return call
    if runtime in _CHANNELS_LAST:
        last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        inner: Run = module.open_network(file, settings, channels_last=True)
        return lambda: inner(last).transpose(0, 3, 1, 2)
    run: Run = module.open_network(file, with_provider(settings, runtime))
    return lambda: run(images)


def write_layer(shape: LayerShape, file: Path) -> Path:
    """Write one layer as an ``.onnx`` file or as a ``.param`` of ncnn, whose ``.bin`` goes beside it.

    Raises:
        MissingRuntimeError: An ``.onnx`` file is asked for and onnx is not installed.
    """
    rng = np.random.default_rng(0)
    outputs, reads = shape.outputs, shape.reads
    sides = (shape.channels, outputs // shape.groups) if shape.transposed else (outputs, reads)
    weight = rng.normal(0.0, 0.05, (*sides, *shape.kernel)).astype(np.float32)
    bias = rng.normal(0.0, 0.05, outputs).astype(np.float32)
    (_write_onnx if file.suffix == ".onnx" else _write_ncnn)(shape, weight, bias, file)
    return file


def _write_onnx(
    shape: LayerShape, weight: NDArray[np.float32], bias: NDArray[np.float32], file: Path
) -> None:
    try:
        helper = importlib.import_module("onnx").helper
    except ImportError as error:
        raise MissingRuntimeError(
            "writing layers as .onnx files needs 'onnx', which is not installed: pip install \"yolo-prune[onnx]\"."
        ) from error
    numbers = [
        helper.make_tensor(name, 1, array.shape, array.tobytes(), raw=True)
        for name, array in (("weight", weight), ("bias", bias))
    ]
    node = helper.make_node(
        "ConvTranspose" if shape.transposed else "Conv",
        ["images", "weight", "bias"],
        ["output"],
        kernel_shape=shape.kernel,
        strides=shape.stride,
        pads=[*shape.padding, *shape.padding],
        dilations=shape.dilation,
        group=shape.groups,
    )
    size = [1, shape.channels, shape.height, shape.width]
    images = helper.make_tensor_value_info("images", 1, size)
    output = helper.make_tensor_value_info("output", 1, [1, shape.outputs, None, None])
    graph = helper.make_graph([node], "layer", [images], [output], numbers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    file.write_bytes(model.SerializeToString())


def _write_ncnn(
    shape: LayerShape, weight: NDArray[np.float32], bias: NDArray[np.float32], file: Path
) -> None:
    kind = "Deconvolution" if shape.transposed else "Convolution"
    kind = f"{kind}DepthWise" if shape.groups > 1 else kind
    (high, wide), (down, right), (top, left) = shape.kernel, shape.stride, shape.padding
    words = {
        **{0: shape.outputs, 1: wide, 11: high, 2: shape.dilation[1], 12: shape.dilation[0]},
        **{3: right, 13: down, 4: left, 14: top, 5: 1, 6: weight.size},
        **({7: shape.groups} if shape.groups > 1 else {}),
    }
    if shape.transposed:  # ncnn keeps these by what they make
        grouped = weight.reshape(shape.groups, shape.reads, shape.outputs // shape.groups, *shape.kernel)
        weight = np.ascontiguousarray(grouped.transpose(0, 2, 1, 3, 4))
    text = " ".join(f"{key}={value}" for key, value in words.items())
    lines = ["7767517", "2 2", "Input images 0 1 images", f"{kind} layer 1 1 images output {text}", ""]
    file.write_text("\n".join(lines), encoding="utf-8")
    file.with_suffix(".bin").write_bytes(bytes(4) + weight.tobytes() + bias.tobytes())
