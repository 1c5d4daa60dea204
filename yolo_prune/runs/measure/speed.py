"""How fast the models of a run are, on every runtime and device that is there; why, where nothing was measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.accuracy.task import Result, Task
from yolo_prune.adapters.host import Host
from yolo_prune.bench import Comparison, compare
from yolo_prune.bench.comparison import check_threads
from yolo_prune.bench.exports import Exports, shared_exports
from yolo_prune.bench.judged import Judged
from yolo_prune.bench.machine import overloaded
from yolo_prune.cost import count_parameters
from yolo_prune.cost.macs import count_macs_per_operation
from yolo_prune.errors import YoloPruneError
from yolo_prune.graph.decisions import Positions
from yolo_prune.imgsz import ImageSize, size_text
from yolo_prune.options import PruneConfig
from yolo_prune.options.places import measures, runtime_of
from yolo_prune.progress import LOGGER
from yolo_prune.report import Row, Speedup, make_row, with_timing
from yolo_prune.report.deployed import Deployed
from yolo_prune.report.select import FINAL_ORDER
from yolo_prune.runs.subject import size_mb

BENCH_IMAGES = 16
_INT8_OF_OLD = "onnxruntime"  # what INT8 files were made for when their rows did not say
_NO_GPU = "GPU speed was not measured: this machine has no CUDA device."
_MISSING = "Speed was not measured everywhere (the table says where and why)"
_BUSY = "The machine was busy when speed was measured"


@dataclass(frozen=True)
class Evaluated:
    """A model of the run: its name in the report, its file and what evaluation said.

    ``runtime`` is the one that the file is made for; None where others run it, or a file that is exported from it.
    """

    name: str
    file: Path
    module: nn.Module
    result: Result
    imgsz: ImageSize
    runtime: str | None = None

    @property
    def precision(self) -> str:
        """Of the weights that were evaluated."""
        return evaluated_in(self.name)


def evaluated_in(model: str) -> str:
    """Return the precision that a run evaluates the model of such a row in."""
    return "int8" if model == "int8" else "float32"


@dataclass(frozen=True)
class Timed:
    """A model to time.

    Attributes:
        row: What the report says of it beside its speed.
        file: What is run; None where there is no file, and the row says why.
    """

    row: Row
    file: Path | None

    @property
    def name(self) -> str:
        """Its name in a comparison: the controls are the parent at several sizes."""
        if self.row.model == "control" and self.row.imgsz:
            return f"control at {size_text(self.row.imgsz)} px"
        return self.row.model

    def runs_on(self, runtime: str, device: str) -> bool:
        """Tell whether the model is made for a runtime and device."""
        return self.row.model != "int8" or (runtime, device) == (self.row.runtime or _INT8_OF_OLD, "cpu")


def models_to_time(models: Sequence[Evaluated], failed: Mapping[str, str], host: Host) -> list[Timed]:
    """Return every model of a run with its cost and accuracy.

    What a model costs whose second stage depends on its first is counted where the parent's decisions fell.

    Args:
        models: Those that were evaluated, the parent first.
        failed: Runtime -> why there is no INT8 model for it.
        host: Knows what their MACs count on.
    """
    found = []
    positions = defaultdict[ImageSize, Positions](Positions)
    for model in models:
        how = host.anatomy(model.module, model.imgsz)
        image = how.trace_input if how.cost_input is None else how.cost_input
        where = positions[model.imgsz] if how.positions is not None else None
        row = make_row(
            model.name,
            imgsz=model.imgsz,
            precision=model.precision,
            gmacs=sum(count_macs_per_operation(model.module, image, where)) / 1e9,
            params_m=count_parameters(model.module) / 1e6,
            size_mb=size_mb(model.file),
            scores=model.result.scores,
        )
        found.append(Timed(replace(row, runtime=model.runtime), model.file))
    size = models[0].imgsz
    missing = [
        Timed(Row("int8", imgsz=size, precision=evaluated_in("int8"), runtime=name, not_measured=why), None)
        for name, why in failed.items()
    ]
    return [*found, *missing]


def judged_by(config: PruneConfig, task: Task, models: Sequence[Timed]) -> Judged | None:
    """Return what the files of the parent and of the final model, also in INT8, are evaluated on; None: on nothing."""
    if not config.file_images:
        return None
    final = next((name for name in FINAL_ORDER if any(one.row.model == name for one in models)), None)
    names = [one.name for one in models if one.row.model in ("parent", final, "int8")]
    return Judged(task.split.part(config.file_images), tuple(dict.fromkeys(names)))


def bench_models(
    config: PruneConfig,
    models: Sequence[Timed],
    images: Sequence[Path],
    device: str,
    judged: Judged | None = None,
) -> list[Comparison]:
    """Time all models on every runtime, on the CPU and on a GPU where there is one.

    Whatever goes wrong there is why that comparison has no timings: hours of retraining are not lost for it.
    """
    gpu = device if device.startswith("cuda") else "cuda:0" if torch.cuda.is_available() else None
    places = ["cpu", *([gpu] if gpu else [])]
    target = [runtime_of(config)] if measures(config) else []
    with shared_exports() as exports:
        return [
            _timed_on(runtime, place, config, models, images, exports, judged)
            for runtime in dict.fromkeys((*config.runtimes, *target))
            for place in places
        ]


def _timed_on(
    runtime: str,
    place: str,
    config: PruneConfig,
    models: Sequence[Timed],
    images: Sequence[Path],
    exports: Exports,
    judged: Judged | None,
) -> Comparison:
    """Time the models on one runtime and device."""
    timed = {model.name: model for model in models if model.file and model.runs_on(runtime, place)}
    try:
        comparison = compare(
            {name: model.file for name, model in timed.items() if model.file},
            runtime=runtime,
            imgsz={name: model.row.imgsz or 0 for name, model in timed.items()},
            device=place,
            threads=config.threads,
            images=images,
            trust=config.trust,
            imports=config.imports,
            exports=exports,
            judged=judged,
        )
    except (YoloPruneError, OSError) as error:
        LOGGER.warning("%s on %s was not measured: %s", runtime, place, error)
        comparison = Comparison(
            next(iter(timed)), dict.fromkeys(timed), {}, conditions={}, not_measured=str(error)
        )
    where = {"runtime": runtime, "device": place, "threads": check_threads(config.threads)}
    return replace(comparison, conditions={**comparison.conditions, **where})


def model_rows(models: Sequence[Timed], comparisons: Sequence[Comparison]) -> list[Row]:
    """Return one row a model, runtime and device; without timings one row a model."""
    if not comparisons:
        return [model.row for model in models]
    rows = []
    for comparison in comparisons:
        conditions = comparison.conditions
        where = {key: conditions[key] for key in ("runtime", "device", "threads")}
        for model in models:
            if not model.runs_on(conditions["runtime"], conditions["device"]):
                continue
            timing = comparison.timings.get(model.name)
            if timing is not None:
                rows.append(
                    replace(with_timing(model.row, timing), deployed=_deployed(comparison, model.name))
                )
            else:
                why = comparison.refused.get(model.name, comparison.not_measured)
                why = model.row.not_measured or why
                found = _deployed(comparison, model.name)
                rows.append(replace(model.row, **where, not_measured=why, deployed=found))
    return rows


def _deployed(comparison: Comparison, name: str) -> Deployed | None:
    """Return what a comparison found of a candidate's file beside its speed."""
    parity, accuracy = comparison.parities.get(name), comparison.accuracies.get(name)
    if parity is None and accuracy is None:
        return None
    found = Deployed()
    if accuracy is not None:
        same = {name: getattr(accuracy, name) for name in ("metric", "low", "high", "images", "not_measured")}
        found = Deployed(accuracy=accuracy.value, **same)
    if parity is not None and parity.images and math.isfinite(parity.relative):
        found = replace(found, difference=parity.relative, tolerance=parity.tolerance, compared=parity.images)
    return found


def speed_warnings(comparisons: Sequence[Comparison], folder: Path) -> list[str]:
    """Say what was not measured and how to go on."""
    warnings = []
    again = f"To measure it again: yolo-prune report run={folder} bench=true"
    if not any(str(one.conditions["device"]).startswith("cuda") for one in comparisons):
        warnings.append(_NO_GPU)
    if any(one.not_measured or one.refused for one in comparisons):
        warnings.append(f"{_MISSING}. {again}")
    if load := _worst_load(comparisons):
        warnings.append(
            f"{_BUSY}: {load}. Times and ratios between models are disturbed, the intervals say how far. {again}"
        )
    return warnings


def _worst_load(comparisons: Sequence[Comparison]) -> str:
    """Say under what load the most disturbed comparison began; nothing where all of them had CPUs to themselves."""
    begun = [
        (timing.load1, int(one.conditions["cpus"]))
        for one in comparisons
        for timing in one.timings.values()
        if timing is not None and timing.load1 is not None and "cpus" in one.conditions
    ]
    return overloaded(*max(begun)) if begun else ""


def is_speed_warning(text: str) -> bool:
    """Tell whether a warning is one of :func:`speed_warnings`."""
    return text.startswith((_NO_GPU, _MISSING, _BUSY))


def model_speedups(models: Sequence[Timed], comparisons: Sequence[Comparison]) -> list[Speedup]:
    """Return every model's FPS over the parent's, with its interval, on everything that was measured."""
    found = []
    for comparison in comparisons:
        for model in models[1:]:
            ratios, timing = comparison.ratios.get(model.name), comparison.timings.get(model.name)
            if ratios and timing is not None and "latency" in ratios:
                ratio = ratios["latency"]
                found.append(
                    Speedup(
                        model=model.row.model,
                        ratio=ratio.value,
                        low=ratio.low,
                        high=ratio.high,
                        runtime=timing.runtime,
                        device=timing.device,
                        threads=timing.threads,
                        imgsz=model.row.imgsz,
                    )
                )
    return found


def speed_conditions(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return what the report's conditions say of the timing."""
    timings = [timing for one in comparisons for timing in one.timings.values() if timing is not None]
    return {
        "timed": next((one.conditions["timed"] for one in comparisons if "timed" in one.conditions), None),
        "load1": next((timing.load1 for timing in timings), None),
        "samples": next((timing.samples for timing in timings), None),
    }
