"""Everything that a report says, measured: models and controls, accuracy and speed, and their conditions."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from yolo_prune.bench import Comparison, compare
from yolo_prune.bench.resolution import lower_resolutions
from yolo_prune.bench.runtime import cpu_name
from yolo_prune.config import BUDGET_KEYS, PruneConfig
from yolo_prune.cost import count_macs, count_parameters
from yolo_prune.cutting import Anatomy
from yolo_prune.errors import BenchmarkError, BudgetError, MissingRuntimeError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.progress import LOGGER
from yolo_prune.recover.rounds import CutResult
from yolo_prune.report import (
    METRICS,
    ClassAp,
    Conditions,
    Equivalence,
    Histogram,
    HostMap,
    LayerWidth,
    PlanSummary,
    Row,
    RunReport,
    Speedup,
    StageAp,
    make_row,
)
from yolo_prune.score import norm_scale_names
from yolo_prune.workspace import Workspace

if TYPE_CHECKING:
    from yolo_prune.adapters.ultralytics.tasks import Result, Task

_BENCH_IMAGES = 16
_STEEP = 0.25


@dataclass(frozen=True)
class Evaluated:
    """A model of the run: its name in the report, its file and what evaluation said."""

    name: str
    file: Path
    module: nn.Module
    result: Result
    imgsz: int


def measure_run(
    config: PruneConfig,
    models: Sequence[Evaluated],
    cut: CutResult,
    stages: Mapping[str, float | None],
    anatomy: Anatomy,
    task: Task,
    space: Workspace,
    device: str,
) -> RunReport:
    """Measure speed and controls of a run's models and put everything together.

    Args:
        config: The run's options.
        models: Parent first, then pruned and retrained.
        cut: The cut.
        stages: Score after each step of recovery.
        anatomy: How to run the parent.
        task: What was evaluated on.
        space: The run folder.
        device: Where the run trained and evaluated.

    Returns:
        The report, not yet written.
    """
    with space.stage("controls", "evaluating the controls: the parent at lower resolutions"):
        models = [*models, *_controls(models[0], cut, task)]
    comparisons: list[Comparison] = []
    warnings: list[str] = []
    if config.bench:
        with space.stage("bench", "measuring speed, alternately"):
            comparisons, warnings = _bench(config, models, task, device)
    parent, graph = models[0], anatomy.cost_of(models[0].module).graph
    return RunReport(
        rows=tuple(_rows(models, comparisons)),
        name=space.root.name,
        model=str(config.model),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        seed=config.seed,
        equivalence=_equivalence(cut),
        stages=_stages(models, stages, task.metric),
        timing_s=dict(space.timing_s),
        versions=_versions(),
        conditions=Conditions(
            timed=next((c.conditions["timed"] for c in comparisons if "timed" in c.conditions), None),
            data=str(config.data),
            split=config.split,
            images=parent.result.images,
            boxes=parent.result.boxes,
            evaluator=parent.result.evaluator,
            machine=cpu_name(),
            load1=next((t.load1 for c in comparisons for t in c.timings.values() if t is not None), None),
            samples=next((t.samples for c in comparisons for t in c.timings.values() if t is not None), None),
        ),
        plan=_plan_summary(config, models, cut, graph),
        layers=_layers(models[0].module, models[1].module, graph),
        bn_scales=_histogram(models[0].module, models[1].module),
        per_class=_per_class(models, task),
        host_map=tuple(
            HostMap(m.name, m.result.host_scores["map"], m.result.host_scores["map50"], m.imgsz)
            for m in models
            if m.result.host_scores
        ),
        speedups=tuple(_speedups(models, comparisons)),
        warnings=(
            *_task_warnings(models[0].module),
            *_cliff_warnings(cut, METRICS[task.metric].short),
            *warnings,
        ),
    )


def _controls(parent: Evaluated, cut: CutResult, task: Task) -> list[Evaluated]:
    """Evaluate the parent at the input resolutions that reach the pruned model's MACs."""
    stride = int(max(float(torch.as_tensor(getattr(parent.module, "stride", 32.0)).max()), 32.0))
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
        LOGGER.info("control: the parent at %d px: %s", size.imgsz, sentence)
    return controls


def _key(model: Evaluated) -> str:
    return f"control at {model.imgsz} px" if model.name == "control" else model.name


def _bench(
    config: PruneConfig, models: Sequence[Evaluated], task: Task, device: str
) -> tuple[list[Comparison], list[str]]:
    """Time all models on every runtime, on the CPU and on a GPU where there is one."""
    comparisons, warnings = [], []
    images = task.image_files(_BENCH_IMAGES)
    devices = {runtime: ["cpu"] for runtime in config.runtimes}
    gpu = device if device.startswith("cuda") else "cuda:0" if torch.cuda.is_available() else None
    if gpu is None:
        warnings.append("GPU speed was not measured: this machine has no CUDA device.")
    for runtime, places in devices.items():
        for place in [*places, *([gpu] if gpu else [])]:
            timed = [m for m in models if m.name != "int8" or (runtime, place) == ("onnxruntime", "cpu")]
            try:
                comparison = compare(
                    {_key(model): model.file for model in timed},
                    runtime=runtime,
                    imgsz={_key(model): model.imgsz for model in timed},
                    device=place,
                    threads=config.threads,
                    images=images,
                    trust=config.trust,
                )
            except (
                MissingRuntimeError,
                BenchmarkError,
            ) as error:  # hours of retraining are not lost for this
                warnings.append(f"{runtime} on {place} was not measured: {error}")
                continue
            if comparison.not_measured:
                warnings.append(f"{runtime} on {place} was not measured: {comparison.not_measured}")
            comparisons.append(comparison)
    return comparisons, warnings


def _rows(models: Sequence[Evaluated], comparisons: Sequence[Comparison]) -> list[Row]:
    """One row a model, runtime and device; without timings one row a model."""
    rows = []
    measured: list[Comparison | None] = [*comparisons] or [None]
    for comparison in measured:
        for model in models:
            if comparison and _key(model) not in comparison.timings:
                continue  # an INT8 file runs where it was made for
            channels = next(p.shape[1] for p in model.module.parameters() if p.dim() == 4)
            image = torch.zeros(1, channels, model.imgsz, model.imgsz)
            rows.append(
                make_row(
                    model.name,
                    imgsz=model.imgsz,
                    gmacs=count_macs(model.module, image) / 1e9,
                    params_m=count_parameters(model.module) / 1e6,
                    size_mb=model.file.stat().st_size / 1e6,
                    scores=model.result.scores,
                    timing=comparison.timings[_key(model)] if comparison else None,
                )
            )
    return rows


def _speedups(models: Sequence[Evaluated], comparisons: Sequence[Comparison]) -> list[Speedup]:
    found = []
    for comparison in comparisons:
        for model in models[1:]:
            ratios, timing = comparison.ratios.get(_key(model)), comparison.timings.get(_key(model))
            if ratios and timing is not None and "latency" in ratios:
                ratio = ratios["latency"]
                found.append(
                    Speedup(
                        model=model.name,
                        ratio=ratio.value,
                        low=ratio.low,
                        high=ratio.high,
                        runtime=timing.runtime,
                        device=timing.device,
                        threads=timing.threads,
                        imgsz=model.imgsz,
                    )
                )
    return found


def _stages(
    models: Sequence[Evaluated], stages: Mapping[str, float | None], metric: str
) -> tuple[StageAp, ...]:
    note = "val images, before any training"
    found: list[dict[str, Any]] = [
        {"name": name, metric: value, "note": note} for name, value in stages.items() if value is not None
    ]
    found += [{"name": m.name, metric: m.result.scores[metric]} for m in models if m.name == "retrained"]
    return tuple(StageAp(**values) for values in found)


def _equivalence(cut: CutResult) -> Equivalence | None:
    proof = cut.plan.equivalence
    if not proof:
        return None
    verdict = "exact" if proof["exact"] else f"differs by more than {proof['tolerance']:.3g}"
    return Equivalence(float(proof["max_difference"]), float(proof["scale"]), verdict)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("yolo-prune", "torch", "ultralytics", "onnxruntime", "pycocotools", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _plan_summary(
    config: PruneConfig, models: Sequence[Evaluated], cut: CutResult, graph: ChannelGraph
) -> PlanSummary:
    parent, plan = models[0], cut.plan
    budget = next(key for key in BUDGET_KEYS if getattr(config, key) is not None)
    groups = [group for group in graph.groups if group.producers]
    return PlanSummary(
        budget=f"{budget}={getattr(config, budget):g}",
        criterion=str(plan.settings.get("criterion", config.criterion)),
        parent_gmacs=plan.gmacs / plan.kept_macs,
        kept_gmacs=plan.gmacs,
        parent_params_m=count_parameters(parent.module) / 1e6,
        kept_params_m=count_parameters(models[1].module) / 1e6,
        groups=len(groups),
        frozen_groups=sum(bool(group.frozen) for group in groups),
        round_to=config.round_to,
        rounds=config.rounds,
        imgsz=parent.imgsz,
    )


def _layers(parent: nn.Module, pruned: nn.Module, graph: ChannelGraph) -> tuple[LayerWidth, ...]:
    """Output widths of every layer that makes channels of its own, and why one was left alone."""
    reasons = {
        label.rpartition(".")[0]: "; ".join(g.frozen)
        for g in graph.groups
        for label in g.producers
        if g.frozen
    }
    after = dict(pruned.named_modules())
    return tuple(
        LayerWidth(
            name, int(layer.out_channels), int(getattr(after.get(name), "out_channels", 0)), reasons.get(name)
        )
        for name, layer in parent.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1
    )


def _histogram(parent: nn.Module, pruned: nn.Module, bins: int = 40) -> Histogram | None:
    scales = []
    for module in (parent, pruned):
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        found = [tensors[name].detach().abs().flatten().float().cpu() for name in norm_scale_names(module)]
        scales.append(torch.cat(found).numpy() if found else np.zeros(0))
    if not len(scales[0]):
        return None
    edges = np.linspace(0.0, float(max(values.max() for values in scales if len(values))), bins + 1)
    before, after = (np.histogram(values, edges)[0].tolist() for values in scales)
    return Histogram(tuple(edges.tolist()), tuple(before), tuple(after))


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


def _task_warnings(module: nn.Module) -> list[str]:
    """Say what AP leaves out where boxes are not all that the model finds."""
    left_out = {
        "segment": "masks were not scored",
        "pose": "key points were not scored",
        "obb": "oriented boxes count as the upright boxes around them",
    }.get(str(getattr(module, "task", "")))
    return [f"AP is that of the boxes: {left_out}."] if left_out else []


def _cliff_warnings(cut: CutResult, metric: str) -> list[str]:
    """Name the budget behind which accuracy before training falls off."""
    points = [(float(kept), float(score)) for kept, score in cut.plan.settings.get("cliff", ())]
    best = max((score for _, score in points), default=0.0)
    for (kept, score), (fewer, lower) in itertools.pairwise(points):
        if best > 0 and score - lower > _STEEP * best:
            return [
                f"{metric} before training falls from {score:.3f} at {100 * kept:.0f} % to {lower:.3f} at "
                f"{100 * fewer:.0f} %: beyond that point the model lives on retraining."
            ]
    return []
