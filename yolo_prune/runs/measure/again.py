"""Measure the speed of a finished run's models again, from their files; everything else of its report stays."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host, guarding_host
from yolo_prune.device import resolve_device
from yolo_prune.options import PruneConfig
from yolo_prune.report import Row, RunReport, report_from_json
from yolo_prune.report.rows import SPEED
from yolo_prune.report.select import models as models_of
from yolo_prune.runs.measure.speed import (
    BENCH_IMAGES,
    Timed,
    bench_models,
    evaluated_in,
    is_speed_warning,
    judged_by,
    model_rows,
    model_speedups,
    speed_conditions,
    speed_warnings,
)
from yolo_prune.runs.resume import ARGS_FILE, options_of_run
from yolo_prune.runtimes import RUNTIMES
from yolo_prune.runtimes.runtime import cpu_name

_FILES = {
    "parent": ("parent.pt",),
    "control": ("parent.pt",),
    "pruned": ("pruned.pt",),
    "retrained": ("best.pt",),
}


def measure_speed_again(folder: Path) -> RunReport:
    """Time the models of a run folder once more.

    Args:
        folder: A run folder with its report.json, args.yaml and weights.

    Returns:
        The report with the new times, not yet written.

    Raises:
        ConfigError: There is no readable report.json or args.yaml.
        CheckpointError: The parent's checkpoint is missing.
        DataError: The data is not where it was.
    """
    report = report_from_json(folder)
    config = options_of_run(folder / ARGS_FILE, PruneConfig)

    @guarding_host
    def measure(config: PruneConfig) -> RunReport:
        return _timed_again(report, folder, config)

    return measure(config)


def _timed_again(report: RunReport, folder: Path, config: PruneConfig) -> RunReport:
    """Do the work, with the host guarded as the run's options say."""
    began, device = time.perf_counter(), resolve_device(config.device)
    loaded = load_detector(folder / "weights" / "parent.pt", trust=config.trust)
    task = find_host(config.model).open_task(
        loaded, config.data, split=config.split, batch=config.batch, device=device, workers=config.workers
    )
    report = _with_precisions(report)
    timed = [_from_files(row, folder / "weights") for row in models_of(report)]
    judged = judged_by(config, task, timed)
    comparisons = bench_models(config, timed, task.image_files(BENCH_IMAGES), device, judged)
    conditions = replace(report.conditions, machine=cpu_name(), **speed_conditions(comparisons))
    kept = [text for text in report.warnings if not is_speed_warning(text)]
    return replace(
        report,
        rows=tuple(model_rows(timed, comparisons)),
        speedups=tuple(model_speedups(timed, comparisons)),
        conditions=conditions,
        warnings=(*kept, *speed_warnings(comparisons, folder)),
        timing_s={**report.timing_s, "bench": round(time.perf_counter() - began, 3)},
    )


def _with_precisions(report: RunReport) -> RunReport:
    """Say of an older report's models what precision they were evaluated in, so that what is timed now is theirs."""
    rows = tuple(replace(row, precision=row.precision or evaluated_in(row.model)) for row in report.rows)
    drawn = tuple(
        replace(one, precision=one.precision or evaluated_in(one.model)) for one in report.resamples
    )
    return replace(report, rows=rows, resamples=drawn)


def _from_files(row: Row, weights: Path) -> Timed:
    """Return a model of the report without its times, and its file."""
    names: tuple[str, ...] = _FILES.get(row.model, ())
    if row.model == "int8":
        ending = RUNTIMES[row.runtime or "onnxruntime"].int8
        names = (f"best{ending}", f"pruned{ending}")
    file = next((weights / name for name in names if (weights / name).exists()), None)
    never = row.not_measured if row.size_mb is None else None  # there was no such file, and the row says why
    why = never or f"its file in {weights} is missing"
    cleared: dict[str, Any] = dict.fromkeys((*SPEED, "deployed"))
    if row.model == "int8":
        cleared["runtime"] = row.runtime  # that it is made for
    return Timed(replace(row, **cleared, not_measured=None if file else why), file)
