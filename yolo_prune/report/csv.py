"""Rows as CSV: one line each, latency percentiles in their own columns, empty for "not measured"."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

from yolo_prune.imgsz import size_text
from yolo_prune.report.intervals import accuracy_interval
from yolo_prune.report.rows import Latency, Row, RunReport
from yolo_prune.report.select import change_interval


def render_csv(report: RunReport) -> str:
    """Return the rows as CSV text with a header; ``latency_ms`` becomes ``latency_ms_p10`` and so on.

    Four more columns are the bounds of the 95 % intervals of the accuracy and of its change against the parent.
    """
    percentiles = [field.name for field in fields(Latency)]
    columns: list[str] = []
    for field in fields(Row):
        columns.extend(
            [f"latency_ms_{p}" for p in percentiles] if field.name == "latency_ms" else [field.name]
        )
    columns += [f"{what}_{bound}" for what in ("accuracy", "change") for bound in ("low", "high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in report.rows:
        values = row.to_dict()
        latency = values.pop("latency_ms") or {}
        values["imgsz"] = None if row.imgsz is None else size_text(row.imgsz)
        values.update({f"latency_ms_{p}": latency.get(p) for p in percentiles})
        bounds = {"accuracy": accuracy_interval(report, row), "change": change_interval(report, row)}
        for what, one in bounds.items():
            values.update({f"{what}_low": one.low, f"{what}_high": one.high} if one else {})
        writer.writerow(values)
    return text.getvalue()
