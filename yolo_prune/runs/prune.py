"""The whole flow on a host's model: evaluate, trace, rank, plan, cut, recover, retrain, measure, report."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.host import Host
from yolo_prune.adapters.hosts import file_of, find_host, guarding_host
from yolo_prune.adapters.stored import record_of_cut
from yolo_prune.criteria.ranking import check_criterion
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.record import PrunePlan
from yolo_prune.device import resolve_device
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.files import write_text
from yolo_prune.graph.randomness import seed_generators, untouched_randomness
from yolo_prune.imgsz import plain_size
from yolo_prune.options import PruneConfig, to_yaml
from yolo_prune.options.places import AUTO, has_place, has_target
from yolo_prune.progress import LOGGER
from yolo_prune.recover.effort import effort_for
from yolo_prune.report import METRICS, RunReport, write_report
from yolo_prune.run_log import keep_log_in, logged_run
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.job import PruneJob
from yolo_prune.runs.latency import Place, ask_runtime, deployment_of
from yolo_prune.runs.measure import Evaluated, measure_run
from yolo_prune.runs.measure.speed import BENCH_IMAGES
from yolo_prune.runs.outline import announced
from yolo_prune.runs.preflight import check_budget, free_on_resume, size_of, widths_of
from yolo_prune.runs.recovery import cut_and_recover, save_checkpoint
from yolo_prune.runs.resume import ARGS_FILE, check_resumed
from yolo_prune.runs.workspace import OUTPUTS, Workspace, open_workspace
from yolo_prune.runtimes import RUNTIMES
from yolo_prune.words import counted

_GIVEN = "given"  # folder of the objects that a run started from


@dataclass(frozen=True)
class PruneResult:
    """What a run leaves behind.

    Attributes:
        folder: The run folder.
        report: Everything that was measured.
        plan: What was cut.
        best: The checkpoint to use: retrained where there was retraining, else pruned.
    """

    folder: Path
    report: RunReport
    plan: PrunePlan
    best: Path


def prune(model: Any, *, data: str | Path, **options: Any) -> PruneResult:
    """Prune a detector or classifier to a budget, recover it, retrain it when asked, and report what it cost.

    Args:
        model: Checkpoint path, official model name, architecture yaml, a model object that came from one, or a module
            that a library with an adapter builds by name. Such a module stays as it is: it is written into
            ``project/given``, and the run starts from that file.
        data: Data yaml in the host's format; for a classifier a folder of folders of images.
        **options: Fields of :class:`yolo_prune.options.PruneConfig`; exactly one budget is needed.

    Returns:
        The run folder, the report, the plan and the best checkpoint.

    Raises:
        YoloPruneError: Whatever is wrong with model, data, options or budget, in one or two sentences.

    Example:
        >>> result = prune("best.pt", data="data.yaml", keep_macs=0.5, epochs=20)  # doctest: +SKIP
        >>> result.report.rows[0].accuracy  # doctest: +SKIP
    """
    named = str(model) if isinstance(model, (str, Path)) else _GIVEN
    config = make_config(PruneConfig, {"model": named, "data": str(data), **options})
    return prune_from_config(replace(config, model=str(file_of(model, Path(config.project) / _GIVEN))))


@guarding_host
def prune_from_config(config: PruneConfig) -> PruneResult:
    """Run ``yolo-prune prune``; see :func:`prune`."""
    host = find_host(config.model)
    with logged_run(host.packages):
        return _checked_and_run(config, host)


def _checked_and_run(config: PruneConfig, host: Host) -> PruneResult:
    """Look at everything that can be known beforehand, open the run folder, and go."""
    rate = {} if config.lr0 is None else {"lr0": config.lr0}
    host.check_training({**config.train_args, "optimizer": config.optimizer, **rate}, of_cut_model=True)
    device = resolve_device(config.device)
    check_criterion(config.criterion)
    loaded = load_detector(
        config.model, weights=config.weights, trust=config.trust, device=device, seed=config.seed
    )
    if config.epochs:
        host.check_trainable(loaded.module, config.data)
    task = host.open_task(
        loaded, config.data, split=config.split, batch=config.batch, device=device, workers=config.workers
    )
    task.check_training_images()  # better to know now
    imgsz = size_of(config, loaded, host.stride(loaded.module))
    parent = Traced.of(loaded.module, host.anatomy(loaded.module, imgsz, config.keep_layers))
    place, granularity = None, None
    if has_place(config):
        place = Place.of(config, config.threads, trust=config.trust, imports=config.imports)
        how = deployment_of(host, loaded, imgsz, task.image_files(BENCH_IMAGES), trust=config.trust)
        wanted = {"target": has_target(config), "auto": config.round_to == AUTO}
        asked, parent = ask_runtime(place, how, parent, **wanted)
        granularity = asked.granularity
    widths = widths_of(config, granularity)
    check_budget(config, parent.cost, imgsz, widths)
    effort = effort_for(
        parent.cost.macs(parent.cost.everything),
        device,
        images=config.calibration_images,
        steps=config.steps,
        classifier=loaded.task == "classify",
    )
    space = open_workspace(
        config.project, config.name, "prune", exist_ok=config.exist_ok, resume=config.resume
    )
    try:
        if config.resume:
            check_resumed(space.root, config, free=free_on_resume(config))
        else:
            _make_room(space, loaded.path)
        keep_log_in(space.root)
        with untouched_randomness():
            where = (space, device, imgsz, widths, effort, place, granularity)
            return _run(PruneJob(config, host, loaded, parent, task, *where))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{space.root} keeps what was finished; resume=true name={space.root.name} goes on"
        ) from None


def _run(job: PruneJob) -> PruneResult:
    """Do the work in an open run folder."""
    config, space = job.config, job.space
    write_text(space.root / ARGS_FILE, to_yaml(replace(config, resume=False)))  # to be run again, not resumed
    memory, stages_to_come = announced(job)
    seed_generators(config.seed)
    with space.stage("evaluate parent", "evaluating the parent"):
        role = {"role": "parent", "cut": record_of_cut(job.loaded.meta)}
        models = [_evaluated("parent", save_checkpoint(job, "parent", job.loaded.module, role), job)]
    job = job.with_parent(models[0].module)  # as the file has it: cut what was evaluated
    cut, stages = cut_and_recover(job)
    with space.stage("evaluate pruned", "evaluating the pruned model"):
        models.append(_evaluated("pruned", space.weights / "pruned.pt", job))
    if config.epochs:
        with space.stage("retrain", f"retraining for {counted(config.epochs, 'epoch')}"):
            _retrain(job, models[-1].module, cut.plan)
        with space.stage("evaluate retrained", "evaluating the retrained model"):
            models.append(_evaluated("retrained", space.weights / "best.pt", job))
    final, failed = models[-1], dict[str, str]()
    if config.quantize:
        with space.stage("quantise", "quantising the final model to INT8"):
            quantised, failed = _quantised(final, job)
            models += quantised
    report = measure_run(job, models, cut, stages, failed)
    write_report(report, space.root)
    if not config.resume:  # stages that went on took only what was left of them
        memory.keep(stages_to_come, space.timing_s)
    return PruneResult(space.root, report, cut.plan, final.file)


def _evaluated(name: str, file: Path, job: PruneJob) -> Evaluated:
    """Load a checkpoint back from its file, as a user would, and evaluate it."""
    task = job.task
    module = load_detector(file, trust=job.config.trust, device=task.device).module
    result = task.evaluate(module, job.imgsz)
    LOGGER.info("%s: %s (%d images)", name, METRICS[task.metric].sentence(result.scores), result.images)
    return Evaluated(name, file, module, result, job.imgsz)


def _quantised(final: Evaluated, job: PruneJob) -> tuple[list[Evaluated], dict[str, str]]:
    """Export the final model to INT8 for every runtime of the run that has it, and evaluate the files.

    Returns:
        The models, and by runtime why there is none.
    """
    config, found, failed = job.config, list[Evaluated](), dict[str, str]()
    runtimes = [name for name in config.runtimes if RUNTIMES[name].int8] or ["onnxruntime"]
    images = functools.cache(
        lambda: job.task.calibration_batches(final.imgsz, job.effort.images, config.seed)
    )  # once for all of them, and when needed
    for runtime in runtimes:
        out = job.space.weights / f"{final.file.stem}{RUNTIMES[runtime].int8}"
        try:
            result = job.host.export_int8(
                final.file,
                final.module,
                out,
                job.task,
                imgsz=final.imgsz,
                batches=images(),
                trust=config.trust,
            )
        except (YoloPruneError, OSError) as error:
            LOGGER.warning("there is no INT8 model for %s: %s", runtime, error)
            failed[runtime] = f"there is no INT8 model: {error}"
            continue
        sentence = METRICS[job.task.metric].sentence(result.scores)
        LOGGER.info("int8 for %s: %s (%d images)", runtime, sentence, result.images)
        found.append(Evaluated("int8", out, final.module, result, final.imgsz, runtime))
    return found, failed


def _make_room(space: Workspace, model: Path) -> None:
    """Clear an earlier run's files away, but never the model that this one starts from."""
    if model.resolve() in {(space.root / name).resolve() for name in OUTPUTS}:
        raise ConfigError(f"the run would overwrite its own model '{model}'. Choose another name=.")
    space.clear()


def _retrain(job: PruneJob, module: nn.Module, plan: PrunePlan) -> None:
    """Retrain a copy of the pruned model with the parent as teacher."""
    config = job.config
    extra = dict(config.train_args)
    if config.optimizer != "auto":
        extra["optimizer"] = config.optimizer
    job.host.retrain(
        copy.deepcopy(module),
        data=config.data,
        epochs=config.epochs,
        imgsz=job.imgsz,
        batch=config.batch,
        device=job.device,
        seed=config.seed,
        run_dir=job.space.root,
        teacher=job.parent.module if config.distill else None,
        distill=config.distill,
        workers=config.workers,
        lr0=config.lr0,
        extra=extra,
        resume=config.resume,
        trust=config.trust,
        meta={
            "role": "retrained",
            "plan": plan.budget,
            "kept_macs": plan.kept_macs,
            "imgsz": plain_size(job.imgsz),
        },
        task=job.loaded.task,
    )
