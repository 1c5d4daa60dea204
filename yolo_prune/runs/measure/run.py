"""Everything that a report says, measured: models and controls, accuracy and speed, and their conditions."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from yolo_prune.accuracy.task import Task
from yolo_prune.bench import Comparison
from yolo_prune.bench.resolution import lower_resolutions
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BudgetError
from yolo_prune.imgsz import ImageSize, is_square, longer_side, size_text
from yolo_prune.options import PruneConfig
from yolo_prune.progress import LOGGER
from yolo_prune.recover.cliff import first_cliff
from yolo_prune.recover.steps import CutResult
from yolo_prune.report import (
    METRICS,
    ClassAp,
    Conditions,
    Equivalence,
    HostMap,
    Resampled,
    RunReport,
    StageAp,
)
from yolo_prune.report.examples import clear_examples
from yolo_prune.report.select import FINAL_ORDER
from yolo_prune.runs.job import PruneJob
from yolo_prune.runs.measure.changes import layer_widths, plan_summary, scale_histogram
from yolo_prune.runs.measure.examples import save_examples
from yolo_prune.runs.measure.speed import (
    BENCH_IMAGES,
    Evaluated,
    bench_models,
    judged_by,
    model_rows,
    model_speedups,
    models_to_time,
    speed_conditions,
    speed_warnings,
)
from yolo_prune.runtimes import RUNTIMES
from yolo_prune.runtimes.runtime import cpu_name


def measure_run(
    job: PruneJob,
    models: Sequence[Evaluated],
    cut: CutResult,
    stages: Mapping[str, float | None],
    failed: Mapping[str, str],
) -> RunReport:
    """Measure speed and controls of a run's models and put everything together.

    Args:
        job: The run.
        models: Parent first, then pruned and retrained.
        cut: The cut.
        stages: Score after each step of recovery.
        failed: Runtime -> why there is no INT8 model for it.

    Returns:
        The report, not yet written.
    """
    config, host, task, space = job.config, job.host, job.task, job.space
    with space.stage("controls", "evaluating the controls: the parent at lower resolutions"):
        models = [*models, *_controls(models[0], cut, task, host.stride(models[0].module))]
    with space.stage("intervals", "drawing the images again and again: how sure the accuracies are"):
        resamples = tuple(
            Resampled.from_sample(one.name, one.imgsz, one.result.sample, one.precision, one.runtime)
            for one in models
            if one.result.sample
        )
    timed = models_to_time(models, failed, host)
    comparisons: list[Comparison] = []
    warnings: list[str] = []
    if config.bench:
        with space.stage("bench", "measuring speed, alternately, and the files themselves"):
            judged = judged_by(config, task, timed)
            comparisons = bench_models(config, timed, task.image_files(BENCH_IMAGES), job.device, judged)
        warnings = speed_warnings(comparisons, space.root)
    _show(job, models)
    parent, pruned = models[0], models[1]
    graph = job.parent.cost.graph
    return RunReport(
        rows=tuple(model_rows(timed, comparisons)),
        name=space.root.name,
        model=str(config.model),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        seed=config.seed,
        equivalence=equivalence_of(cut.plan),
        stages=_stages(models, stages, task.metric),
        timing_s=dict(space.timing_s),
        versions=versions(host.packages),
        conditions=_conditions(config, parent, comparisons, task.metric),
        plan=plan_summary(config, cut.plan, parent.module, pruned.module, graph, parent.imgsz),
        layers=layer_widths(parent.module, pruned.module, graph),
        bn_scales=scale_histogram(parent.module, pruned.module),
        per_class=_per_class(models, task),
        host_map=tuple(
            HostMap(m.name, m.result.host_scores["map"], m.result.host_scores["map50"], m.imgsz)
            for m in models
            if m.result.host_scores
        ),
        speedups=tuple(model_speedups(timed, comparisons)),
        resamples=resamples,
        warnings=(
            *parent.result.notes,
            *_shape_warnings(config, parent.imgsz),
            *_target_warnings(cut),
            *_cliff_warnings(cut, METRICS[task.metric].short),
            *warnings,
        ),
    )


def _show(job: PruneJob, models: Sequence[Evaluated]) -> None:
    """Draw the images on which the model that the run is judged by differs most from its parent, where wanted."""
    clear_examples(job.space.root)
    if job.config.pictures:
        final = next(model for name in FINAL_ORDER for model in models if model.name == name)
        with job.space.stage("examples", "drawing the images where the models differ most"):
            save_examples(job, models[0], final)


def _conditions(
    config: PruneConfig, parent: Evaluated, comparisons: Sequence[Comparison], metric: str
) -> Conditions:
    """Say what everything was measured on."""
    return Conditions(
        data=str(config.data),
        split=config.split,
        images=parent.result.images,
        boxes=parent.result.boxes,
        evaluator=parent.result.evaluator,
        ap_of=parent.result.ap_of if parent.result.notes or metric != "ap" else None,
        machine=cpu_name(),
        **speed_conditions(comparisons),
    )


def _controls(parent: Evaluated, cut: CutResult, task: Task, stride: int) -> list[Evaluated]:
    """Evaluate the parent at the input resolutions that reach the pruned model's MACs."""
    try:
        sizes = lower_resolutions(1.0, parent.imgsz, cut.plan.kept_macs, stride)
    except BudgetError as error:
        LOGGER.info("no control at a lower resolution: %s", error)
        return []
    controls = []
    for size in sizes:
        result = task.evaluate(parent.module, size.imgsz)
        controls.append(replace(parent, name="control", result=result, imgsz=size.imgsz))
        sentence = METRICS[task.metric].sentence(result.scores)
        LOGGER.info("control: the parent at %s px: %s", size_text(size.imgsz), sentence)
    return controls


def _stages(
    models: Sequence[Evaluated], stages: Mapping[str, float | None], metric: str
) -> tuple[StageAp, ...]:
    notes = {"imitation": "val images, trained without labels"}
    found: list[dict[str, Any]] = [
        {"name": name, metric: value, "note": notes.get(name, "val images, before any training")}
        for name, value in stages.items()
        if value is not None
    ]
    found += [{"name": m.name, metric: m.result.scores[metric]} for m in models if m.name == "retrained"]
    return tuple(StageAp(**values) for values in found)


def equivalence_of(plan: PrunePlan) -> Equivalence | None:
    """Return a plan's proof as the report shows it, None where nothing was cut."""
    proof = plan.equivalence
    if not proof:
        return None
    verdict = "exact" if proof["exact"] else f"differs by more than {proof['tolerance']:.3g}"
    return Equivalence(float(proof["max_difference"]), float(proof["scale"]), verdict)


def versions(of_host: Sequence[str]) -> dict[str, str]:
    """Return the versions of what numbers depend on, and of a host's packages."""
    found = {"python": platform.python_version()}
    for name in ("yolo-prune", *of_host, "pycocotools", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    distributions = importlib.metadata.packages_distributions()
    for name, entry in RUNTIMES.items():
        for distribution in distributions.get(entry.package or name, ())[:1]:
            found[name] = importlib.metadata.version(distribution)
    return found


def _per_class(models: Sequence[Evaluated], task: Task) -> tuple[ClassAp, ...]:
    by_name = {
        model.name: model.result.per_class for model in models if model.name not in ("control", "int8")
    }
    sizes = task.class_sizes()
    return tuple(
        ClassAp(
            name,
            parent=by_name["parent"].get(name),
            pruned=by_name.get("pruned", {}).get(name),
            retrained=by_name.get("retrained", {}).get(name),
            **{task.counted: sizes.get(name)},
        )
        for name in by_name["parent"]
    )


def _shape_warnings(config: PruneConfig, imgsz: ImageSize) -> list[str]:
    """Say which shape the model was retrained at, where that is not the shape that everything is measured at."""
    if is_square(imgsz) or not config.epochs:
        return []
    return [
        f"Retraining was at {longer_side(imgsz)} x {longer_side(imgsz)} px, because the host trains on squares; "
        f"every number here is at {size_text(imgsz)} px."
    ]


def _target_warnings(cut: CutResult) -> list[str]:
    """Say by how much a budget of time was missed, and why."""
    missed = cut.plan.settings.get("latency", {}).get("missed")
    return [f"The target was missed: {missed}"] if missed else []


def _cliff_warnings(cut: CutResult, metric: str) -> list[str]:
    """Name the budget behind which accuracy before training falls off."""
    points = [(float(kept), float(score)) for kept, score in cut.plan.settings.get("cliff", ())]
    cliff = first_cliff(points)
    if cliff is None:
        return []
    (kept, score), (fewer, lower) = cliff
    return [
        f"{metric} before training falls from {score:.3f} at {100 * kept:.0f} % to {lower:.3f} at "
        f"{100 * fewer:.0f} %: beyond that point the model lives on retraining."
    ]
