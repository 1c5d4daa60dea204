"""Reports: report.json first, then Markdown, CSV and HTML, all made from the JSON."""

from __future__ import annotations

from yolo_prune.report.metric import METRICS, Metric
from yolo_prune.report.resampled import Resampled
from yolo_prune.report.rows import (
    ClassAp,
    Conditions,
    Equivalence,
    Histogram,
    HostMap,
    Latency,
    LayerWidth,
    PlanSummary,
    Row,
    RunReport,
    Speedup,
    StageAp,
    make_row,
    report_from_json,
    with_timing,
    write_json,
)
from yolo_prune.report.table import render_table
from yolo_prune.report.write import rebuild_report, write_report

__all__ = [
    "METRICS",
    "ClassAp",
    "Conditions",
    "Equivalence",
    "Histogram",
    "HostMap",
    "Latency",
    "LayerWidth",
    "Metric",
    "PlanSummary",
    "Resampled",
    "Row",
    "RunReport",
    "Speedup",
    "StageAp",
    "make_row",
    "rebuild_report",
    "render_table",
    "report_from_json",
    "with_timing",
    "write_json",
    "write_report",
]
