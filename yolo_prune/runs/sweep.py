"""Many budgets and criteria: prune, recover, retrain and measure each, draw the front, pick a model.

A trial is one run of ``prune`` in a folder of its own, so an interrupted sweep goes on where it was: trials that have a
report are read, not run again. Speeds of different trials were measured at different times; so a trial's FPS is the
median FPS of the parent over all trials, times the trial's own speed-up over the parent (measured alternately).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.files import write_text
from yolo_prune.options import TARGETS, PruneConfig, SweepConfig, to_yaml
from yolo_prune.options.places import AUTO, has_target
from yolo_prune.progress import LOGGER
from yolo_prune.report import RunReport, report_from_json
from yolo_prune.report.intervals import accuracy_interval
from yolo_prune.report.pareto import front
from yolo_prune.report.select import (
    change_interval,
    final_row,
    kept_macs,
    merged,
    metric_of,
    model_row,
    parent_row,
    speedup,
)
from yolo_prune.run_log import keep_log_in, logged_run
from yolo_prune.runs.engines import Room, run_here, run_on_ray
from yolo_prune.runs.preflight import budget_of
from yolo_prune.runs.resume import ARGS_FILE, FREE_ON_RESUME, check_resumed
from yolo_prune.runs.trials import SweepResult, Trial, write_sweep
from yolo_prune.runs.workspace import open_workspace
from yolo_prune.words import counted

_NAMES = {
    "keep_macs": "{:g}",
    "target_speedup": "{:g}x",
    "target_latency_ms": "{:g}ms",
    "target_fps": "{:g}fps",
}
_FREE = FREE_ON_RESUME - {"threads", "bench", "runtimes"}  # speeds of trials are compared with each other


def run_sweep(config: SweepConfig) -> SweepResult:
    """Run ``yolo-prune sweep``.

    Args:
        config: Model, data, budgets, criteria and constraints.

    Returns:
        Every trial, the front and the choice; also written to ``sweep.json``, ``sweep.md`` and ``sweep.png``.

    Raises:
        ConfigError: No trial succeeded, or the folder cannot be used.
    """
    with logged_run():
        return _run(config)


def _run(config: SweepConfig) -> SweepResult:
    space = open_workspace(
        config.project, config.name, "sweep", exist_ok=config.exist_ok, resume=config.resume
    )
    plans = trials_of(config, space.root)
    for plan in plans:
        if plan.resume:
            check_resumed(space.root / str(plan.name), plan, free=_FREE)
    keep_log_in(space.root)
    write_text(space.root / ARGS_FILE, to_yaml(replace(config, resume=False)))
    LOGGER.info("%s", _outline(config, plans, space.root))
    outcomes = _run_all(plans, config)
    found = [_read(plan, outcome, config.runtime) for plan, outcome in zip(plans, outcomes, strict=True)]
    reports = [report for _, report in found if report is not None]
    if not reports:
        raise ConfigError(f"no trial of the sweep succeeded; the first says: {found[0][0].error}")
    parent = _parent(reports, config)
    trials = (parent, *(_with_fps(trial, parent.fps) for trial, _ in found))
    chosen = choose(trials, min_fps=config.min_fps, max_ap_drop=config.max_ap_drop)
    name, metric = chosen.name if chosen else None, metric_of(reports[0]).title
    result = SweepResult(space.root, trials, pareto_front(trials), name, metric)
    write_sweep(result)
    return result


def _outline(config: SweepConfig, plans: Sequence[PruneConfig], folder: Path) -> str:
    """Say which trials there are and what is done of them; each says itself what it does."""
    done = [
        plan.name for plan in plans if plan.resume and (folder / str(plan.name) / "report.json").is_file()
    ]
    lines = [
        f"{len(plans)} trials of {config.model} with {config.data} in {folder}, {len(done)} of them done:"
    ]
    for plan in plans:
        budget = budget_of(plan)
        lines.append(
            f"  {plan.name}: to {budget.kind}={budget.value:g} by {plan.criterion}, {counted(plan.epochs, 'epoch')} of "
            f"retraining{' (done: read, not run again)' if plan.name in done else ''}"
        )
    return "\n".join(lines)


def trials_of(config: SweepConfig, folder: Path) -> list[PruneConfig]:
    """Return the options of every trial: all budgets with all criteria."""
    keys = (
        *("model", "data", "weights", "imgsz", "device", "seed", "epochs", "batch", "workers", "steps"),
        *("round_to", "min_width", "min_keep", "keep_layers", "calibration_images", "recover_seconds"),
        *("distill", "lr0", "optimizer", "split"),
    )
    shared = {key: getattr(config, key) for key in keys}
    where: dict[str, Any] = {"runtime": config.runtime, "target_device": config.target_device}
    runtimes = ("torch",) if config.runtime == "torch" else ("torch", config.runtime)
    trials = []
    for criterion in config.criterion:
        for kind, value in config.budgets:
            name = f"{criterion}_{_NAMES[kind].format(value)}"
            own: dict[str, Any] = {kind: value, "criterion": criterion}
            if config.round_to == AUTO or kind in TARGETS:
                own |= where
            trials.append(
                PruneConfig(
                    **shared,
                    **own,
                    runtimes=runtimes,
                    threads=config.threads,
                    file_images=0,  # models are compared with each other: what files reach is for the chosen one
                    trust=config.trust,
                    imports=config.imports,
                    project=str(folder),
                    name=name,
                    resume=config.resume and (folder / name).is_dir(),
                    exist_ok=config.exist_ok,
                    train_args=config.train_args,
                )
            )
    return trials


def run_trial(config: PruneConfig) -> str:
    """Run one trial, unless it is resumed and its report is there; return why it failed, or nothing."""
    from yolo_prune.runs.prune import prune_from_config

    folder = Path(config.project, config.name or "")
    if config.resume and (folder / "report.json").is_file():
        LOGGER.info("%s is done: read, not run again", folder.name)
        return ""
    try:
        prune_from_config(config)
    except YoloPruneError as error:
        LOGGER.warning("%s failed: %s", folder.name, error)
        return str(error)
    return ""


def _run_all(plans: Sequence[PruneConfig], config: SweepConfig) -> list[str]:
    """Run the trials where ``engine=`` says; return of each why it failed, or nothing."""
    if config.engine == "ray":
        return run_on_ray(plans, run_trial, Room(config.trial_cpus, config.trial_gpus))
    return run_here(plans, run_trial)


def _read(plan: PruneConfig, error: str, runtime: str) -> tuple[Trial, RunReport | None]:
    """Read a trial's outcome from its folder."""
    folder = Path(plan.project, plan.name or "")
    trial = Trial(folder.name, plan.keep_macs, plan.criterion, error=error)
    if error or not (folder / "report.json").is_file():
        return replace(trial, error=error or "it left no report"), None
    report = report_from_json(folder)
    row = final_row(report)
    if row is None:
        return replace(trial, error="its report has no pruned model"), None
    timed = next((one for one in report.rows if one.model == row.model and one.runtime == runtime), None)
    gain = speedup(report, timed) if timed is not None else None
    bounds, change = accuracy_interval(report, row), change_interval(report, row)
    best = folder / "weights" / ("best.pt" if row.model == "retrained" else "pruned.pt")
    return (
        replace(
            trial,
            best=str(best),
            kept_macs=kept_macs(report, row),
            gmacs=row.gmacs,
            params_m=row.params_m,
            ap=merged(report, row).accuracy,
            low=bounds.low if bounds else None,
            high=bounds.high if bounds else None,
            change_low=change.low if change else None,
            change_high=change.high if change else None,
            speedup=gain.ratio if gain else None,
            **(_times(folder) if has_target(plan) else {}),
        ),
        report,
    )


def _times(folder: Path) -> dict[str, Any]:
    """Return how a trial met its target, from its plan."""
    met = PrunePlan.from_json((folder / "plan.json").read_text(encoding="utf-8")).settings["latency"]
    asked = {key: met[key] for key in ("target_ms", "parent_ms", "predicted_ms")}
    return {**asked, "reached_ms": (met["measured"] or {}).get("ms")}


def _parent(reports: Sequence[RunReport], config: SweepConfig) -> Trial:
    """Return the parent as a trial that kept everything."""
    row = model_row(reports[0], "parent")
    bounds = accuracy_interval(reports[0], row) if row else None
    rates = []
    for report in reports:
        timed = [
            one for one in report.rows if one.model == "parent" and one.runtime == config.runtime and one.fps
        ]
        like = parent_row(report, timed[0]) if timed else None
        if like is not None and like.fps:
            rates.append(like.fps)
    return Trial(
        "parent",
        1.0,
        "",
        best=config.model,
        kept_macs=1.0,
        gmacs=row.gmacs if row else None,
        params_m=row.params_m if row else None,
        ap=row.accuracy if row else None,
        low=bounds.low if bounds else None,
        high=bounds.high if bounds else None,
        speedup=1.0 if rates else None,
        fps=statistics.median(rates) if rates else None,
    )


def _with_fps(trial: Trial, parent_fps: float | None) -> Trial:
    if trial.speedup is None or parent_fps is None:
        return trial
    return replace(trial, fps=trial.speedup * parent_fps)


def pareto_front(trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return the names of the trials that no other one beats in both AP and speed, fastest last.

    Speed is FPS where all measured trials have it, else fewer MACs.
    """
    measured = [trial for trial in trials if trial.ap is not None and trial.kept_macs is not None]
    timed = all(trial.fps is not None for trial in measured)

    def speed(trial: Trial) -> float:
        return float(trial.fps or 0.0) if timed else -float(trial.kept_macs or 0.0)

    return tuple(trial.name for trial in front(measured, lambda one: (speed(one), float(one.ap or 0.0))))


def choose(trials: Sequence[Trial], *, min_fps: float | None, max_ap_drop: float | None) -> Trial | None:
    """Pick a model under the constraints, with no hand on it.

    Args:
        trials: The parent first.
        min_fps: The model must be at least this fast; of those that are, the most accurate is taken.
        max_ap_drop: The model may lose this much AP of the parent, as measured, whatever its interval; of those that
            lose less, the fastest is taken (the one with the fewest MACs, where nothing was timed). With both, both
            must hold, and the most accurate is taken.

    Returns:
        The trial; None without a constraint, or when none meets them.
    """
    if min_fps is None and max_ap_drop is None:
        return None
    floor = None if max_ap_drop is None or trials[0].ap is None else trials[0].ap - max_ap_drop
    fit = [
        trial
        for trial in trials
        if trial.ap is not None
        and (floor is None or trial.ap >= floor)
        and (min_fps is None or (trial.fps is not None and trial.fps >= min_fps))
    ]
    if min_fps is not None:
        return max(fit, key=lambda trial: float(trial.ap or 0.0), default=None)
    return max(fit, key=lambda trial: (float(trial.fps or 0.0), -float(trial.kept_macs or 1.0)), default=None)
