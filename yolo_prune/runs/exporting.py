"""Write a checkpoint as the files that runtimes run: by its host, or converted from what the host wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

from yolo_prune.accuracy.task import Result, Task
from yolo_prune.adapters.hosts import find_host
from yolo_prune.adapters.stored import LoadedModel
from yolo_prune.bench.exports import write_export
from yolo_prune.bench.parity import Parity, file_parity
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.options import ExportConfig
from yolo_prune.runtimes import EXPORTS
from yolo_prune.runtimes.runtime import runtime_for

_IMAGES = 4


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
        config: The options; with data, its images are among those that outputs are compared on.
        loaded: The checkpoint.
        out: The file or folder to create or replace, whole or not at all.
        imgsz: Size of the input in pixels.

    Raises:
        MissingRuntimeError: What writes or runs the file is not installed.
        BenchmarkError: The host cannot export it, or what was written computes something else; it is removed.
        CheckpointError: What was written cannot be loaded.
    """
    images = None if config.data is None else _task(config, loaded).image_files(_IMAGES)
    write_export(config.model, out, imgsz=imgsz, half=config.half, trust=config.trust)
    parity = file_parity(loaded, out, imgsz, runtime_for(out), images)
    if not parity.agrees:
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    parity.check(f"'{out}' was removed: the file")
    return parity


def export_int8(
    config: ExportConfig, loaded: LoadedModel, out: Path, imgsz: ImageSize
) -> tuple[Task, Result]:
    """Export a checkpoint in 8 bits; return what it is measured on and its accuracy.

    Raises:
        YoloPruneError: As the host's export.
    """
    task = _task(config, loaded)
    quantised = find_host(config.model).export_int8(
        loaded.path,
        loaded.module,
        out,
        task,
        imgsz=imgsz,
        batches=task.calibration_batches(imgsz, config.calibration_images, config.seed),
        trust=config.trust,
    )
    return task, quantised


def _task(config: ExportConfig, loaded: LoadedModel) -> Task:
    return find_host(config.model).open_task(
        loaded,
        config.data or "",
        split=config.split,
        batch=config.batch,
        device="cpu",
        workers=config.workers,
    )
