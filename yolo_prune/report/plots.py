"""Charts with axes, as inline SVG in the page's own CSS variables: one drawing serves dark mode too."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from yolo_prune.report.intervals import accuracy_interval
from yolo_prune.report.rows import Histogram, Row, RunReport
from yolo_prune.report.select import label, merged, metric_of, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VARIABLES = ("ink", "muted", "line", "card", "parent", "pruned", "retrained", "control", "int8")
COLOURS = {name: f"#0{index}0{index}0{index}" for index, name in enumerate(_VARIABLES, start=1)}
"""Stand-ins that matplotlib draws with; ``_inline`` turns each into ``var(--name)``."""
_MARKERS = {"parent": "s", "pruned": "^", "retrained": "o", "control": "D", "int8": "P"}
_STYLE = {"svg.fonttype": "none", "font.size": 10.0, "axes.unicode_minus": True}


def accuracy_against_fps(report: RunReport, of: tuple[Any, ...]) -> str | None:
    """Draw accuracy against FPS under one runtime setting: models, controls and the line that pruning has to beat.

    Args:
        report: The run.
        of: One of ``select.settings(report)``.

    Returns:
        An ``<svg>`` element, or None with fewer than two measured points.
    """
    found = [merged(report, row) for row in report.rows if setting(row) == of]
    rows = [(row, row.fps, row.accuracy) for row in found if row.fps is not None and row.accuracy is not None]
    if len(rows) < 2:
        return None
    figure, axes = _canvas((4.9, 3.7))
    rivals = sorted((fps, ap) for row, fps, ap in rows if row.model in ("parent", "control"))
    if len(rivals) > 1:
        axes.plot(*zip(*rivals, strict=True), "--", color=COLOURS["control"], lw=1.2, zorder=1)
    _path(axes, rows)
    metric = metric_of(report)
    for row, fps, ap in rows:
        colour = COLOURS.get(row.model, COLOURS["ink"])
        bounds = accuracy_interval(report, row)
        if bounds:  # a percentile interval need not hold the value itself
            reach = [[max(ap - bounds.low, 0.0)], [max(bounds.high - ap, 0.0)]]
            axes.errorbar(fps, ap, yerr=reach, color=colour, lw=1, capsize=2.5, zorder=2)
        marker = _MARKERS.get(row.model, "o")
        axes.plot(fps, ap, marker, color=colour, ms=8, mec=COLOURS["card"], mew=1, zorder=3)
        _name(axes, label(report, row), fps, ap, colour)
    axes.margins(x=0.22, y=0.16)
    axes.set_xlabel("FPS (images per second)", color=COLOURS["muted"])
    axes.set_ylabel(metric.title, color=COLOURS["muted"])
    points = [f"{label(report, row)} {metric.short} {ap:.3f} at {fps:.1f} FPS" for row, fps, ap in rows]
    return _inline(figure, f"{metric.short} against FPS: {'; '.join(points)}", f"fps-{of}")


def _path(axes: Axes, rows: list[tuple[Row, float, float]]) -> None:
    """Draw the way of the model: parent, pruned, retrained, quantised."""
    way = [
        (fps, ap)
        for name in ("parent", "pruned", "retrained", "int8")
        for row, fps, ap in rows
        if row.model == name
    ]
    arrow = {"arrowstyle": "-|>", "color": COLOURS["muted"], "lw": 1, "shrinkA": 7, "shrinkB": 7}
    for start, end in pairwise(way):
        axes.annotate("", end, start, arrowprops=arrow, zorder=1)


def _name(axes: Axes, text: str, x: float, y: float, colour: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(9, 5),
        textcoords="offset points",
        fontsize=9,
        color=colour,
        parse_math=False,
        zorder=4,
    )


def bn_histogram(scales: Histogram) -> str | None:
    """Draw |BN scale| of all channels before (outline) and after the cut (filled).

    Returns:
        An ``<svg>`` element, or None when the histogram is empty or its counts do not fit its edges.
    """
    if not scales.before or not len(scales.before) == len(scales.after) == len(scales.edges) - 1:
        return None
    figure, axes = _canvas((4.9, 3.2))
    axes.stairs(scales.after, scales.edges, fill=True, color=COLOURS["retrained"], alpha=0.55, label="after")
    axes.stairs(scales.before, scales.edges, color=COLOURS["parent"], lw=1.8, label="before")
    axes.set_xlim(scales.edges[0], scales.edges[-1])
    axes.set_xlabel("|BatchNorm scale|", color=COLOURS["muted"])
    axes.set_ylabel("channels", color=COLOURS["muted"])
    axes.legend(frameon=False, labelcolor=COLOURS["ink"], reverse=True)
    counts = f"{sum(scales.before):,} channels before, {sum(scales.after):,} after"
    return _inline(figure, f"Histogram of BatchNorm scales: {counts}", "bn")


def _canvas(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.grid(color=COLOURS["line"], lw=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["line"])
    axes.tick_params(colors=COLOURS["line"], labelcolor=COLOURS["muted"])
    return figure, axes


def _inline(figure: Figure, description: str, salt: str) -> str:
    """Render to SVG fit for a page: no fixed size, font or metadata, colours as CSS variables."""
    import html

    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure.savefig(
            text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {box.group(0) if box else ""} role="img" aria-label="{html.escape(description)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    svg = re.sub(r"(font:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
