"""Several runs in one table: what may be compared stands together, what may not is told apart and said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from yolo_prune.errors import ConfigError
from yolo_prune.files import short_names
from yolo_prune.imgsz import size_text
from yolo_prune.report.intervals import PERCENT, accuracy_interval, paired_interval
from yolo_prune.report.pareto import Chart, Series, draw, series_of_report
from yolo_prune.report.rows import Row, RunReport, report_from_json
from yolo_prune.report.select import (
    accuracy_change,
    change_interval,
    final_row,
    identity,
    metric_of,
    models,
    precision_text,
    series_titles,
    setting,
)
from yolo_prune.report.table import NOT_MEASURED, Table, format_gmacs, grid, with_bounds


@dataclass(frozen=True)
class Run:
    """A run folder's report, under a name that tells it from the others."""

    name: str
    report: RunReport


@dataclass(frozen=True)
class ComparedRuns:
    """Runs beside each other.

    Attributes:
        title: Their names.
        table: A line for each run, model, input size and precision.
        notes: What is comparable and what is not, in sentences.
        charts: Accuracy against speed, one for all runs whose accuracy is of the same data, and what that is.
    """

    title: str
    table: Table
    notes: tuple[str, ...]
    charts: tuple[tuple[str, Chart], ...]


def read_runs(folders: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Read the reports of run folders.

    Args:
        folders: Run folders, or report.json files.

    Returns:
        The runs, and a sentence for every folder without a report.

    Raises:
        ConfigError: A folder is named twice, a report cannot be read, or none has one.
    """
    paths = [Path(folder).resolve() for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise ConfigError(f"'{folder}' is named twice: a comparison needs different runs.")
    held = [path for path in paths if (path / "report.json").is_file() or path.is_file()]
    missing = [f"{path} has no report.json: it is left out." for path in paths if path not in held]
    if not held:
        raise ConfigError(f"no report.json in {', '.join(map(str, folders))}: give folders of finished runs.")
    folders_of = [path.parent if path.is_file() else path for path in held]
    names = short_names(folders_of) or list(map(str, folders_of))
    return [Run(name, report_from_json(path)) for name, path in zip(names, held, strict=True)], missing


def compare_runs(runs: Sequence[Run], missing: Sequence[str] = ()) -> ComparedRuns:
    """Put runs beside each other: accuracy with intervals, cost, and FPS on every runtime and machine.

    Args:
        runs: At least one.
        missing: Sentences on those that could not be read.
    """
    data = {
        key: str(at) for at, key in enumerate(dict.fromkeys(_data_of(run.report) for run in runs), start=1)
    }
    timed = (_machine_of(run.report) for run in runs if any(row.fps for row in run.report.rows))
    machines = dict(zip(dict.fromkeys(timed), ascii_uppercase, strict=False))
    columns, shared = _columns(runs, machines)
    lines = [
        {**_line(runs, run, row, data), **_speeds(run, row, columns)}
        for run in runs
        for row in models(run.report)
        if row.model != "control"
    ]
    titles = list(dict.fromkeys(title for line in lines for title in line))
    shown = [
        title for title in titles if any(line.get(title, NOT_MEASURED) != NOT_MEASURED for line in lines)
    ]
    table = Table(
        tuple(shown),
        tuple(tuple(line.get(title, NOT_MEASURED) for title in shown) for line in lines),
        tuple(title for title in titles if title not in shown),
    )
    notes = [*missing, *_data_notes(runs, data), *_speed_notes(runs, machines, shared), *_version_notes(runs)]
    return ComparedRuns(", ".join(run.name for run in runs), table, tuple(notes), tuple(_charts(runs, data)))


def render_comparison(compared: ComparedRuns) -> str:
    """Return the comparison as Markdown that also reads well in a console."""
    parts = [grid(compared.table)]
    if compared.table.absent:
        parts.append(f"Not measured: {', '.join(compared.table.absent)}.")
    parts.append("\n".join(f"* {note}" for note in compared.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _data_of(report: RunReport) -> tuple[Any, ...]:
    """Return what must be equal for accuracies to be of the same images."""
    one = report.conditions
    return (metric_of(report).title, one.data, one.split, one.images, one.boxes)


def _machine_of(report: RunReport) -> str:
    return report.conditions.machine or "a machine that is not stated"


def _place(run: Run, row: Row) -> tuple[Any, ...]:
    return (*setting(row), _machine_of(run.report))


def _line(runs: Sequence[Run], run: Run, row: Row, data: Mapping[tuple[Any, ...], str]) -> dict[str, str]:
    """Return what is said of a model but its speed."""
    report, metric = run.report, metric_of(run.report)
    mark = f" ({data[_data_of(report)]})" if len(data) > 1 and row.accuracy is not None else ""
    change = (
        ""
        if row.model == "parent"
        else with_bounds(accuracy_change(report, row), change_interval(report, row), "+.3f")
    )
    found = {
        "run": run.name,
        "model": row.model,
        "precision": precision_text(row.precision) or NOT_MEASURED,
        "input": f"{size_text(row.imgsz)} px" if row.imgsz else NOT_MEASURED,
        "GMACs": format_gmacs(row.gmacs),
        "params M": NOT_MEASURED if row.params_m is None else f"{row.params_m:.3f}",
        metric.title: with_bounds(row.accuracy, accuracy_interval(report, row), ".3f") + mark,
        "against its parent": change,
    }
    return {**found, f"against {runs[0].name}": _against_first(runs[0], run, row)} if len(runs) > 1 else found


def _against_first(first: Run, run: Run, row: Row) -> str:
    """Return the accuracy minus that of the first run's final model; nothing on other images."""
    base = final_row(first.report)
    if run is first or base is None or _data_of(first.report) != _data_of(run.report):
        return ""
    if row.accuracy is None or base.accuracy is None:
        return ""
    bounds = paired_interval((run.report, row), (first.report, base))
    return with_bounds(row.accuracy - base.accuracy, bounds, "+.3f")


def _speeds(run: Run, row: Row, columns: Mapping[tuple[Any, ...], str]) -> dict[str, str]:
    """Return FPS on every runtime setting and machine."""
    rows = (each for each in run.report.rows if identity(each) == identity(row))
    mine = {_place(run, each): each.fps for each in rows if each.fps}
    return {title: f"{mine[place]:.1f}" if place in mine else "-" for place, title in columns.items()}


def _columns(runs: Sequence[Run], machines: Mapping[Any, str]) -> tuple[dict[tuple[Any, ...], str], str]:
    """Return the title of the FPS of every runtime setting and machine, and what all of them have in common."""
    places = dict.fromkeys(_place(run, row) for run in runs for row in run.report.rows if row.fps)
    titles, shared = series_titles([(*way, None) for *way, _ in places])
    if len(machines) > 1:
        titles = [
            f"{title} ({machines[machine]})" for title, (*_, machine) in zip(titles, places, strict=True)
        ]
    return {place: f"FPS {title}" for place, title in zip(places, titles, strict=True)}, shared


def _named(runs: Sequence[Run], key: Callable[[RunReport], Any], value: Any) -> str:
    return ", ".join(run.name for run in runs if key(run.report) == value)


def _data_notes(runs: Sequence[Run], data: Mapping[tuple[Any, ...], str]) -> Iterator[str]:
    if len(data) == 1:
        yield f"Accuracy: {_data_text(next(iter(data)))}; all runs may be compared."
    else:
        yield "Accuracy is of different data (by its path): only runs with the same number may be compared."
        for key, number in data.items():
            yield f"({number}) {_named(runs, _data_of, key)}: {_data_text(key)}."
    computed = dict.fromkeys(_evaluator(run.report) for run in runs)
    if len(computed) > 1:
        words = "; ".join(f"{_named(runs, _evaluator, one)}: {one}" for one in computed)
        yield f"Accuracy was not computed by the same in all runs: {words}."
    yield f"In brackets: {PERCENT} intervals of the choice of images; differences are of the same images for both."


def _evaluator(report: RunReport) -> str:
    return str(report.conditions.evaluator)


def _data_text(key: tuple[Any, ...]) -> str:
    title, data, split, images, boxes = key
    counts = [f"{number:,} {what}" for number, what in ((images, "images"), (boxes, "boxes")) if number]
    where = " ".join(part for part in (data, split) if part)
    return f"{title} on {where or 'data that is not stated'}" + (f" ({', '.join(counts)})" if counts else "")


def _speed_notes(runs: Sequence[Run], machines: Mapping[str, str], shared: str) -> Iterator[str]:
    timed = [run for run in runs if any(row.fps for row in run.report.rows)]
    if not timed:
        yield "Speed was not measured."
        return
    everywhere = f"FPS on {shared}" if shared else "FPS"
    if len(machines) > 1:
        users = {machine: _named(timed, _machine_of, machine) for machine in machines}
        named = "; ".join(f"({machines[machine]}) {machine}: {names}" for machine, names in users.items())
        yield f"{everywhere}; different machines may not be compared: {named}."
    else:
        yield f"{everywhere}: timed on {next(iter(machines))}."
    known = ((run.name, run.report.conditions.load1) for run in timed)
    loads = [f"{name} {load:.1f}" for name, load in known if load is not None]
    if len(timed) > 1:
        said = f" (load average: {', '.join(loads)})" if loads else ""
        yield (
            "Each run was timed by itself: between runs, FPS of one column also differ by what else the machine did"
            f"{said}. A ratio that has to hold is measured by yolo-prune bench on the files of both."
        )
    ways = dict.fromkeys(str(run.report.conditions.timed) for run in timed)
    if len(ways) > 1:
        words = "; ".join(f"{_named(timed, lambda r: str(r.conditions.timed), way)}: {way}" for way in ways)
        yield f"Not the same was timed, and FPS may not be compared: {words}."


def _version_notes(runs: Sequence[Run]) -> Iterator[str]:
    """Name the runtimes whose versions differ between runs."""
    used = {row.runtime for run in runs for row in run.report.rows if row.fps and row.runtime}
    for runtime in sorted(used):
        found = {run.name: run.report.versions.get(runtime) for run in runs}
        if len({version for version in found.values() if version}) > 1:
            words = ", ".join(f"{name} {version or 'not stated'}" for name, version in found.items())
            yield f"{runtime} is not of the same version: {words}."


def _charts(runs: Sequence[Run], data: Mapping[tuple[Any, ...], str]) -> Iterator[tuple[str, Chart]]:
    """Draw a chart for all runs whose accuracy is of the same data."""
    for key in data:
        mine = [run for run in runs if _data_of(run.report) == key]
        found = [(run, way, points) for run in mine for way, points in series_of_report(run.report).items()]
        titles, shared = series_titles(list(dict.fromkeys(way for _, way, _ in found)))
        named = dict(zip(dict.fromkeys(way for _, way, _ in found), titles, strict=True))
        machines = {_machine_of(run.report) for run, _, _ in found}
        series = [
            Series(
                ", ".join([run.name, named[way], *([_machine_of(run.report)] if len(machines) > 1 else [])]),
                points,
            )
            for run, way, points in found
        ]
        chart = draw(series, str(key[0]), shared, joined=len(machines) == 1)
        if chart:
            yield _data_text(key), chart
