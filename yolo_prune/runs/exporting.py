"""Write a checkpoint as the files that runtimes run: by its host, or converted from what the host wrote."""

from __future__ import annotations

import tempfile
from pathlib import Path

from yolo_prune.accuracy.task import Result, Task
from yolo_prune.adapters.hosts import find_host
from yolo_prune.adapters.stored import LoadedModel
from yolo_prune.bench.parity import Parity, onnx_parity
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.options import ExportConfig
from yolo_prune.runtimes import EXPORTS
from yolo_prune.runtimes.converted import to_ncnn, to_openvino
from yolo_prune.runtimes.runtime import runtime_for


def path_of_export(config: ExportConfig, checkpoint: Path) -> Path:
    """Return the file or folder to write: the one asked for, else one beside the checkpoint.

    Raises:
        ConfigError: The name that was asked for is one of another format.
    """
    ending = EXPORTS[config.format]
    if config.out is None:
        return checkpoint.with_name(f"{checkpoint.stem}{'_int8' if config.quantize else ''}{ending}")
    if not config.out.rstrip("/\\").endswith(ending):
        raise ConfigError(
            f"format={config.format} writes a path that ends in {ending}, got out='{config.out}'."
        )
    return Path(config.out)


def export_float(config: ExportConfig, loaded: LoadedModel, out: Path, imgsz: ImageSize) -> Parity:
    """Export a checkpoint in floating point, and compare what the file puts out with it, on the file's runtime.

    Args:
        config: The options.
        loaded: The checkpoint.
        out: The file or folder to create or replace, whole or not at all.
        imgsz: Size of the input in pixels.

    Raises:
        MissingRuntimeError: What writes or runs the file is not installed.
        BenchmarkError: The host cannot export it.
        CheckpointError: What was written cannot be loaded, or is another network.
    """
    host = find_host(config.model)
    if config.format in ("onnx", "torchscript"):
        host.export(config.model, out, imgsz=imgsz, trust=config.trust)
    else:
        with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
            whole = host.export(config.model, Path(folder, "whole.onnx"), imgsz=imgsz, trust=config.trust)
            if config.format == "openvino":
                to_openvino(whole, out, half=config.half)
            else:
                to_ncnn(whole, out, imgsz=imgsz, half=config.half)
    return onnx_parity(loaded, out, imgsz, runtime_for(out))


def export_int8(
    config: ExportConfig, loaded: LoadedModel, out: Path, imgsz: ImageSize
) -> tuple[Task, Result]:
    """Export a checkpoint in 8 bits; return what it is measured on and its accuracy.

    Raises:
        YoloPruneError: As the host's export.
    """
    host = find_host(config.model)
    task = host.open_task(
        loaded,
        config.data or "",
        split=config.split,
        batch=config.batch,
        device="cpu",
        workers=config.workers,
    )
    quantised = host.export_int8(
        loaded.path,
        loaded.module,
        out,
        task,
        imgsz=imgsz,
        images=config.calibration_images,
        seed=config.seed,
        trust=config.trust,
    )
    return task, quantised
