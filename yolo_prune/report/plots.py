"""A histogram with axes, as inline SVG in the page's own CSS variables: one drawing serves dark mode too."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from yolo_prune.report.rows import Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VARIABLES = ("ink", "muted", "line", "card", "parent", "retrained")
COLOURS = {name: f"#0{index}0{index}0{index}" for index, name in enumerate(_VARIABLES, start=1)}
"""Stand-ins that matplotlib draws with; ``_inline`` turns each into ``var(--name)``."""
_STYLE = {"svg.fonttype": "none", "font.size": 10.0, "axes.unicode_minus": True}


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
