"""Rows as CSV: one line each, latency percentiles in their own columns, empty for "not measured"."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

from yolo_prune.imgsz import size_text
from yolo_prune.report.deployed import Deployed
from yolo_prune.report.intervals import accuracy_interval
from yolo_prune.report.rows import Latency, Row, RunReport
from yolo_prune.report.select import change_interval

_NESTED: dict[str, type[Latency] | type[Deployed]] = {"latency_ms": Latency, "deployed": Deployed}


def render_csv(report: RunReport) -> str:
    """Return the rows as CSV text with a header; ``latency_ms`` becomes ``latency_ms_p10`` and so on, ``deployed`` too.

    Four more columns are the bounds of the 95 % intervals of the accuracy and of its change against the parent.
    """
    columns: list[str] = []
    for field in fields(Row):
        columns.extend(
            [f"{field.name}_{part.name}" for part in fields(_NESTED[field.name])]
            if field.name in _NESTED
            else [field.name]
        )
    columns += [f"{what}_{bound}" for what in ("accuracy", "change") for bound in ("low", "high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in report.rows:
        values = row.to_dict()
        for name in _NESTED:
            parts = values.pop(name) or {}
            values.update({f"{name}_{part}": value for part, value in parts.items()})
        values["imgsz"] = None if row.imgsz is None else size_text(row.imgsz)
        bounds = {"accuracy": accuracy_interval(report, row), "change": change_interval(report, row)}
        for what, one in bounds.items():
            values.update({f"{what}_low": one.low, f"{what}_high": one.high} if one else {})
        writer.writerow(values)
    return text.getvalue()
