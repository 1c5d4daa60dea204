"""Which row answers which question: the parent, the final model, the control at equal cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from yolo_prune.imgsz import ImageSize, size_text
from yolo_prune.report.intervals import difference_interval
from yolo_prune.report.metric import AP, METRICS, Metric
from yolo_prune.report.rows import ACCURACY, COST, Row, RunReport, Speedup

if TYPE_CHECKING:
    from yolo_prune.accuracy.bootstrap import Interval

FINAL_ORDER = ("retrained", "pruned")
"""The model a run is judged by: the first of these that has a row."""


def metric_of(report: RunReport) -> Metric:
    """Return what the report's models are compared by; older reports know boxes alone, and say of which AP is."""
    for field, metric in METRICS.items():
        if field != AP.field and any(getattr(row, field) is not None for row in report.rows):
            return metric
    boxes = report.conditions.ap_of
    return replace(AP, title=f"{AP.title} of {boxes}") if boxes else AP


def file_title(report: RunReport) -> str:
    """Return the head of the column of what the files themselves reach."""
    found = next((row.deployed.metric for row in report.rows if row.deployed and row.deployed.metric), None)
    short = METRICS[found].short if found else metric_of(report).short
    return f"{'box ' if found == 'ap' and metric_of(report).field != 'ap' else ''}{short} of the file"


def parent_imgsz(report: RunReport) -> ImageSize | None:
    """Return the parent's input size in pixels."""
    return next((row.imgsz for row in report.rows if row.model == "parent"), None)


def label(report: RunReport, row: Row) -> str:
    """Return a row's name for a reader; a control says what it is."""
    if row.model == "control":
        return f"parent at {size_text(row.imgsz)} px" if row.imgsz else "control"
    size = parent_imgsz(report)
    if row.imgsz and size and row.imgsz != size:
        return f"{row.model} at {size_text(row.imgsz)} px"
    return row.model


def setting(row: Row) -> tuple[str | None, str | None, int | None, int | None]:
    """Return what must be equal for two rows' times to be comparable: runtime, device, threads, batch."""
    return (row.runtime, row.device, row.threads, row.batch)


def settings(report: RunReport) -> list[tuple[str | None, str | None, int | None, int | None]]:
    """Return the distinct runtime settings in order of first appearance, timed ones only if there are any."""
    timed = [setting(row) for row in report.rows if row.fps is not None]
    return list(dict.fromkeys(timed or [setting(row) for row in report.rows]))


def precision_text(precision: str | None) -> str:
    """Return how a precision is written: FP32, FP16, INT8.

    Example:
        >>> precision_text("float16")
        'FP16'
    """
    return (precision or "").replace("float", "FP").upper()


def series_of(row: Row) -> tuple[str | None, str | None, int | None, int | None, str | None]:
    """Return what rows of one line of a chart share: the runtime setting and the precision."""
    return (*setting(row), row.precision)


def series_titles(keys: Sequence[tuple[Any, ...]]) -> tuple[list[str], str]:
    """Say what tells lines of a chart apart, and once what all of them have in common.

    Args:
        keys: What :func:`series_of` returned, each once.
    """
    parts = [[setting_title((runtime, *[None] * 3)), *_details(*rest)] for runtime, *rest in keys]
    same = [len(set(column)) == 1 and len(keys) > 1 for column in zip(*parts, strict=True)]
    titles = [
        ", ".join(text for at, text in enumerate(part) if text and (at == 0 or not same[at]))
        for part in parts
    ]
    common = [text for at, text in enumerate(parts[0]) if at and same[at] and text] if parts else []
    return titles, ", ".join(common)


def _details(device: str | None, threads: int | None, batch: int | None, precision: str | None) -> list[str]:
    counted = count_threads(threads) if threads else ""
    return [device or "", counted, f"batch {batch}" if batch else "", precision_text(precision)]


def setting_title(one: tuple[Any, ...]) -> str:
    """Say a runtime setting in words."""
    runtime, device, threads, batch = one
    parts = [runtime or "runtime not stated", *_details(device, threads, batch, None)]
    return ", ".join(part for part in parts if part)


def parent_row(report: RunReport, like: Row | None = None) -> Row | None:
    """Return the parent's row under the same runtime setting as ``like`` (any setting when None)."""
    rows = [row for row in report.rows if row.model == "parent"]
    if like is not None:
        rows = [row for row in rows if setting(row) == setting(like)]
    return rows[0] if rows else None


def models(report: RunReport) -> list[Row]:
    """Return one row per model, input size and precision, with what any of its rows says of accuracy and cost."""
    found: dict[tuple[str, ImageSize | None, str | None, str | None], Row] = {}
    for row in report.rows:
        key = identity(row)
        known = found.setdefault(key, row)
        gaps = {
            name: getattr(row, name)
            for name in (*COST, *ACCURACY)
            if getattr(known, name) is None and getattr(row, name) is not None
        }
        found[key] = replace(known, **gaps)
    return list(found.values())


def model_row(report: RunReport, model: str) -> Row | None:
    """Return the first model of that name, merged over runtimes."""
    return next((row for row in models(report) if row.model == model), None)


def identity(row: Row) -> tuple[str, ImageSize | None, str | None, str | None]:
    """Return what rows of the same weights at the same input have in common: their accuracy is one number.

    Every runtime has INT8 weights of its own.
    """
    return (row.model, row.imgsz, row.precision, row.runtime if row.model == "int8" else None)


def merged(report: RunReport, row: Row) -> Row:
    """Return ``row`` with accuracy and cost that another runtime's row of the same model knows."""
    twin = next(one for one in models(report) if identity(one) == identity(row))
    return replace(row, **{name: getattr(twin, name) for name in (*COST, *ACCURACY)})


def final_row(report: RunReport) -> Row | None:
    """Return the model that the run is judged by: retrained, else pruned."""
    return next((row for name in FINAL_ORDER if (row := model_row(report, name)) is not None), None)


def kept_macs(report: RunReport, row: Row) -> float | None:
    """Return the fraction of the parent's MACs that ``row`` needs."""
    parent = model_row(report, "parent")
    gmacs = merged(report, row).gmacs
    return gmacs / parent.gmacs if parent and parent.gmacs and gmacs is not None else None


def accuracy_change(report: RunReport, row: Row) -> float | None:
    """Return the accuracy minus the parent's."""
    parent = model_row(report, "parent")
    accuracy = merged(report, row).accuracy
    known = parent is not None and parent.accuracy is not None and accuracy is not None
    return accuracy - parent.accuracy if known else None  # type: ignore[operator, union-attr]


def change_interval(report: RunReport, row: Row) -> Interval | None:
    """Return the interval of the accuracy minus the parent's, on the same images; None for the parent itself."""
    parent = model_row(report, "parent")
    return difference_interval(report, row, [(parent, 1.0)]) if parent and row.model != "parent" else None


def speedup(report: RunReport, row: Row) -> Speedup | None:
    """Return FPS over the parent's under the same setting: the alternating measurement where there is one."""
    for one in report.speedups:
        known = (
            (one.runtime, row.runtime),
            (one.device, row.device),
            (one.threads, row.threads),
            (one.imgsz, row.imgsz),
        )
        if one.model == row.model and all(mine in (None, theirs) for mine, theirs in known):
            return one
    parent = parent_row(report, row)
    if parent is None or not parent.fps or row.fps is None:
        return None
    return Speedup(
        row.model, row.fps / parent.fps, None, None, row.runtime, row.device, row.threads, row.imgsz
    )


def equal_cost_control(report: RunReport, row: Row) -> Row | None:
    """Return the control whose MACs are nearest to those of ``row``, by ratio."""
    controls = [
        one for one in models(report) if one.model == "control" and one.gmacs and one.accuracy is not None
    ]
    if not row.gmacs or not controls:
        return None
    gmacs = row.gmacs
    return min(controls, key=lambda one: abs(math.log((one.gmacs or gmacs) / gmacs)))


def count_threads(threads: int | None) -> str:
    """Return "1 thread", "2 threads" or "threads not stated"."""
    return f"{threads} thread{'' if threads == 1 else 's'}" if threads else "threads not stated"
