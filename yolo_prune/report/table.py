"""The mAP and FPS table, aligned, as Markdown that also reads well in a console."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolo_prune.imgsz import pixels, size_text
from yolo_prune.report.deployed import Deployed
from yolo_prune.report.intervals import METHOD, PERCENT, accuracy_interval, count_resamples
from yolo_prune.report.markdown import cell
from yolo_prune.report.metric import METRICS
from yolo_prune.report.rows import Row, RunReport
from yolo_prune.report.select import (
    accuracy_change,
    change_interval,
    count_threads,
    file_title,
    kept_macs,
    label,
    merged,
    metric_of,
    precision_text,
    setting,
    speedup,
)
from yolo_prune.report.verdicts import verdicts

if TYPE_CHECKING:
    from yolo_prune.accuracy.bootstrap import Interval

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Table:
    """Cells as text: ``columns`` heads, ``rows`` of the same length, ``absent`` what nobody measured.

    ``notes`` are the lines that cells such as "not measured (1)" refer to.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    absent: tuple[str, ...]
    notes: tuple[str, ...] = ()


def _text(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _speedup(report: RunReport, row: Row) -> str:
    gain = speedup(report, row)
    return NOT_MEASURED if gain is None else f"{gain.ratio:.2f}x"


def _kept(report: RunReport, row: Row) -> str:
    kept = kept_macs(report, row)
    return NOT_MEASURED if kept is None else f"{100 * kept:.1f} %"


def format_gmacs(value: float | None) -> str:
    """Return 1e9 MACs with three decimals, and with three digits where that would leave fewer."""
    return _text(value, ".3f" if not value or value >= 0.1 else "#.3g")


def with_bounds(value: float | None, bounds: Interval | None, form: str) -> str:
    """Return a number with its interval in brackets, where it has one."""
    text = _text(value, form)
    return f"{text} [{bounds.low:{form}}, {bounds.high:{form}}]" if value is not None and bounds else text


def _columns(report: RunReport) -> dict[str, Callable[[Row], str]]:
    """Return what fills each column of the report's table."""
    metric = metric_of(report)
    return {
        "MACs kept": lambda row: _kept(report, row),
        "GMACs": lambda row: format_gmacs(merged(report, row).gmacs),
        "params M": lambda row: _text(merged(report, row).params_m, ".3f"),
        "size MB": lambda row: _text(merged(report, row).size_mb, ".2f"),
        metric.title: lambda row: with_bounds(
            merged(report, row).accuracy, accuracy_interval(report, row), ".3f"
        ),
        f"{metric.short} change": lambda row: with_bounds(
            accuracy_change(report, row), change_interval(report, row), "+.3f"
        ),
        metric.second_title: lambda row: _text(getattr(merged(report, row), metric.second), ".3f"),
        file_title(report): _of_file,
        "p50 ms": lambda row: _text(row.p50_ms, ".1f" if (row.p50_ms or 0.0) >= 10 else ".2f"),
        "FPS": lambda row: _text(row.fps, ".1f"),
        "speed-up": lambda row: _speedup(report, row),
    }


def _of_file(row: Row) -> str:
    found = row.deployed
    if found is None or found.accuracy is None:
        return NOT_MEASURED
    bounds = f" [{found.low:.3f}, {found.high:.3f}]" if None not in (found.low, found.high) else ""
    return f"{found.accuracy:.3f}{bounds}"


def make_table(report: RunReport, runtime_column: bool = True) -> Table:
    """Lay out the rows: one line per model, input size and runtime setting, the parent's change left out.

    Args:
        report: A run; an empty one gives an empty table.
        runtime_column: Whether several runtime settings are told apart by a column.

    Returns:
        The table; columns without any measurement are named in ``absent`` instead of shown.
    """
    several = runtime_column and len({setting(row)[:3] for row in report.rows if row.runtime}) > 1
    change = f"{metric_of(report).short} change"
    cells = {name: [fill(row) for row in report.rows] for name, fill in _columns(report).items()}
    absent = tuple(name for name, column in cells.items() if all(text == NOT_MEASURED for text in column))
    for i, row in enumerate(report.rows):
        if row.model == "parent" and cells[change][i] != NOT_MEASURED:
            cells[change][i] = ""
    notes = _reasons(report)
    for i, row in enumerate(report.rows):
        if row.not_measured:
            cells["FPS"][i] = f"{NOT_MEASURED} ({1 + notes.index(_reason(row))})"
        if why := _reason_of_file(row):
            cells[file_title(report)][i] = f"{NOT_MEASURED} ({1 + notes.index(why)})"
    columns = {"model": [label(report, row) for row in report.rows]}
    if several:
        columns["runtime"] = [setting_text(row) for row in report.rows]
    absent = tuple(name for name in absent if not (name == "FPS" and notes))
    if any(row.precision for row in report.rows):
        columns["precision"] = [precision_text(row.precision) or "not stated" for row in report.rows]
    columns.update({name: column for name, column in cells.items() if name not in absent})
    return Table(
        tuple(columns),
        tuple(zip(*columns.values(), strict=True)),
        absent if report.rows else (),
        tuple(f"({number}) {text}" for number, text in enumerate(notes, start=1)),
    )


def _reasons(report: RunReport) -> list[str]:
    """Return once each why rows have no times, or their files no accuracy."""
    found = [_reason(row) for row in report.rows if row.not_measured]
    return list(dict.fromkeys([*found, *filter(None, map(_reason_of_file, report.rows))]))


def _reason_of_file(row: Row) -> str:
    why = row.deployed.not_measured if row.deployed else None
    return f"{setting_text(row)}: accuracy of the file {NOT_MEASURED}: {why}" if why else ""


def _reason(row: Row) -> str:
    where = f"{setting_text(row)}: " if row.runtime else ""
    return f"{where}{NOT_MEASURED}: {row.not_measured}"


def setting_text(row: Row) -> str:
    """Return the runtime, the device where it is not the CPU, and the threads."""
    parts = [row.runtime or NOT_MEASURED]
    if row.device not in (None, "cpu"):
        parts.append(str(row.device))
    if row.threads:
        parts.append(f"{row.threads} thr")
    return " ".join(parts)


def render_table(report: RunReport) -> str:
    """Return the table, its conditions and the verdicts as Markdown.

    Args:
        report: A run.

    Returns:
        Text with columns padded to equal width, ending in a newline.
    """
    table = make_table(report)
    parts = [grid(table)] if table.rows else ["No model was measured."]
    if table.absent:
        parts.append(f"Not measured: {', '.join(table.absent)}.")
    parts.append("\n".join(table.notes))
    parts.append("\n".join(conditions_lines(report)))
    parts.append("\n".join(f"* {one.text}" for one in verdicts(report)))
    parts.append("\n".join(f"* Warning: {text}" for text in report.warnings))
    return "\n\n".join(part for part in parts if part) + "\n"


def grid(table: Table) -> str:
    """Return a table as Markdown whose columns are aligned."""
    lines = [tuple(cell(text) for text in line) for line in (table.columns, *table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    left = {i for i, name in enumerate(table.columns) if name in ("run", "model", "runtime", "precision")}

    def draw(line: tuple[str, ...]) -> str:
        cells = [text.ljust(widths[i]) if i in left else text.rjust(widths[i]) for i, text in enumerate(line)]
        return f"| {' | '.join(cells)} |"

    marks = ["-" * (width + 2) if i in left else "-" * (width + 1) + ":" for i, width in enumerate(widths)]
    rule = f"|{'|'.join(marks)}|"
    return "\n".join([draw(lines[0]), rule, *(draw(line) for line in lines[1:])])


def conditions_lines(report: RunReport) -> list[str]:
    """Return the sentences that every number of the table depends on."""
    lines = (_timing_line(report), _accuracy_line(report), _file_line(report), _host_line(report))
    return [line for line in lines if line]


def _timing_line(report: RunReport) -> str:
    timed = [row for row in report.rows if row.fps is not None]
    if not timed:
        return "Speed: not measured."
    conditions = report.conditions
    found = []
    for one in dict.fromkeys(setting(row) for row in timed):
        runtime, device, threads, batch = one
        name = f"{runtime or 'unnamed runtime'} {report.versions.get(runtime or '', '')}".strip()
        found.append(
            f"{name} on {device or 'unnamed device'}, {count_threads(threads)}, batch {batch or 'unstated'}"
        )
    sizes = sorted({row.imgsz for row in timed if row.imgsz}, key=pixels, reverse=True)
    text = f"Speed: {conditions.timed or 'what was timed is not stated'}; {'; '.join(found)}"
    text += f"; input {', '.join(map(size_text, sizes))} px" if sizes else ""
    text += f"; {conditions.machine}" if conditions.machine else ""
    text += f"; load average {conditions.load1:.1f}" if conditions.load1 is not None else ""
    text += f"; {conditions.samples} samples a model" if conditions.samples else ""
    return text + ". FPS is images per second at the median latency."


def _accuracy_line(report: RunReport) -> str:
    conditions = report.conditions
    metric = metric_of(report)
    if all(row.accuracy is None for row in report.rows):
        return f"{metric.title}: not measured."
    where = " ".join(part for part in (conditions.data, conditions.split) if part)
    numbers = {"images": conditions.images, "boxes": conditions.boxes}
    counts = [f"{number:,} {what}" for what, number in numbers.items() if number]
    parts = [part for part in (where, ", ".join(counts), conditions.evaluator) if part]
    count = count_resamples(report)
    bounds = f"In brackets: {PERCENT} intervals, {METHOD}, {count:,} resamples" if count else "No intervals"
    return f"{metric.definition}: {'; '.join(parts) or 'data not stated'}. {bounds}."


def _file_line(report: RunReport) -> str:
    """Say what is of the model and what of the file, and how far files were from PyTorch."""
    files = [row.deployed for row in report.rows if row.deployed is not None]
    title, parts = file_title(report), list[str]()
    counts = sorted({one.images for one in files if one.images})
    if counts:
        parts.append(
            f"{metric_of(report).title} is of the model, as its host evaluates it. {title[:1].upper()}{title[1:]} is "
            "of the very file that was timed, on its runtime (torch: of the checkpoint), "
            f"{' or '.join(map(str, counts))} images, each fitted to the input."
        )
    far = max((one for one in files if one.difference is not None), key=_distance, default=None)
    if far is not None:
        parts.append(
            f"Every file was compared with its checkpoint in PyTorch before it was timed, on {far.compared} images: "
            f"outputs are at most {far.difference:.1g} of their scale apart, {far.tolerance:g} is allowed."
        )
    if parts and any(row.precision == "int8" for row in report.rows):
        parts.append("INT8 differs by intent: its own accuracy says what that costs.")
    return " ".join(parts)


def _distance(one: Deployed) -> float:
    return (one.difference or 0.0) / (one.tolerance or 1.0)


def _host_line(report: RunReport) -> str:
    if not report.host_map:
        return ""
    found = [
        f"{one.model}{f' at {size_text(one.imgsz)} px' if one.model == 'control' and one.imgsz else ''} "
        f"{_text(one.map, '.3f')} (mAP50 {_text(one.map50, '.3f')})"
        for one in report.host_map
    ]
    metric = METRICS[metric_of(report).field]
    of = f" of {metric.of}" if metric.of else ""
    return f"The host's own mAP{of}, another number than {metric.title}: {', '.join(found)}."
