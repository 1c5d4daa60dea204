"""A network drawn layer by layer: a bar for each group of channels, what stays of it, and what is frozen and why."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.errors import ConfigError
from yolo_prune.files import replacing, write_text
from yolo_prune.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".html", ".svg", ".png")
_COLUMN, _ROW, _TOP, _ROWS = 372.0, 16.0, 8.0, 48
_NAME, _BAR = 166.0, 108.0  # what a name and the longest bar take; the number stands behind the bar
_LONGEST_NAME, _NOTES = 27, 9
_SIZE = 11.0
_COLOURS = {
    "kept": "#0b7a8f",
    "frozen": "#98a4b0",
    "gone": "#e9ecf0",
    "ink": "#16191d",
    "muted": "#56606b",
    "page": "#ffffff",
}
"""Of a picture of its own; a page has them by these names as CSS variables."""
_DPI = 200


@dataclass(frozen=True)
class Width:
    """One group of channels.

    Attributes:
        name: Of the layer that makes them first.
        width: How many there are.
        kept: How many stay, all of them without a plan.
        frozen: Why some must stay; empty where all are free.
        members: Layers that make or read them.
        gmacs: What goes when the whole group goes, in 1e9.
    """

    name: str
    width: int
    kept: int
    frozen: str
    members: tuple[str, ...] = ()
    gmacs: float = 0.0


@dataclass(frozen=True)
class _Shape:
    """A rectangle, or a text; ``title`` is what a page shows under the mouse."""

    x: float
    y: float
    width: float = 0.0
    colour: str = "ink"
    text: str = ""
    end: bool = False
    title: str = ""


@dataclass(frozen=True)
class Drawing:
    """What is drawn, as columns of rows, and what stands around them.

    Attributes:
        title: Of the picture.
        summary: What it is all together, in a sentence.
        columns: Shapes of each column, its own corner at (0, 0).
        height: Of the longest column, in pixels.
        notes: Reasons by their number, most frequent first, and of how many groups.
        planned: Whether a plan says what stays.
    """

    title: str
    summary: str
    columns: tuple[tuple[_Shape, ...], ...]
    height: float
    notes: tuple[str, ...]
    planned: bool


def widths_of(rows: Iterable[Mapping[str, Any]]) -> list[Width]:
    """Return the rows of ``inspect`` as what is drawn."""
    return [
        Width(
            str(row["group"]),
            int(row["width"]),
            int(row.get("kept", row["width"])),
            str(row["frozen"] or ""),
            tuple(row["members"]),
            float(row["gmacs"]),
        )
        for row in rows
    ]


def check_ending(path: str) -> None:
    """Refuse a picture of another kind, before a model is loaded for it.

    Raises:
        ConfigError: The name ends in something else.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise ConfigError(f"plot= draws {', '.join(ENDINGS)}, got '{path}'.")


def write_network(path: Path, title: str, widths: Sequence[Width], *, planned: bool) -> Path:
    """Draw a network into a page, an SVG or a PNG, as the name ends.

    Args:
        path: File to write.
        title: Of the picture.
        widths: Its groups, in the order of the forward pass.
        planned: Whether ``kept`` of them comes from a plan.

    Returns:
        ``path``.
    """
    drawing = draw_network(title, widths, planned=planned)
    kind = path.suffix.lower()
    if kind == ".png":
        return _write_png(drawing, path)
    return write_text(path, render_page(drawing) if kind == ".html" else render_svg(drawing))


def draw_network(title: str, widths: Sequence[Width], *, planned: bool) -> Drawing:
    """Lay a network out: columns from left to right, depth downwards, bars as long as the square root of the width."""
    kinds = _kinds(widths).most_common(_NOTES)
    numbers = {kind: number for number, (kind, _) in enumerate(kinds, 1)}
    widest = max((one.width for one in widths), default=1)
    count = max(math.ceil(len(widths) / _ROWS), 1)
    share = max(math.ceil(len(widths) / count), 1)
    columns = [widths[start : start + share] for start in range(0, max(len(widths), 1), share)]
    drawn = tuple(
        tuple(
            shape
            for row, one in enumerate(column)
            for shape in _row(row, one, widest, numbers, planned=planned)
        )
        for column in columns
    )
    notes = tuple(f"{kind}: {counted(groups, 'group')}" for kind, groups in kinds)
    return Drawing(title, _summary(widths, planned=planned), drawn, share * _ROW + 2 * _TOP, notes, planned)


def _kinds(widths: Sequence[Width]) -> Counter[str]:
    """Count groups by why they are frozen, wherever that is."""
    return Counter(_kind(one.frozen) for one in widths if one.frozen)


def _kind(reason: str) -> str:
    """Return a reason without the places that it names: ``is an output`` for ``is an output in 'the model'``."""
    return "; ".join(dict.fromkeys(re.sub(r" in '[^']*'$", "", one) for one in reason.split("; ")))


def _row(row: int, one: Width, widest: int, numbers: Mapping[str, int], *, planned: bool) -> Iterator[_Shape]:
    top = _TOP + row * _ROW
    full, kept = (_BAR * (value / widest) ** 0.5 for value in (one.width, one.kept))
    said = (
        f"{one.name}: {one.kept} of {one.width} channels stay"
        if planned
        else f"{one.name}: {one.width} channels"
    )
    said += f"; {one.gmacs:.3g} GMACs go with all of them"
    if one.frozen:
        said += f"; frozen: {one.frozen}"
    if len(one.members) > 1:
        said += f"; together: {', '.join(one.members)}"
    name = one.name if len(one.name) <= _LONGEST_NAME else f"…{one.name[1 - _LONGEST_NAME :]}"
    number = f"{one.kept}/{one.width}" if planned else f"{one.width}"
    note = f" ({numbers.get(_kind(one.frozen), 'frozen')})" if one.frozen else ""
    yield _Shape(_NAME, top + 12, text=name, end=True, title=said)
    left = _NAME + 6
    yield _Shape(left, top + 2, full, "gone", title=said)
    if one.kept:
        yield _Shape(left, top + 2, kept, "frozen" if one.frozen else "kept", title=said)
    yield _Shape(left + full + 5, top + 12, colour="muted", text=f"{number}{note}", title=said)


def _summary(widths: Sequence[Width], *, planned: bool) -> str:
    frozen = [one for one in widths if one.frozen]
    all_channels, stuck = (sum(one.width for one in of) for of in (widths, frozen))
    text = f"{len(widths)} groups of {all_channels:,} channels; {len(frozen)} groups of {stuck:,} are frozen."
    if planned:
        text += f" {sum(one.kept for one in widths):,} channels stay."
    return text


def legend(drawing: Drawing) -> list[tuple[str, str]]:
    """Return colour and meaning of what is drawn."""
    kept = "channels that stay" if drawing.planned else "channels that can be cut"
    return [
        ("kept", kept),
        ("frozen", "in a group where some are frozen"),
        *([("gone", "channels that go")] if drawing.planned else []),
    ]


def render_svg(drawing: Drawing) -> str:
    """Return one picture with everything in it."""
    width, height = _extent(drawing)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="system-ui, sans-serif" font-size="{_SIZE:g}">',
        f'<rect width="{width:g}" height="{height:g}" fill="{_COLOURS["page"]}"/>',
        *(_svg_shape(shape, _COLOURS.__getitem__) for shape in _whole(drawing)),
    ]
    return "\n".join([*parts, "</svg>\n"])


def render_page(drawing: Drawing) -> str:
    """Return a page that loads nothing: its columns stand beside each other where there is room."""
    from yolo_prune.report.html import page_template

    columns = [
        f'<svg viewBox="0 0 {_COLUMN:g} {drawing.height:g}">'
        + "\n".join(_svg_shape(shape, "var(--{})".format) for shape in column)
        + "</svg>"
        for column in drawing.columns
    ]
    template = page_template("network.html.j2")
    return template.render(drawing=drawing, columns=columns, legend=legend(drawing))


def _svg_shape(shape: _Shape, colour: Any) -> str:
    title = f"<title>{html.escape(shape.title)}</title>" if shape.title else ""
    fill = colour(shape.colour)
    if not shape.text:
        size = f'width="{shape.width:.1f}" height="12"'
        return f'<rect x="{shape.x:g}" y="{shape.y:g}" {size} fill="{fill}">{title}</rect>'
    anchor = ' text-anchor="end"' if shape.end else ""
    return f'<text x="{shape.x:.1f}" y="{shape.y:g}" fill="{fill}"{anchor}>{title}{html.escape(shape.text)}</text>'


def _extent(drawing: Drawing) -> tuple[float, float]:
    """Return width and height of a picture with its title, legend and notes."""
    width = max(len(drawing.columns), 2) * _COLUMN
    return width, 74 + drawing.height + len(_note_lines(drawing, width)) * _ROW + _TOP


def _note_lines(drawing: Drawing, width: float) -> list[str]:
    """Return the reasons in lines that fit."""
    fitting = int(width / 6.2)
    return [
        line
        for number, reason in enumerate(drawing.notes, 1)
        for line in textwrap.wrap(f"({number}) {reason}", fitting, subsequent_indent="      ")
    ]


def _whole(drawing: Drawing) -> Iterator[_Shape]:
    """Yield all shapes of one picture."""
    width, _ = _extent(drawing)
    yield _Shape(12, 22, text=drawing.title)
    yield _Shape(12, 40, colour="muted", text=drawing.summary)
    left = 12.0
    for colour, meaning in legend(drawing):
        yield _Shape(left, 50, 12, colour)
        yield _Shape(left + 17, 60, colour="muted", text=meaning)
        left += 30 + 6.2 * len(meaning)
    yield _Shape(left, 60, colour="muted", text="bars: square root of the width")
    for column, shapes in enumerate(drawing.columns):
        for shape in shapes:
            yield _moved(shape, column * _COLUMN, 70)
    for row, line in enumerate(_note_lines(drawing, width)):
        yield _Shape(12, 84 + drawing.height + row * _ROW, colour="muted", text=line)


def _moved(shape: _Shape, x: float, y: float) -> _Shape:
    return replace(shape, x=shape.x + x, y=shape.y + y)


def _write_png(drawing: Drawing, path: Path) -> Path:
    from matplotlib.figure import Figure

    width, height = _extent(drawing)
    figure = Figure(figsize=(width / 100, height / 100), dpi=_DPI, facecolor=_COLOURS["page"])
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for shape in _whole(drawing):
        _paint(axes, shape)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return path


def _paint(axes: Axes, shape: _Shape) -> None:
    from matplotlib.patches import Rectangle

    colour = _COLOURS[shape.colour]
    if shape.text:
        side = "right" if shape.end else "left"
        axes.text(
            shape.x,
            shape.y,
            shape.text,
            color=colour,
            ha=side,
            va="baseline",
            fontsize=_SIZE * 0.66,
            parse_math=False,
        )
    else:
        axes.add_patch(Rectangle((shape.x, shape.y), shape.width, 12, facecolor=colour, linewidth=0))
