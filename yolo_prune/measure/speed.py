"""How fast the models of a run are, on every runtime and device that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from yolo_prune.bench import Comparison, compare
from yolo_prune.config import PruneConfig
from yolo_prune.cost import count_macs, count_parameters
from yolo_prune.errors import BenchmarkError, MissingRuntimeError
from yolo_prune.report import Row, Speedup, make_row

if TYPE_CHECKING:
    from yolo_prune.adapters.ultralytics.tasks import Result, Task

_BENCH_IMAGES = 16


@dataclass(frozen=True)
class Evaluated:
    """A model of the run: its name in the report, its file and what evaluation said."""

    name: str
    file: Path
    module: nn.Module
    result: Result
    imgsz: int


def _key(model: Evaluated) -> str:
    return f"control at {model.imgsz} px" if model.name == "control" else model.name


def bench_models(
    config: PruneConfig, models: Sequence[Evaluated], task: Task, device: str
) -> tuple[list[Comparison], list[str]]:
    """Time all models on every runtime, on the CPU and on a GPU where there is one."""
    comparisons, warnings = [], []
    images = task.image_files(_BENCH_IMAGES)
    devices = {runtime: ["cpu"] for runtime in config.runtimes}
    gpu = device if device.startswith("cuda") else "cuda:0" if torch.cuda.is_available() else None
    if gpu is None:
        warnings.append("GPU speed was not measured: this machine has no CUDA device.")
    for runtime, places in devices.items():
        for place in [*places, *([gpu] if gpu else [])]:
            timed = [m for m in models if m.name != "int8" or (runtime, place) == ("onnxruntime", "cpu")]
            try:
                comparison = compare(
                    {_key(model): model.file for model in timed},
                    runtime=runtime,
                    imgsz={_key(model): model.imgsz for model in timed},
                    device=place,
                    threads=config.threads,
                    images=images,
                    trust=config.trust,
                    imports=config.imports,
                )
            except (
                MissingRuntimeError,
                BenchmarkError,
            ) as error:  # hours of retraining are not lost for this
                warnings.append(f"{runtime} on {place} was not measured: {error}")
                continue
            if comparison.not_measured:
                warnings.append(f"{runtime} on {place} was not measured: {comparison.not_measured}")
            comparisons.append(comparison)
    return comparisons, warnings


def model_rows(models: Sequence[Evaluated], comparisons: Sequence[Comparison]) -> list[Row]:
    """One row a model, runtime and device; without timings one row a model."""
    rows = []
    measured: list[Comparison | None] = [*comparisons] or [None]
    for comparison in measured:
        for model in models:
            if comparison and _key(model) not in comparison.timings:
                continue  # an INT8 file runs where it was made for
            channels = next(p.shape[1] for p in model.module.parameters() if p.dim() == 4)
            image = torch.zeros(1, channels, model.imgsz, model.imgsz)
            rows.append(
                make_row(
                    model.name,
                    imgsz=model.imgsz,
                    gmacs=count_macs(model.module, image) / 1e9,
                    params_m=count_parameters(model.module) / 1e6,
                    size_mb=model.file.stat().st_size / 1e6,
                    scores=model.result.scores,
                    timing=comparison.timings[_key(model)] if comparison else None,
                )
            )
    return rows


def model_speedups(models: Sequence[Evaluated], comparisons: Sequence[Comparison]) -> list[Speedup]:
    """Return every model's FPS over the parent's, with its interval, on everything that was measured."""
    found = []
    for comparison in comparisons:
        for model in models[1:]:
            ratios, timing = comparison.ratios.get(_key(model)), comparison.timings.get(_key(model))
            if ratios and timing is not None and "latency" in ratios:
                ratio = ratios["latency"]
                found.append(
                    Speedup(
                        model=model.name,
                        ratio=ratio.value,
                        low=ratio.low,
                        high=ratio.high,
                        runtime=timing.runtime,
                        device=timing.device,
                        threads=timing.threads,
                        imgsz=model.imgsz,
                    )
                )
    return found
