"""One chart of accuracy against speed over all runtimes and precisions: inline SVG in the page's own colours."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from yolo_prune.report.intervals import accuracy_interval
from yolo_prune.report.rows import RunReport
from yolo_prune.report.select import label, merged, metric_of, series_of, series_titles

_Item = TypeVar("_Item")
COLOURS = 8
"""How many colours the page has for series: ``--s0`` and so on; more of them begin again."""
MARKERS = {
    "parent": "square",
    "control": "diamond",
    "pruned": "triangle",
    "retrained": "circle",
    "int8": "cross",
}
"""Shape of a model's points; of others a circle."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480.0, 320.0, 46.0, 14.0, 12.0, 40.0
_LOGARITHMIC = 5.0  # from this ratio of the fastest to the slowest on


@dataclass(frozen=True)
class Point:
    """One model on one runtime: images per second, accuracy, and the bounds of its interval where there is one."""

    name: str
    model: str
    fps: float
    accuracy: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """The points that one entry of the legend shows and hides."""

    title: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """A chart with its legend.

    Attributes:
        svg: The ``<svg>`` element; a series number k is in elements of the class ``sk``.
        titles: Of the series, in order.
        markers: Of the models in it: name and ``<svg>`` element.
        front: Whether the best of all points are joined by a line.
        shared: What all series have in common, in words.
    """

    svg: str
    titles: tuple[str, ...]
    markers: tuple[tuple[str, str], ...]
    front: bool
    shared: str = ""


def series_of_report(report: RunReport) -> dict[tuple[Any, ...], tuple[Point, ...]]:
    """Return the measured points of a run, for every runtime, device, number of threads and precision."""
    found: dict[tuple[Any, ...], list[Point]] = {}
    for row in (merged(report, row) for row in report.rows):
        if row.fps is None or row.accuracy is None:
            continue
        bounds = accuracy_interval(report, row)
        reach = (bounds.low, bounds.high) if bounds else (None, None)
        point = Point(label(report, row), row.model, row.fps, row.accuracy, *reach)
        found.setdefault(series_of(row), []).append(point)
    return {key: tuple(points) for key, points in found.items()}


def chart_of_report(report: RunReport) -> Chart | None:
    """Draw a run: one line for every runtime, device, number of threads and precision."""
    found = series_of_report(report)
    titles, shared = series_titles(tuple(found))
    series = [Series(title, points) for title, points in zip(titles, found.values(), strict=True)]
    return draw(series, metric_of(report).title, shared)


def draw(series: Sequence[Series], metric: str, shared: str = "", joined: bool = True) -> Chart | None:
    """Draw series into one chart.

    Args:
        series: Each in a colour of its own.
        metric: What the accuracy is called.
        shared: What all series have in common, in words.
        joined: Join the points that no other beats in both, which is fair where all are of one machine.

    Returns:
        The chart, None with fewer than two points.
    """
    points = [point for one in series for point in one.points]
    if len(points) < 2:
        return None
    across, marks_across = _scale([point.fps for point in points], _LEFT, _WIDTH - _RIGHT, positive=True)
    heights = [value for p in points for value in (p.accuracy, p.low, p.high) if value is not None]
    down, marks_down = _scale(heights, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_axes(across, marks_across, down, marks_down, metric)]
    best = front(points, lambda one: (one.fps, one.accuracy)) if joined else []
    if len(best) > 1:
        way = " ".join(f"{across(p.fps):.1f},{down(p.accuracy):.1f}" for p in best)
        parts.append(f'<polyline class="front" points="{way}"/>')
    for number, one in enumerate(series):
        drawn = (_point(point, across, down, named=len(series) == 1) for point in one.points)
        parts.append(f'<g class="s{number % COLOURS} series-{number}">{_rivals(one, across, down)}')
        parts += [*drawn, "</g>"]
    head = f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{html.escape(_spoken(series, metric))}">'
    models = [name for name in MARKERS if any(point.model == name for point in points)]
    keys = tuple(
        (name, f'<svg class="marker" viewBox="-8 -8 16 16">{_marker(name)}</svg>') for name in models
    )
    titles = tuple(one.title for one in series)
    return Chart("\n".join([head, *parts, "</svg>"]), titles, keys, len(best) > 1, shared)


def _spoken(series: Sequence[Series], metric: str) -> str:
    points = [(one.title, p) for one in series for p in one.points]
    said = [f"{title}: {p.name} {p.accuracy:.3f} at {p.fps:.1f} FPS" for title, p in points]
    return f"{metric} against FPS: {'; '.join(said)}"


def front(items: Iterable[_Item], of: Callable[[_Item], tuple[float, float]]) -> list[_Item]:
    """Return what nothing else beats in both speed and accuracy, the fastest last.

    Args:
        items: Anything.
        of: Speed and accuracy of one of them, the larger the better.
    """
    values = sorted(((of(item), item) for item in items), key=lambda pair: pair[0])

    def beaten(mine: tuple[float, float]) -> bool:
        return any(fast >= mine[0] and good >= mine[1] and (fast, good) != mine for (fast, good), _ in values)

    return [item for mine, item in values if not beaten(mine)]


def _scale(
    values: Sequence[float], start: float, end: float, *, positive: bool = False
) -> tuple[Callable[[float], float], list[float]]:
    """Return where a value lies between two pixels, and the values that an axis names."""
    low, high = min(values), max(values)
    if positive and low > 0 and high / low >= _LOGARITHMIC:
        first, last = math.log(low) - 0.12, math.log(high) + 0.12
        marks = [step * 10.0**power for power in range(-3, 7) for step in (1, 2, 5)]
        found = [mark for mark in marks if first <= math.log(mark) <= last]
        return lambda value: start + (math.log(value) - first) / (last - first) * (end - start), found
    margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = max(low - margin, 0.0) if low >= 0 else low - margin, high + margin
    return lambda value: start + (value - low) / (high - low) * (end - start), ticks(low, high)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two bounds, at most so many and one more.

    Example:
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(
    across: Callable[[float], float],
    marks_across: Sequence[float],
    down: Callable[[float], float],
    marks_down: Sequence[float],
    metric: str,
) -> Iterable[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in marks_across:
        x = across(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>'
    for value in marks_down:
        y = down(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    middle = (_TOP + bottom) / 2
    yield f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">FPS (images per second)</text>'
    turned = f'transform="rotate(-90 11 {middle})" text-anchor="middle"'
    yield f'<text x="11" y="{middle}" {turned}>{html.escape(metric)}</text>'


def _rivals(one: Series, across: Callable[[float], float], down: Callable[[float], float]) -> str:
    """Draw the line that pruning has to beat: the parent at falling resolutions."""
    rivals = sorted((p.fps, p.accuracy) for p in one.points if p.model in ("parent", "control"))
    if len(rivals) < 2:
        return ""
    way = " ".join(f"{across(fps):.1f},{down(accuracy):.1f}" for fps, accuracy in rivals)
    return f'<polyline class="rivals" points="{way}"/>'


def _point(
    point: Point, across: Callable[[float], float], down: Callable[[float], float], *, named: bool
) -> str:
    x, y = across(point.fps), down(point.accuracy)
    bar = ""
    if point.low is not None and point.high is not None:
        bar = f'<line class="reach" x1="0" x2="0" y1="{down(point.low) - y:.1f}" y2="{down(point.high) - y:.1f}"/>'
    said = html.escape(f"{point.name}: {point.accuracy:.3f} at {point.fps:.1f} FPS")
    turn = x > 0.72 * _WIDTH  # a name that begins there would leave the picture
    place = f'x="{-9 if turn else 9}" y="-6"' + (' text-anchor="end"' if turn else "")
    name = f"<text {place}>{html.escape(point.name)}</text>" if named else ""
    mark = _marker(point.model)
    return f'<g transform="translate({x:.1f} {y:.1f})"><title>{said}</title>{bar}{mark}{name}</g>'


def _marker(model: str) -> str:
    return {
        "square": '<rect class="dot" x="-5" y="-5" width="10" height="10"/>',
        "diamond": '<path class="dot" d="M0-6.5 6.5 0 0 6.5-6.5 0z"/>',
        "triangle": '<path class="dot" d="M0-6.5 6 5H-6z"/>',
        "circle": '<circle class="dot" r="5.5"/>',
        "cross": '<path class="dot" d="M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z"/>',
    }[MARKERS.get(model, "circle")]
