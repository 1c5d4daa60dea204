"""What a host exported to ONNX, for OpenVINO and ncnn with what the file says of itself, and in 8 bits."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from yolo_prune.errors import BenchmarkError, CheckpointError, ConfigError, MissingRuntimeError, one_line
from yolo_prune.files import replacing_folder
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes import ncnn, onnxruntime
from yolo_prune.runtimes.runtime import import_runtime

_NETWORK = "network"
_QUANTISED = ("Convolution", "GroupConvolution", "MatMul")


def to_openvino(source: Path, out: Path, *, half: bool = False) -> Path:
    """Write an .onnx file as a network of OpenVINO.

    Args:
        source: The file.
        out: The folder to create or replace, whole or not at all.
        half: Keep weights in 16 bits: half as large, and not faster where the CPU computes in 32.

    Raises:
        MissingRuntimeError: openvino is not installed.
        CheckpointError: OpenVINO cannot read the file.
    """
    return write_openvino(_read(source), out, half=half)


def to_ncnn(source: Path, out: Path, *, imgsz: ImageSize, half: bool = False) -> Path:
    """Let pnnx write an .onnx file as a network of ncnn, which must compute the same.

    Args:
        source: The file.
        out: The folder to create or replace, whole or not at all.
        imgsz: Size of its input in pixels; a network of ncnn has this one.
        half: Keep weights in 16 bits: half as large, not faster where the CPU computes in 32.

    Raises:
        MissingRuntimeError: ncnn, pnnx or onnxruntime is not installed.
        CheckpointError: pnnx wrote no network, or one that computes something else.
    """
    facts = onnxruntime.read_file(source)
    size = (1, facts.channels or 3, *height_width(imgsz))
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        made = ncnn.converted(source, size, Path(folder), half=half)
        ncnn.check_conversion(source, made, size, half=half)
        with replacing_folder(out) as temporary:
            for file in (made, made.with_suffix(".bin")):
                shutil.copyfile(file, temporary / f"{_NETWORK}{file.suffix}")
            stated = {"imgsz": str(list(height_width(imgsz))), "channels": str(size[1])}
            _write_facts(temporary, {**facts.metadata, **stated})
    return out


def quantised(source: Path, images: Iterable[NDArray[np.float32]], count: int) -> Any:
    """Quantise an .onnx file for OpenVINO after training, by NNCF: 8 bits for weights and for what they multiply.

    Convolutions and matrix products alone: a range of 8 bits over boxes in pixels and scores below 1 would round the
    scores away.

    Args:
        source: The file.
        images: To calibrate on, each (1, C, H, W), as the network sees them.
        count: How many.

    Returns:
        The network, in memory.

    Raises:
        MissingRuntimeError: openvino or nncf is not installed.
        ConfigError: There are no images.
        CheckpointError: OpenVINO cannot read the file.
        BenchmarkError: NNCF cannot quantise it.
    """
    if not count:
        raise ConfigError("INT8 needs images to calibrate on, got none.")
    network = _read(source)
    try:
        nncf: Any = importlib.import_module("nncf")
    except ImportError as error:
        raise MissingRuntimeError(
            "INT8 for OpenVINO needs 'nncf', which is not installed: pip install \"yolo-prune[nncf]\"."
        ) from error
    nncf.set_log_level(40)  # errors
    kinds = {operation.get_type_name() for operation in network.get_ops()}
    left = sorted(kinds - {*_QUANTISED, "Constant", "Parameter", "Result"})
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            return nncf.quantize(
                network,
                nncf.Dataset(list(images)),
                subset_size=count,
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=nncf.IgnoredScope(types=left, validate=False),
            )
    except (RuntimeError, ValueError, TypeError) as error:
        raise BenchmarkError(f"NNCF cannot quantise '{source.name}': {one_line(error)}.") from error


def quantise_onnx(source: Path, out: Path, images: Iterable[NDArray[np.float32]]) -> None:
    """Quantise an .onnx file for ONNX Runtime after training: convolutions and linear layers alone.

    Activations are unsigned and weights signed, one range a channel, of 7 bits: without VNNI the sum of two products of
    8 bits saturates.

    Args:
        source: The file.
        out: The file to write.
        images: To calibrate on, each (1, C, H, W), as the network sees them.

    Raises:
        BenchmarkError: It cannot be quantised.
    """
    import onnxruntime as library
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = library.InferenceSession(str(source), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = ({name: image} for image in images)

        def get_next(self) -> Any:
            return next(self.images, None)

    try:
        with _quiet_library(), tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
            prepared = Path(folder, "prepared.onnx")
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                out,
                Reader(),
                op_types_to_quantize=["Conv", "Gemm"],
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
    except (RuntimeError, ValueError, AttributeError) as error:
        raise BenchmarkError(f"ONNX Runtime cannot quantise '{source.name}': {error}") from error


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """Silence the library's advice, which goes to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def write_openvino(
    network: Any, out: Path, *, shape: Sequence[int] | None = None, half: bool = False
) -> Path:
    """Write a network of OpenVINO into a folder.

    Args:
        network: In memory; its input is fixed in place where a shape is given.
        out: The folder to create or replace, whole or not at all.
        shape: (B, C, H, W) that an open size is fixed at.
        half: Keep weights in 16 bits.
    """
    openvino = import_runtime("openvino")
    if shape is not None:
        network.reshape(list(shape))
    with replacing_folder(out) as temporary:
        openvino.save_model(network, str(temporary / f"{_NETWORK}.xml"), compress_to_fp16=half)
        stated = dict(network.rt_info.items()).get("framework", {})
        _write_facts(temporary, {key: str(value.value) for key, value in stated.items()})
    return out


def _read(source: Path) -> Any:
    openvino = import_runtime("openvino")
    try:
        return openvino.Core().read_model(str(source))
    except RuntimeError as error:
        raise CheckpointError(
            f"'{source}' is not a model that openvino can load: {one_line(error)}."
        ) from error


def _write_facts(folder: Path, facts: Mapping[str, str]) -> None:
    (folder / "metadata.yaml").write_text(yaml.safe_dump(dict(facts), sort_keys=False), encoding="utf-8")
