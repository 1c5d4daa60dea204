"""Where the time of a step goes: preparing the image, network, what follows it, as stacked bars."""

from __future__ import annotations

import html
from dataclasses import dataclass

from yolo_prune.report.rows import Row, RunReport
from yolo_prune.report.select import label

PHASES = {"pre": "preparing the image", "net": "network", "post": "after the network"}


@dataclass(frozen=True)
class PhaseBar:
    """One row's bar.

    Attributes:
        name: Of the model.
        row: Index in the report's rows.
        svg: The bar.
        text: Its whole length.
        note: Its parts.
    """

    name: str
    row: int
    svg: str
    text: str
    note: str


def phase_bars(report: RunReport) -> list[PhaseBar]:
    """Return a bar for every row whose phases were timed, all to one scale."""
    timed = {index: parts for index, row in enumerate(report.rows) if (parts := _parts(row))}
    longest = max((sum(parts.values()) for parts in timed.values()), default=0.0)
    found = []
    for index, parts in timed.items() if longest else ():
        spoken = ", ".join(f"{PHASES[name]} {_ms(value)}" for name, value in parts.items())
        short = " + ".join(_ms(value) for value in parts.values())
        name = label(report, report.rows[index])
        found.append(
            PhaseBar(
                name,
                index,
                _svg(parts, longest, f"{name}: {spoken} ms"),
                f"{_ms(sum(parts.values()))} ms",
                short,
            )
        )
    return found


def _parts(row: Row) -> dict[str, float]:
    """Return the phases of a row in milliseconds; nothing where one was not timed."""
    found = {name: getattr(row, f"{name}_ms") for name in PHASES}
    return {} if None in found.values() else found


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _svg(parts: dict[str, float], longest: float, said: str) -> str:
    """Draw one bar; it is stretched to the width that there is."""
    rectangles, start = [], 0.0
    for name, value in parts.items():
        width = 100 * value / longest
        rectangles.append(f'<rect class="{name}" x="{start:.2f}" width="{width:.2f}" height="10"/>')
        start += width
    box = 'viewBox="0 0 100 10" preserveAspectRatio="none"'
    head = f'<svg class="stack" {box} role="img" aria-label="{html.escape(said)}">'
    return f"{head}{''.join(rectangles)}</svg>"
