"""report.html: one file with everything in it, nothing loaded from anywhere; its script hides lines of a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolo_prune.imgsz import size_text
from yolo_prune.report.intervals import count_resamples, signed
from yolo_prune.report.pareto import chart_of_report
from yolo_prune.report.phases import PHASES, phase_bars
from yolo_prune.report.plots import bn_histogram
from yolo_prune.report.rows import ClassAp, Row, RunReport
from yolo_prune.report.select import (
    accuracy_change,
    change_interval,
    final_row,
    identity,
    kept_macs,
    metric_of,
    model_row,
    precision_text,
    setting,
    setting_title,
    speedup,
)
from yolo_prune.report.table import NOT_MEASURED, conditions_lines, format_gmacs, make_table
from yolo_prune.report.verdicts import verdicts

if TYPE_CHECKING:
    from jinja2 import Template

    from yolo_prune.report.compare import ComparedRuns
    from yolo_prune.report.examples import Examples

STAGES = {
    "parent": "parent",
    "cut": "bare cut",
    "bn": "BatchNorm re-estimated",
    "fold": "folded into the readers",
    "fold_bn": "folded, then BatchNorm re-estimated",
    "imitation": "imitating the parent",
    "retrained": "retrained",
}
"""What the usual stage names mean; others are printed as they are."""
MANY_CLASSES = 16
LOSERS = 3


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class Bar:
    """One bar of a list: ``value`` and ``mark`` in per cent of the widest, ``text`` beside it."""

    name: str
    value: float
    mark: float
    text: str
    note: str = ""
    kind: str = ""


def render_html(
    report: RunReport,
    files: Sequence[str] = (),
    examples: Examples | None = None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Return the report as one self-contained HTML page.

    Args:
        report: A run.
        files: Paths relative to the page that deserve a link, for example ``plan.json``.
        examples: Images on which the models differ.
        pictures: Of those, by the names of their files, as data URIs.

    Returns:
        HTML text: styles and charts inside, light and dark by the reader's preference.
    """
    from markupsafe import Markup

    final = final_row(report)
    histogram = bn_histogram(report.bn_scales) if report.bn_scales else None
    classes = class_rows(report)
    return page_template("report.html.j2").render(
        report=report,
        tiles=tiles(report, final) if final else (),
        verdicts=verdicts(report),
        table=make_table(report, runtime_column=False),
        kinds=[row.model for row in report.rows],
        groups=_groups(report),
        conditions=conditions_lines(report),
        chart=chart_of_report(report),
        phases=phase_bars(report),
        phase_names=PHASES,
        histogram=Markup(histogram) if histogram else None,
        resamples=count_resamples(report),
        metric=metric_of(report),
        conditions_table=_conditions(report),
        gmacs=format_gmacs,
        size_text=size_text,
        precision_text=precision_text,
        stages=stage_bars(report),
        layers=layer_bars(report),
        classes=classes[:MANY_CLASSES],
        more_classes=classes[MANY_CLASSES:],
        losers=losers_sentence(report),
        timings=timing_bars(report),
        frozen=[layer for layer in report.layers if layer.frozen],
        files=files,
        examples=examples,
        pictures=pictures or {},
        final=final.model if final else "pruned",
    )


def render_comparison_html(compared: ComparedRuns) -> str:
    """Return runs beside each other as one self-contained page."""
    return page_template("compare.html.j2").render(compared=compared)


def page_template(name: str) -> Template:
    """Return a page's template; ``svg`` marks what the package has drawn."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("yolo_prune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template(name)


def _conditions(report: RunReport) -> dict[str, object]:
    """Return what the numbers were measured on, by the name that the page gives it."""
    one = report.conditions
    boxes = {} if metric_of(report).field == "top1" else {"Boxes": one.boxes}
    return {
        **{"Timed": one.timed, "Data": one.data, "Split": one.split, "Images": one.images, **boxes},
        **{"Evaluator": one.evaluator, "Machine": one.machine, "Load average": one.load1},
        **{"Samples": one.samples, "Seed": report.seed},
    }


def _groups(report: RunReport) -> dict[int, str]:
    """Return the runtime setting that begins at a row's index, where there is more than one."""
    ways = [setting(row) for row in report.rows]
    if len(set(ways)) < 2:
        return {}
    return {i: setting_title(way) for i, way in enumerate(ways) if i == 0 or way != ways[i - 1]}


def tiles(report: RunReport, final: Row) -> tuple[Tile, ...]:
    """Return the four headline numbers: accuracy, MACs, speed, parameters."""
    parent = model_row(report, "parent") or Row("parent")
    kept, change = kept_macs(report, final), accuracy_change(report, final)
    ap_note = (
        f"{change:+.3f} against the parent's {parent.accuracy:.3f}, {signed(change_interval(report, final))}"
        if change is not None
        else "no parent to compare"
    )
    gmacs = (
        f"{format_gmacs(final.gmacs)} of {format_gmacs(parent.gmacs)} GMACs"
        if final.gmacs and parent.gmacs
        else NOT_MEASURED
    )
    params = f"{final.params_m / parent.params_m:.0%}" if final.params_m and parent.params_m else ""
    return (
        Tile(
            metric_of(report).title,
            NOT_MEASURED if final.accuracy is None else f"{final.accuracy:.3f}",
            ap_note,
        ),
        Tile("MACs kept", NOT_MEASURED if kept is None else f"{100 * kept:.1f} %", gmacs),
        _speed_tile(report, final),
        Tile(
            "Parameters",
            NOT_MEASURED if final.params_m is None else f"{final.params_m:.2f} M",
            f"{params.replace('%', ' %')} of the parent's {parent.params_m:.2f} M" if params else "",
        ),
    )


def _speed_tile(report: RunReport, final: Row) -> Tile:
    rows = [row for row in report.rows if identity(row) == identity(final) and row.fps]
    if not rows:
        return Tile("Speed", NOT_MEASURED, "")
    best = max(rows, key=lambda row: row.fps or 0.0)
    gain = speedup(report, best)
    note = f"{best.fps:.1f} FPS, {setting_title(setting(best))}"
    return Tile("Speed-up" if gain else "FPS", f"{gain.ratio:.2f}x" if gain else f"{best.fps:.1f}", note)


def stage_bars(report: RunReport) -> list[Bar]:
    """Return the accuracy after each step of recovery; the mark is the parent's."""
    parent = model_row(report, "parent")
    goal = parent.accuracy if parent and parent.accuracy else 0.0
    top = max([goal, *(stage.accuracy or 0.0 for stage in report.stages)]) or 1.0
    return [
        Bar(
            STAGES.get(stage.name, stage.name),
            100 * (stage.accuracy or 0.0) / top,
            100 * goal / top,
            NOT_MEASURED if stage.accuracy is None else f"{stage.accuracy:.3f}",
            stage.note or "",
            {"retrained": "retrained", "parent": "parent"}.get(stage.name, "pruned"),
        )
        for stage in report.stages
    ]


def layer_bars(report: RunReport) -> list[Bar]:
    """Return kept over parent channels of every layer; bars are as long as the square root of the width."""
    widest = max((layer.parent for layer in report.layers), default=1) or 1
    return [
        Bar(
            layer.name.removesuffix(".conv"),
            100 * (layer.kept / widest) ** 0.5,
            100 * (layer.parent / widest) ** 0.5,
            f"{layer.kept}/{layer.parent}",
            layer.frozen or "",
            "frozen" if layer.frozen else "",
        )
        for layer in report.layers
    ]


def _final_ap(one: ClassAp) -> float | None:
    return one.retrained if one.retrained is not None else one.pruned


def _loss(one: ClassAp) -> float:
    final = _final_ap(one)
    return one.parent - final if one.parent is not None and final is not None else float("-inf")


def class_rows(report: RunReport) -> list[Bar]:
    """Return the accuracy per class, largest loss first: ``value`` the final model's, ``mark`` the parent's."""
    found = []
    for one in sorted(report.per_class, key=_loss, reverse=True):
        final = _final_ap(one)
        text = NOT_MEASURED if final is None else f"{final:.3f}"
        note = _count(one)
        change = f"{-_loss(one):+.3f}" if one.parent is not None and final is not None else ""
        found.append(Bar(one.name, 100 * (final or 0.0), 100 * (one.parent or 0.0), text, note, change))
    return found


def losers_sentence(report: RunReport) -> str:
    """Name the classes that lost most, or say that none did."""
    compared = [one for one in report.per_class if _loss(one) > float("-inf")]
    lost = sorted((one for one in compared if _loss(one) > 0), key=_loss, reverse=True)[:LOSERS]
    if not lost:
        return f"No class lost {metric_of(report).short}." if compared else ""
    named = ", ".join(
        f"{one.name} ({-_loss(one):+.3f}{f' on {_count(one)}' if _count(one) else ''})" for one in lost
    )
    counted = "images" if lost[0].images is not None else "boxes"
    return f"Largest losers: {named}. A class with few {counted} is noisier than the mean."


def _count(one: ClassAp) -> str:
    if one.images is not None:
        return f"{one.images:,} image{'' if one.images == 1 else 's'}"
    return f"{one.boxes:,} box{'' if one.boxes == 1 else 'es'}" if one.boxes is not None else ""


def timing_bars(report: RunReport) -> list[Bar]:
    """Return seconds per stage of the run."""
    longest = max(report.timing_s.values(), default=1.0) or 1.0
    return [
        Bar(name.replace("_", " "), 100 * seconds / longest, 0.0, f"{seconds:,.1f} s")
        for name, seconds in report.timing_s.items()
    ]
