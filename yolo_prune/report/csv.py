"""Rows as CSV: one line each, latency percentiles in their own columns, empty for "not measured"."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

from yolo_prune.report.rows import Latency, Row, RunReport


def render_csv(report: RunReport) -> str:
    """Return the rows as CSV text with a header; ``latency_ms`` becomes ``latency_ms_p10`` and so on."""
    percentiles = [field.name for field in fields(Latency)]
    columns: list[str] = []
    for field in fields(Row):
        columns.extend(
            [f"latency_ms_{p}" for p in percentiles] if field.name == "latency_ms" else [field.name]
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in report.rows:
        values = row.to_dict()
        latency = values.pop("latency_ms") or {}
        writer.writerow({**values, **{f"latency_ms_{p}": latency.get(p) for p in percentiles}})
    return text.getvalue()
