"""Rows as aligned columns of text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST_CELL = 60


def aligned_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as columns of text, numbers to the right; the keys of the first row are the header."""
    if not rows:
        return "(none)"
    header = list(rows[0])
    body = [[_cell(row.get(key)) for key in header] for row in rows]
    numeric = [all(isinstance(row.get(key), (int, float, type(None))) for row in rows) for key in header]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    lines = []
    for line in [header, *body]:
        cells = zip(line, widths, numeric, strict=True)
        lines.append("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in cells).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_cell(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        text = ", ".join(_cell(item) for item in value)
        return (
            text
            if len(text) <= _LONGEST_CELL
            else f"{text[:_LONGEST_CELL].rpartition(',')[0]}, ... ({len(value)})"
        )
    return str(value)
