"""The trials of a sweep, and how they are shown: a table, a chart, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolo_prune.files import replacing, write_text
from yolo_prune.report.intervals import PERCENT
from yolo_prune.report.markdown import table_row

OUTPUT = "sweep.json"


@dataclass(frozen=True)
class Trial:
    """One model of the sweep.

    Attributes:
        name: Folder of the trial in the sweep's.
        keep_macs: Share of the MACs asked for; 1 for the parent, None where a time was.
        criterion: What a channel was worth.
        best: Checkpoint to use, empty after an error.
        kept_macs: What was kept, fraction of the parent's MACs.
        gmacs: 1e9 MACs.
        params_m: 1e6 parameters.
        ap: What the report compares models by, in [0, 1]: COCO AP, of a classifier top-1.
        low: Lower bound of its 95 % interval, None in trials of older releases.
        high: Upper bound.
        change_low: Lower bound of the 95 % interval of its difference to the parent's, on the same images.
        change_high: Upper bound.
        speedup: FPS over the parent's on the sweep's runtime, None where nothing was timed.
        fps: Images per second, comparable within the sweep.
        error: Why there is no model.
        target_ms: Time of an image that was asked for, None where none was.
        parent_ms: What the parent took when the trial began.
        predicted_ms: What was predicted of the model at the end.
        reached_ms: What was measured of it, in turns with the parent, None where nothing was.
    """

    name: str
    keep_macs: float | None
    criterion: str
    best: str = ""
    kept_macs: float | None = None
    gmacs: float | None = None
    params_m: float | None = None
    ap: float | None = None
    low: float | None = None
    high: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    speedup: float | None = None
    fps: float | None = None
    error: str = ""
    target_ms: float | None = None
    parent_ms: float | None = None
    predicted_ms: float | None = None
    reached_ms: float | None = None


@dataclass(frozen=True)
class SweepResult:
    """Outcome of a sweep.

    Attributes:
        folder: Where everything is.
        trials: The parent first, then one entry a trial.
        front: Names of the trials that no other one beats in both AP and FPS (MACs, where nothing was timed).
        chosen: Name of the model under the constraints; None when there are none, or none is met.
        metric: What ``ap`` of the trials is called.
    """

    folder: Path
    trials: tuple[Trial, ...]
    front: tuple[str, ...]
    chosen: str | None
    metric: str = "COCO AP"


def render_sweep(result: SweepResult) -> str:
    """Return the trials as a Markdown table; the front is marked with *, the choice with >.

    Where a time was asked for, the last columns are what was asked for, predicted and reached in the trial itself.
    """
    change = f"change, {PERCENT}"
    titles = ["", "model", "MACs kept", "GMACs", "parameters (M)", result.metric, change, "speed-up", "FPS"]
    timed = any(trial.target_ms is not None for trial in result.trials)
    titles += ["target (ms)", "predicted (ms)", "reached (ms)"] if timed else []
    lines = [table_row(titles), f"{'|---' * len(titles)}|"]
    for trial in result.trials:
        mark = (">" if trial.name == result.chosen else "") + ("*" if trial.name in result.front else "")
        if trial.error:
            lines.append(table_row(["", trial.name, trial.error, *[""] * (len(titles) - 3)]))
            continue
        values = (trial.kept_macs, trial.gmacs, trial.params_m, trial.ap, trial.speedup, trial.fps)
        cells = [
            _number(value, form)
            for value, form in zip(values, (".3f", ".3g", ".3g", ".4f", ".2f", ".1f"), strict=True)
        ]
        cells.insert(4, _change(trial))
        cells += _times(trial) if timed else []
        lines.append(table_row([mark, trial.name, *cells]))
    return "\n".join(lines)


def _times(trial: Trial) -> list[str]:
    """Return what was asked for, predicted and reached, with how many times as fast as the parent that is."""
    if trial.target_ms is None or trial.parent_ms is None:
        return ["", "", ""]
    times = (trial.target_ms, trial.predicted_ms, trial.reached_ms)
    return ["not measured" if ms is None else f"{ms:.1f} ({trial.parent_ms / ms:.2f}x)" for ms in times]


def _change(trial: Trial) -> str:
    if trial.name == "parent":
        return ""
    if trial.change_low is None or trial.change_high is None:
        return "no interval"
    return f"{trial.change_low:+.4f} to {trial.change_high:+.4f}"


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _draw_targets(axes: Any, trials: Sequence[Trial]) -> None:
    """Draw the speeds that were asked for and predicted, on the line of the accuracy that was reached."""
    parent_fps = trials[0].fps or 0.0
    for mark, title, key in (("|", "asked for", "target_ms"), ("4", "predicted", "predicted_ms")):
        points = [
            (parent_fps * trial.parent_ms / getattr(trial, key), trial.ap)
            for trial in trials
            if trial.parent_ms and getattr(trial, key)
        ]
        axes.plot(*zip(*points, strict=True), mark, color="C2", markersize=11, label=title)
    axes.legend(fontsize=8, loc="lower left")


def write_sweep(result: SweepResult) -> None:
    """Write sweep.json, sweep.md and, with two measured models or more, sweep.png."""
    content = {
        "trials": [asdict(trial) for trial in result.trials],
        "front": list(result.front),
        "chosen": result.chosen,
        "metric": result.metric,
    }
    write_text(result.folder / OUTPUT, json.dumps(content, indent=1) + "\n")
    write_text(result.folder / "sweep.md", render_sweep(result) + "\n")
    _draw(result)


def _draw(result: SweepResult) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [trial for trial in result.trials if trial.ap is not None and trial.kept_macs is not None]
    if len(measured) < 2:
        return
    timed = all(trial.fps is not None for trial in measured)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    points = {
        trial.name: (float((trial.fps if timed else trial.gmacs) or 0.0), float(trial.ap or 0.0))
        for trial in measured
    }
    bounds = {
        trial.name: [trial.low, trial.high]
        for trial in measured
        if trial.low is not None and trial.high is not None
    }
    axes.plot(*zip(*(points[name] for name in result.front), strict=True), "-", color="0.7", zorder=1)
    for name, (x, y) in points.items():
        if name in bounds:
            axes.plot([x, x], bounds[name], "-", color="0.8", zorder=0)
        axes.plot(x, y, "o" if name in result.front else "x", color="C1" if name == result.chosen else "C0")
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
    if timed and any(trial.target_ms for trial in measured):
        _draw_targets(axes, measured)
    axes.set_xlabel("FPS (images per second)" if timed else "GMACs")
    axes.set_ylabel(result.metric)
    axes.margins(x=0.15, y=0.1)  # the names stand right of the points
    FigureCanvasAgg(figure)
    with replacing(result.folder / "sweep.png") as temporary:
        figure.savefig(temporary, dpi=120)
