"""The whole flow on a host's model: evaluate, trace, rank, plan, cut, recover, retrain, measure, report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.accuracy.task import Task
from yolo_prune.adapters.checkpoint import fingerprint, load_detector, save_detector
from yolo_prune.adapters.hosts import file_of, find_host, guarding_host
from yolo_prune.adapters.stored import LoadedModel, record_of_cut
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.widths import Widths
from yolo_prune.device import resolve_device
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.files import write_text
from yolo_prune.imgsz import ImageSize, plain_size
from yolo_prune.options import PruneConfig, to_yaml
from yolo_prune.progress import LOGGER
from yolo_prune.recover.steps import CutResult, Recipe, cut_in_steps
from yolo_prune.report import METRICS, RunReport, write_report
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.measure import Evaluated, measure_run
from yolo_prune.runs.preflight import budget_of, check_budget, choose_criterion, size_of
from yolo_prune.runs.resume import ARGS_FILE, check_resumed
from yolo_prune.runs.workspace import OUTPUTS, Workspace, open_workspace
from yolo_prune.train.randomness import seed_generators, untouched_randomness


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
        model: Checkpoint path, official model name, architecture yaml, or a model object that came from one.
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
    return prune_from_config(
        make_config(PruneConfig, {"model": str(file_of(model)), "data": str(data), **options})
    )


@guarding_host
def prune_from_config(config: PruneConfig) -> PruneResult:
    """Run ``yolo-prune prune``; see :func:`prune`."""
    host = find_host(config.model)
    rate = {} if config.lr0 is None else {"lr0": config.lr0}
    host.check_training({**config.train_args, "optimizer": config.optimizer, **rate}, of_cut_model=True)
    device = resolve_device(config.device)
    loaded = load_detector(config.model, trust=config.trust, device=device, seed=config.seed)
    task = host.open_task(
        loaded, config.data, split=config.split, batch=config.batch, device=device, workers=config.workers
    )
    task.check_training_images()  # better to know now
    anatomy = host.anatomy(loaded.module, size_of(config, loaded), config.keep_layers)
    check_budget(config, loaded, anatomy)
    space = open_workspace(
        config.project, config.name, "prune", exist_ok=config.exist_ok, resume=config.resume
    )
    try:
        if config.resume:
            check_resumed(space.root, config)
        else:
            _make_room(space, loaded.path)
        with untouched_randomness():
            return _run(config, loaded, task, space, device, anatomy)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{space.root} keeps what was finished; resume=true name={space.root.name} goes on"
        ) from None


def _run(
    config: PruneConfig,
    loaded: LoadedModel,
    task: Task,
    space: Workspace,
    device: str,
    anatomy: Anatomy,
) -> PruneResult:
    """Do the work in an open run folder."""
    imgsz = size_of(config, loaded)
    write_text(space.root / ARGS_FILE, to_yaml(replace(config, resume=False)))  # to be run again, not resumed
    seed_generators(config.seed)
    with space.stage("evaluate parent", "evaluating the parent"):
        role = {"role": "parent", "cut": record_of_cut(loaded.meta)}
        parent_file = _save(config, space, "parent", loaded.module, loaded, imgsz, role)
        models = [_evaluated("parent", parent_file, config, task, imgsz)]
    loaded = replace(loaded, module=models[0].module)  # as the file has it: cut what was evaluated
    cut, stages, anatomy = _cut_and_recover(config, loaded, task, space, anatomy, device, imgsz)
    with space.stage("evaluate pruned", "evaluating the pruned model"):
        models.append(_evaluated("pruned", space.weights / "pruned.pt", config, task, imgsz))
    if config.epochs:
        with space.stage("retrain", f"retraining for {config.epochs} epochs"):
            _retrain(config, loaded, models, space, device, imgsz, cut.plan)
        with space.stage("evaluate retrained", "evaluating the retrained model"):
            models.append(_evaluated("retrained", space.weights / "best.pt", config, task, imgsz))
    final, failed = models[-1], dict[str, str]()
    if config.quantize:
        with space.stage("quantise", "quantising the final model to INT8"):
            quantised, failed = _quantised(final, config, task, space)
            models += quantised
    report = measure_run(config, models, cut, stages, anatomy, task, space, device, failed)
    write_report(report, space.root)
    return PruneResult(space.root, report, cut.plan, final.file)


def _save(
    config: PruneConfig,
    space: Workspace,
    name: str,
    module: nn.Module,
    loaded: LoadedModel,
    imgsz: ImageSize,
    meta: Mapping[str, Any],
) -> Path:
    """Write one of the run's checkpoints."""
    return save_detector(
        space.weights / f"{name}.pt",
        module,
        task=loaded.task,
        train_args={**loaded.train_args, "imgsz": plain_size(imgsz), "task": loaded.task},
        meta={**meta, "parent": str(loaded.path), "imgsz": plain_size(imgsz)},
        trust=config.trust,
    )


def _evaluated(name: str, file: Path, config: PruneConfig, task: Task, imgsz: ImageSize) -> Evaluated:
    """Load a checkpoint back from its file, as a user would, and evaluate it."""
    module = load_detector(file, trust=config.trust, device=task.device).module
    result = task.evaluate(module, imgsz)
    LOGGER.info("%s: %s (%d images)", name, METRICS[task.metric].sentence(result.scores), result.images)
    return Evaluated(name, file, module, result, imgsz)


def _quantised(
    final: Evaluated, config: PruneConfig, task: Task, space: Workspace
) -> tuple[list[Evaluated], dict[str, str]]:
    """Export the final model to INT8 and evaluate the file; what goes wrong there is why its row is empty."""
    out = space.weights / f"{final.file.stem}_int8.onnx"
    size, images = final.imgsz, config.calibration_images
    try:
        result = find_host(config.model).export_int8(
            final.file,
            final.module,
            out,
            task,
            imgsz=size,
            images=images,
            seed=config.seed,
            trust=config.trust,
        )
    except (YoloPruneError, OSError) as error:
        LOGGER.warning("there is no INT8 model: %s", error)
        return [], {"int8": f"there is no INT8 model: {error}"}
    LOGGER.info("int8: %s (%d images)", METRICS[task.metric].sentence(result.scores), result.images)
    return [Evaluated("int8", out, final.module, result, final.imgsz)], {}


def _make_room(space: Workspace, model: Path) -> None:
    """Clear an earlier run's files away, but never the model that this one starts from."""
    if model.resolve() in {(space.root / name).resolve() for name in OUTPUTS}:
        raise ConfigError(f"the run would overwrite its own model '{model}'. Choose another name=.")
    space.clear()


def _recall(
    config: PruneConfig, loaded: LoadedModel, space: Workspace, device: str
) -> tuple[CutResult, dict[str, float | None]] | None:
    """Return the cut that an interrupted run finished, None when it had not come so far.

    Raises:
        ConfigError: It was a cut of another model than the file holds now.
    """
    done, file = space.recall("recovery"), space.weights / "pruned.pt"
    if not (done and space.plan.is_file() and file.is_file()):
        return None
    plan, pruned = (
        PrunePlan.from_json(space.plan.read_text(encoding="utf-8")),
        load_detector(file, trust=config.trust, device=device),
    )
    if (pruned.meta or {}).get("of") != fingerprint(loaded.module):
        raise ConfigError(
            f"'{space.root}' was cut from another model than '{loaded.path}'. Choose another name=."
        )
    LOGGER.info("going on from %s", file)
    for stage, seconds in done["timing_s"].items():
        space.timing_s.setdefault(stage, seconds)
    return CutResult(pruned.module, plan, ()), done["stages"]


def _cut_and_recover(
    config: PruneConfig,
    loaded: LoadedModel,
    task: Task,
    space: Workspace,
    anatomy: Anatomy,
    device: str,
    imgsz: ImageSize,
) -> tuple[CutResult, dict[str, float | None], Anatomy]:
    """Cut, recover without training, choose by validation, and write ``pruned.pt`` and ``plan.json``."""
    from yolo_prune.recover.stages import recover_by_stages

    done = _recall(config, loaded, space, device) if config.resume else None
    if done:
        return *done, anatomy
    budget = budget_of(config)
    recipe = Recipe(
        criterion=choose_criterion(config, loaded),
        steps=config.steps,
        widths=Widths(config.round_to, config.min_width, config.min_keep),
        fold=config.fold,
        seed=config.seed,
        depth=config.depth,
    )
    batches = task.calibration_batches(imgsz, config.calibration_images, config.seed)
    score = task.scorer(imgsz)
    with space.stage("cut", f"cutting to {budget.kind}={budget.value:g} by {recipe.criterion}"):
        cut = cut_in_steps(
            loaded.module,
            anatomy,
            budget,
            recipe,
            batches=batches,
            task=find_host(config.model).projection(imgsz, config.seed, len(loaded.names)),
            validate=score,
        )
    with space.stage("recover", "recovering without training"):
        module, stages = recover_by_stages(
            loaded.module, cut, anatomy, batches, score, recalibrate=config.recalibrate_bn, folded=config.fold
        )
    cut = replace(cut, module=module)
    meta = {
        "role": "pruned",
        "plan": cut.plan.budget,
        "kept_macs": cut.plan.kept_macs,
        "of": fingerprint(loaded.module),
    }
    _save(config, space, "pruned", module, loaded, imgsz, meta)
    cut.plan.save(space.plan)
    space.remember("recovery", {"stages": stages, "timing_s": space.timing_s})
    return cut, stages, anatomy


def _retrain(
    config: PruneConfig,
    loaded: LoadedModel,
    models: list[Evaluated],
    space: Workspace,
    device: str,
    imgsz: ImageSize,
    plan: PrunePlan,
) -> None:
    """Retrain the pruned model with the parent as teacher."""
    extra = dict(config.train_args)
    if config.optimizer != "auto":
        extra["optimizer"] = config.optimizer
    find_host(config.model).retrain(
        copy.deepcopy(models[-1].module),
        data=config.data,
        epochs=config.epochs,
        imgsz=imgsz,
        batch=config.batch,
        device=device,
        seed=config.seed,
        run_dir=space.root,
        teacher=loaded.module if config.distill else None,
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
            "imgsz": plain_size(imgsz),
        },
        task=loaded.task,
    )
