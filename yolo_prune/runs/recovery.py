"""The part of a run that makes the pruned model: cut, recover without labels, and keep what is done."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.adapters.checkpoint import fingerprint, load_detector
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.heads import measured_at_heads
from yolo_prune.criteria.memory import sized_for_memory
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import plain_size
from yolo_prune.options.places import has_target, measures
from yolo_prune.progress import LOGGER
from yolo_prune.recover.aim import how_it_was_met
from yolo_prune.recover.imitate import LESSONS
from yolo_prune.recover.one_step import Recipe
from yolo_prune.recover.stages import Stages, recover_by_imitation, recover_by_stages, score_of_kept
from yolo_prune.recover.steps import CutResult, cut_in_steps
from yolo_prune.runs.job import PruneJob
from yolo_prune.runs.latency import deployment_of, stopwatch
from yolo_prune.runs.measure.speed import BENCH_IMAGES
from yolo_prune.runs.preflight import budget_of, choose_criterion
from yolo_prune.train.timing import Measure

_Score = Callable[[nn.Module], float]
_IMITATION = "imitation"


def cut_and_recover(job: PruneJob) -> tuple[CutResult, Stages]:
    """Cut, recover without labels, choose by validation, and write ``pruned.pt`` and ``plan.json``.

    Returns:
        The cut model with its plan, and the score after every step of recovery.
    """
    scorer = functools.cache(
        lambda: job.task.scorer(job.imgsz)
    )  # its images are loaded once, and when needed

    def score(module: nn.Module) -> float:
        return scorer()(module)

    cut, stages = (_recall(job) if job.config.resume else None) or _cut(job, score)
    if job.config.recover_seconds and _IMITATION not in stages and cut.plan.kept_macs < 1:
        return _imitate(job, cut, stages, score)
    return cut, stages


def save_checkpoint(
    job: PruneJob, name: str, module: nn.Module, meta: Mapping[str, Any], plan: PrunePlan | None = None
) -> Path:
    """Write one of the run's checkpoints."""
    loaded, imgsz = job.loaded, plain_size(job.imgsz)
    return job.host.save(
        job.space.weights / f"{name}.pt",
        module,
        task=loaded.task,
        train_args={**loaded.train_args, "imgsz": imgsz, "task": loaded.task},
        meta={**meta, "parent": str(loaded.path), "imgsz": imgsz},
        trust=job.config.trust,
        plan=plan,
    )


def _recall(job: PruneJob) -> tuple[CutResult, Stages] | None:
    """Return the cut that an interrupted run finished, None when it had not come so far.

    Raises:
        ConfigError: It was a cut of another model than the file holds now.
    """
    space = job.space
    done, file = space.recall("recovery"), space.weights / "pruned.pt"
    if not (done and space.plan.is_file() and file.is_file()):
        return None
    plan = PrunePlan.from_json(space.plan.read_text(encoding="utf-8"))
    pruned = load_detector(file, trust=job.config.trust, device=job.device)
    if (pruned.meta or {}).get("of") != fingerprint(job.parent.module):
        raise ConfigError(
            f"'{space.root}' was cut from another model than '{job.loaded.path}'. Choose another name=."
        )
    LOGGER.info("going on from %s", file)
    for stage, seconds in done["timing_s"].items():
        space.timing_s.setdefault(stage, seconds)
    return CutResult(pruned.module, plan, ()), done["stages"]


def _cut(job: PruneJob, score: _Score) -> tuple[CutResult, Stages]:
    """Cut, fold, and re-estimate BatchNorm where that validates better."""
    config, space = job.config, job.space
    budget = budget_of(config)
    recipe = Recipe(
        criterion=choose_criterion(config, job.loaded),
        steps=job.effort.steps,
        widths=job.widths,
        fold=config.fold,
        seed=config.seed,
        depth=config.depth,
    )
    calibration = _calibration(job, job.effort.images)
    with (
        space.stage("cut", f"cutting to {budget.kind}={budget.value:g} by {recipe.criterion}"),
        _watch(job) as measure,
    ):
        cut = cut_in_steps(job.parent, budget, recipe, calibration, validate=score, measure=measure)
    settings = {**cut.plan.settings, **_runtime_settings(job, cut)}
    cut = replace(cut, plan=replace(cut.plan, settings=settings))
    with space.stage("recover", "recovering without training"):
        module, stages = recover_by_stages(
            job.parent, cut, calibration, score, recalibrate=config.recalibrate_bn, folded=config.fold
        )
    cut = replace(cut, module=module)
    _keep(job, cut, stages)
    return cut, stages


@contextmanager
def _watch(job: PruneJob) -> Iterator[Measure | None]:
    """Yield what times the models of a run on the way to a target, None where nothing is timed."""
    config, place = job.config, job.place
    if place is None or not measures(config):
        yield None
        return
    images = job.task.image_files(BENCH_IMAGES)
    how = deployment_of(job.host, job.loaded, job.imgsz, images, trust=config.trust)
    whole_ms = job.parent.amount(budget_of(config))
    with stopwatch(place, how, job.space.weights / "parent.pt", whole_ms) as measure:
        yield measure


def _runtime_settings(job: PruneJob, cut: CutResult) -> dict[str, Any]:
    """Return what a plan keeps of the runtime that it was made for: how a target was met, which widths it likes."""
    found: dict[str, Any] = {}
    if job.place is not None and has_target(job.config):
        budget = budget_of(job.config)
        whole_ms, limit_ms = job.parent.amount(budget), budget.limit(job.parent.cost)
        predicted_ms = whole_ms * cut.steps[-1].kept if cut.steps else whole_ms
        met = how_it_was_met(cut.reached, target_ms=limit_ms, parent_ms=whole_ms, predicted_ms=predicted_ms)
        found["latency"] = {**job.place.where, **met}
    if job.granularity is not None:
        found["granularity"] = job.granularity.to_dict()
    return found


def _imitate(job: PruneJob, cut: CutResult, stages: Stages, score: _Score) -> tuple[CutResult, Stages]:
    """Let the cut model imitate the parent, and keep that where it validates better."""
    config = job.config
    with job.space.stage("imitate", f"imitating the parent, for at most {config.recover_seconds:g} s"):
        module, result, reached = recover_by_imitation(
            cut.module,
            job.parent.module,
            _calibration(job, max(LESSONS, job.effort.images)),
            seconds=config.recover_seconds,
            score=score,
            known=score_of_kept(stages, recalibrate=config.recalibrate_bn, folded=config.fold),
        )
    kept = module is not cut.module
    settings = {**cut.plan.settings, _IMITATION: {**result.to_dict(), "kept": kept}}
    cut = replace(cut, module=module, plan=replace(cut.plan, settings=settings))
    stages = {**stages, _IMITATION: reached}
    _keep(job, cut, stages)
    return cut, stages


def _calibration(job: PruneJob, images: int) -> Calibration:
    """Return what models are measured on: training images, and on request what is in them."""
    module = job.parent.module
    calibration = job.host.calibration(
        module,
        job.task.calibration_batches(job.imgsz, images, job.config.seed),
        imgsz=job.imgsz,
        classes=len(job.loaded.names),
        seed=job.config.seed,
    )
    read = functools.partial(job.task.calibration_labels, job.imgsz, images, job.config.seed)
    graph, calibration = job.parent.cost.graph, replace(calibration, labels=functools.cache(read))
    return sized_for_memory(measured_at_heads(module, graph, calibration), module, graph)


def _keep(job: PruneJob, cut: CutResult, stages: Stages) -> None:
    """Write the model and the plan, and remember the scores, so that a run that is cut short can go on from here."""
    meta = {
        "role": "pruned",
        "plan": cut.plan.budget,
        "kept_macs": cut.plan.kept_macs,
        "of": fingerprint(job.parent.module),
    }
    save_checkpoint(job, "pruned", cut.module, meta, cut.plan)
    cut.plan.save(job.space.plan)
    job.space.remember("recovery", {"stages": stages, "timing_s": job.space.timing_s})
