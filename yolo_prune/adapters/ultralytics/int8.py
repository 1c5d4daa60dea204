"""INT8 for ONNX Runtime and OpenVINO: the exported network with its convolutions and linear layers in 8 bits."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.adapters.ultralytics.validator import is_stretched
from yolo_prune.errors import ConfigError, MissingRuntimeError
from yolo_prune.files import replacing
from yolo_prune.imgsz import ImageSize, is_square
from yolo_prune.runtimes.converted import quantise_onnx, quantised, write_openvino

if TYPE_CHECKING:
    from yolo_prune.accuracy.task import Result, Task


def export_int8(
    checkpoint: Path | str,
    out: Path | str,
    batches: Sequence[Tensor],
    *,
    imgsz: ImageSize,
    trust: bool = False,
    dynamic: bool = False,
) -> Path:
    """Export a checkpoint to ONNX and quantise it after training: 8 bits for weights and for what they multiply.

    Activations are unsigned and weights signed, one range a channel: the form that x86 CPUs have instructions for.
    With signed activations, as the host's own ``export quantize=8`` makes them, the file was slower than float32 where
    we measured it. Everything but convolutions and linear layers stays in float32: one 8-bit range over boxes in pixels
    and scores below 1 would round every score to 0. Weights use 7 of their bits: a CPU without VNNI adds two products
    in 16 bits and cuts off what does not fit, so that a file of 8 loses there what it keeps elsewhere.

    Args:
        checkpoint: What ``load_detector`` accepts.
        out: The .onnx file to create or replace, whole or not at all; for one image at a time.
        batches: Training images as validation sees them, float32 (batch, channels, height, width) in [0, 1].
        imgsz: Size of the input, in pixels.
        trust: Load a checkpoint that may run code of its own.
        dynamic: As for :func:`yolo_prune.adapters.ultralytics.export.export_onnx`.

    Returns:
        ``out``.

    Raises:
        MissingRuntimeError: onnx, onnxslim or onnxruntime is not installed.
        ConfigError: ``out`` is not an .onnx path, there are no images, or ``imgsz`` does not fit the stride.
        CheckpointError: The checkpoint cannot be loaded.
        BenchmarkError: The network cannot be quantised.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ConfigError(f"an export needs a path that ends in .onnx, got '{out}'.")
    if not batches:
        raise ConfigError("INT8 needs images to calibrate on, got none.")
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingRuntimeError(
            "INT8 needs 'onnxruntime', which is not installed: pip install \"yolo-prune[onnx]\"."
        )
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        whole = export_onnx(
            checkpoint, Path(folder, "float32.onnx"), imgsz=imgsz, trust=trust, dynamic=dynamic
        )
        with replacing(out) as temporary:
            quantise_onnx(whole, temporary, images_in(batches))
    return out


def export_measured_int8(
    checkpoint: Path,
    module: nn.Module,
    out: Path,
    task: Task,
    *,
    imgsz: ImageSize,
    batches: Sequence[Tensor],
    trust: bool = False,
) -> Result:
    """Export a checkpoint to INT8 and evaluate it as the checkpoint itself is evaluated.

    Detectors for squares are validated on rectangles, which a file of fixed size cannot take, and the padding to a
    square alone may cost accuracy. So a twin whose size is open, with the same weights and ranges, is evaluated and
    thrown away.

    Args:
        checkpoint: The file.
        module: The model that is in it.
        out: The .onnx file to create or replace, of fixed size; for OpenVINO a folder ``*_openvino_model``.
        task: What to evaluate on.
        imgsz: Size of the input, in pixels.
        batches: Training images to calibrate on, as validation sees them.
        trust: Load a checkpoint that may run code of its own.

    Returns:
        The accuracy in INT8.

    Raises:
        YoloPruneError: As :func:`export_int8` and the evaluation.
    """
    fixed = task.metric == "top1" or is_stretched(module) or not is_square(imgsz)
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        if out.suffix == ".onnx":
            export_int8(checkpoint, out, batches, imgsz=imgsz, trust=trust)
            if fixed:
                return task.evaluate(module, imgsz, out)
            twin = Path(folder, "twin.onnx")
            export_int8(checkpoint, twin, batches, imgsz=imgsz, trust=trust, dynamic=True)
            return task.evaluate(module, imgsz, twin)
        whole = export_onnx(
            checkpoint, Path(folder, "float32.onnx"), imgsz=imgsz, trust=trust, dynamic=not fixed
        )
        pixels = list(images_in(batches))
        network = quantised(whole, pixels, len(pixels))
        twin = write_openvino(network, Path(folder, "twin_openvino_model"))
        result = task.evaluate(module, imgsz, twin)
        write_openvino(network, out, shape=pixels[0].shape)
        return result


def images_in(batches: Sequence[Tensor]) -> Iterator[NDArray[np.float32]]:
    """Yield the images of batches one by one, each (1, C, H, W)."""
    return (image[None].cpu().numpy() for batch in batches for image in batch)
