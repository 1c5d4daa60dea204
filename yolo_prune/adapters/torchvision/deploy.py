"""Files of this host as ONNX and TorchScript."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.accuracy.deployed import DeployedModel
from yolo_prune.accuracy.task import Result, Task
from yolo_prune.adapters.torchvision.deployed import Boxes, deployed
from yolo_prune.adapters.torchvision.described import CLASSIFY, described
from yolo_prune.adapters.torchvision.detector import is_stretched
from yolo_prune.adapters.torchvision.exported import ExportedNetwork
from yolo_prune.adapters.torchvision.files import load
from yolo_prune.adapters.torchvision.names import FORMAT
from yolo_prune.adapters.torchvision.stated import read_export
from yolo_prune.errors import BenchmarkError, CheckpointError, ConfigError, MissingRuntimeError
from yolo_prune.files import replacing
from yolo_prune.imgsz import ImageSize, height_width, plain_size
from yolo_prune.runtimes.converted import quantise_onnx
from yolo_prune.runtimes.onnxruntime import read_file
from yolo_prune.runtimes.tracing import trace_to_onnx, trace_to_torchscript

_ENDINGS = (".onnx", ".torchscript")


def export_file(checkpoint: Path | str, out: Path | str, *, imgsz: ImageSize, batch: int = 1) -> Path:
    """Export a file of this host, float32, with normalisation and suppression inside.

    Args:
        checkpoint: The file.
        out: The file to create or replace, whole or not at all: ``.onnx`` or ``.torchscript``.
        imgsz: Size of the input in pixels; it is fixed.
        batch: Images in a batch; fixed.

    Returns:
        ``out``.

    Raises:
        MissingRuntimeError: onnx is not installed.
        CheckpointError: The checkpoint cannot be loaded.
        ConfigError: ``out`` has another ending.
        BenchmarkError: torch cannot export this network.
    """
    out = Path(out)
    if out.suffix not in _ENDINGS:
        raise ConfigError(f"an export needs a path that ends in {' or '.join(_ENDINGS)}, got '{out}'.")
    if out.suffix == ".onnx" and importlib.util.find_spec("onnx") is None:
        raise MissingRuntimeError(
            "export to ONNX needs 'onnx', which is not installed: pip install \"yolo-prune[onnx]\"."
        )
    loaded = load(checkpoint)
    what = described(loaded.module)
    pixels = torch.rand(batch, 3, *height_width(imgsz), generator=torch.Generator().manual_seed(0))
    facts = facts_of(loaded.module, imgsz)
    network = deployed(loaded.module)
    with replacing(out) as temporary:
        if out.suffix == ".onnx":
            axes = {"output": {1: "found"}} if isinstance(network, Boxes) else None
            trace_to_onnx(network, pixels, temporary, what=what.architecture, dynamic_axes=axes)
            _write_facts(temporary, facts)
        else:
            trace_to_torchscript(network, pixels, temporary, what=what.architecture, facts=facts)
    return out


def export_int8(
    checkpoint: Path, out: Path, task: Task, *, imgsz: ImageSize, batches: Sequence[Tensor]
) -> Result:
    """Export a file of this host with its convolutions and linear layers in 8 bits, and evaluate that very file.

    What decides (boxes, thresholds, suppression) stays in float32.

    Args:
        checkpoint: The file.
        out: The .onnx file to create or replace, whole or not at all.
        task: What to evaluate on.
        imgsz: Size of the input in pixels.
        batches: Training images to calibrate on.

    Returns:
        Its accuracy.

    Raises:
        MissingRuntimeError: onnx or onnxruntime is not installed.
        BenchmarkError: It is for another runtime, or cannot be quantised.
    """
    if out.suffix != ".onnx":
        raise BenchmarkError(
            "models of torchvision and timm have INT8 for ONNX Runtime alone: the detectors' suppression is in the "
            "network, and OpenVINO's quantiser was not tried on it. Give runtimes=onnxruntime, or format=onnx."
        )
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        whole = export_file(checkpoint, Path(folder, "float32.onnx"), imgsz=imgsz)
        facts = read_file(whole).metadata
        with replacing(out) as temporary:
            quantise_onnx(
                whole, temporary, (image[None].cpu().numpy() for batch in batches for image in batch)
            )
            _write_facts(temporary, dict(facts))
    return task.evaluate(ExportedNetwork(out), imgsz)


def facts_of(module: nn.Module, imgsz: ImageSize) -> dict[str, str]:
    """Return what an exported file says of its network."""
    what = described(module)
    return {
        "task": what.task,
        "classes": json.dumps(list(what.numbered.values())),
        "labels": json.dumps(list(what.every_label)),
        "imgsz": json.dumps(plain_size(imgsz)),
        "architecture": what.architecture,
        "stretched": json.dumps(what.task != CLASSIFY and is_stretched(module)),
        "format": FORMAT,
    }


def describe(module: nn.Module, imgsz: ImageSize) -> DeployedModel:
    """Return what a network puts out as it is deployed."""
    found = read_export(facts_of(module, imgsz))
    if found is None:
        raise CheckpointError("the network does not say its task, classes and image size.")
    return found


def _write_facts(file: Path, facts: dict[str, str]) -> None:
    """Write into an exported file what its outputs mean."""
    import onnx

    model: Any = onnx.load(file)
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, file)
