"""Retrain a pruned model through the host's own trainer: its data, augmentations, schedules, loggers.

Files of ``retrain``: the host works in ``run_dir/train`` (args.yaml, plots, results.csv, weights), so it can
neither overwrite nor, under DDP, delete what else is in the run folder. When it is done, best.pt and last.pt
move up to ``run_dir/weights`` and results.csv is copied to ``run_dir``. A run that was interrupted resumes
from ``run_dir/train/weights/last.pt``.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.adapters.stored import METADATA_KEY
from yolo_prune.adapters.ultralytics.class_folders import find_class_folders
from yolo_prune.adapters.ultralytics.data import check_channels, read_data_yaml
from yolo_prune.adapters.ultralytics.load import check_run_files, read_checkpoint
from yolo_prune.adapters.ultralytics.training.history import carried
from yolo_prune.adapters.ultralytics.training.trainer import TrainSettings, prune_trainer
from yolo_prune.adapters.ultralytics.undisturbed import no_installs
from yolo_prune.cost import count_parameters
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.files import replacing
from yolo_prune.imgsz import ImageSize, is_square, longer_side, plain_size, read_size, size_text
from yolo_prune.progress import LOGGER
from yolo_prune.run_log import keep_log_in
from yolo_prune.train.retrained import RetrainResult, check_still_cut

Callback = Callable[[Any], None]

TRAINERS = {
    "detect": "DetectionTrainer",
    "segment": "SegmentationTrainer",
    "pose": "PoseTrainer",
    "obb": "OBBTrainer",
    "classify": "ClassificationTrainer",
}


GENTLE_SETTINGS = TrainSettings(ema_steps=100.0, ema_decay=0.99, keep_statistics_from=0.05)
"""What belongs to the gentle recipe and is no argument of the host: a short average, and BatchNorm as it is."""


def gentle_recipe(epochs: int, batch: int) -> dict[str, Any]:
    """Return the host's arguments that improve a recovered model and do not undo its recovery first.

    A moderate rate for AdamW, no bias kick while warming up, a cosine, one optimizer step a batch (the host would
    gather 64 images first: three steps an epoch on a small data set). Mosaics stay to the end: without them the
    images change their statistics, which cost 0.03 AP on bccd where BatchNorm followed them.

    Args:
        epochs: Length of the retraining.
        batch: Images in a batch.
    """
    return {
        "optimizer": "AdamW",
        "lr0": 5e-4,
        "lrf": 0.05,
        "momentum": 0.9,
        "cos_lr": True,
        "warmup_epochs": min(1.0, epochs / 10),
        "warmup_bias_lr": 0.0,
        "warmup_momentum": 0.9,
        "nbs": batch if batch > 0 else 16,
        "close_mosaic": 0,
    }


@no_installs()
def retrain(
    module: nn.Module,
    *,
    data: str | Path,
    epochs: int,
    imgsz: ImageSize,
    batch: int = 16,
    device: str | None = "cpu",
    seed: int = 0,
    run_dir: Path,
    teacher: nn.Module | None = None,
    distill: bool = True,
    workers: int = 2,
    lr0: float | None = None,
    extra: dict[str, Any] | None = None,
    resume: bool = False,
    trust: bool = False,
    meta: dict[str, Any] | None = None,
    task: str | None = None,
    settings: TrainSettings | None = None,
    callbacks: Mapping[str, Callback] | None = None,
) -> RetrainResult:
    """Train ``module`` on and keep it cut; best.pt is never worse on the validation split than ``module``.

    Args:
        module: The pruned model of the host; it is copied, not changed.
        data: The data's yaml (or folder, for classification).
        epochs: How long.
        imgsz: Size of the images in pixels. The host trains on squares: one that is not is trained at its longer side.
        batch: Images in a batch.
        device: As the host spells it.
        seed: Of everything random.
        run_dir: ``weights/best.pt``, ``weights/last.pt`` and ``results.csv`` appear here.
        teacher: The parent, to learn from; None for labels alone.
        distill: False ignores the teacher.
        workers: Processes that load data (the host uses none on a CPU).
        lr0: Initial rate; None for that of the recipe.
        extra: More arguments of the host, which win over the recipe.
        resume: Go on from an interrupted run in ``run_dir``; a finished one is returned as it is.
        trust: Read checkpoints that want arbitrary code.
        meta: Plain dictionary stored under "yolo_prune" in the checkpoints.
        task: "detect", "segment", "pose", "obb" or "classify"; None reads it off the module.
        settings: The trainer's own settings; None for the recipe's.
        callbacks: More callbacks by the host's names of events; each is called with the trainer.

    Raises:
        DataError: The data has other classes than the model.
        RebuiltError: The host built another model than the one it was handed.
        ConfigError: There is no trainer for the task.
    """
    run_dir = Path(run_dir).absolute()
    host = run_dir / "train"
    if resume and _finished(host, run_dir, trust):
        return _result(run_dir / "weights", run_dir / "results.csv", count_parameters(module), trust)
    host_last = _resumable(host) if resume else None
    settings = replace(
        settings or GENTLE_SETTINGS,
        teacher=deepcopy(teacher) if distill and teacher is not None else None,
        meta=dict(meta or {}),
    )
    if not is_square(imgsz):
        side, shape = longer_side(imgsz), size_text(imgsz)
        LOGGER.info(
            "the host trains on squares: %d x %d px instead of %s, also to choose best.pt", side, side, shape
        )
    asked = {
        "imgsz": longer_side(imgsz),
        "batch": batch,
        "device": device,
        "seed": seed,
        "workers": workers,
        "lr0": lr0,
    }
    overrides = {
        **_merged(gentle_recipe(epochs, batch), {**asked, **(extra or {})}),
        "model": str(run_dir / "weights" / "pruned.pt"),
        "task": task or _task_of(module),
        "data": str(data),
        "epochs": epochs,
        "project": str(run_dir),
        "name": host.name,
        "exist_ok": True,
    }
    trainer = _trainer(overrides, settings, module, host_last)
    for event, callback in (callbacks or {}).items():
        trainer.add_callback(event, callback)
    trainer.train()
    _publish(trainer.save_dir, run_dir)
    return _result(run_dir / "weights", run_dir / "results.csv", count_parameters(module), trust)


@no_installs()
def train_pruned(
    model: str | Path,
    *,
    data: str | Path,
    epochs: int = 20,
    teacher: str | Path | None = None,
    recipe: str = "gentle",
    resume: bool = False,
    trust: bool = False,
    **host_args: Any,
) -> RetrainResult:
    """Go on training a pruned checkpoint, with every argument that the host's own ``train`` takes.

    Args:
        model: The pruned checkpoint; with ``resume`` the last.pt of an interrupted run.
        data: The data's yaml (or folder, for classification).
        epochs: How long.
        teacher: The parent's checkpoint, to learn from; None for labels alone.
        recipe: "gentle" for our defaults where ``host_args`` say nothing, "host" for the host's.
        resume: Go on with an interrupted run.
        trust: Load a checkpoint that wants arbitrary code.
        **host_args: Arguments of the host (``imgsz``, ``batch``, ``project``, ``name``, ``cos_lr``, ...).

    Returns:
        The result; its files are in the host's own run folder.

    Raises:
        CheckpointError: The checkpoint is missing, cannot be trained, or has nothing to resume.
        ConfigError: The recipe is unknown.
        DataError: The data is missing or has other classes than the model.
        RebuiltError: The host built another model than the one it was handed.
    """
    from yolo_prune.adapters.ultralytics.load import load_detector

    if recipe not in ("gentle", "host"):
        raise ConfigError(f"unknown recipe '{recipe}'. Use gentle or host.")
    loaded = load_detector(model, trust=trust)
    if resume:
        refuse_ended(Path(model), trust)
    size = read_size(host_args.get("imgsz") or loaded.imgsz)
    gentle = gentle_recipe(epochs, int(host_args.get("batch", 16))) if recipe == "gentle" else {}
    settings = replace(
        GENTLE_SETTINGS if recipe == "gentle" else TrainSettings(),
        meta={**carried(loaded.meta), "imgsz": plain_size(size)},
        teacher=None if teacher is None else load_detector(teacher, trust=trust).module,
    )
    overrides = {
        **_merged(gentle, host_args),
        "imgsz": longer_side(size),
        "model": str(model),
        "task": loaded.task,
        "data": str(data),
        "epochs": epochs,
    }
    if overrides.get("project"):  # relative to here, not to a folder in the host's settings
        overrides["project"] = str(Path(overrides["project"]).absolute())
    trainer = _trainer(overrides, settings, loaded.module, Path(model) if resume else None)
    keep_log_in(trainer.save_dir)
    trainer.train()
    return _result(trainer.wdir, trainer.csv, count_parameters(loaded.module), trust)


def _merged(recipe: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with what was asked for on top; None (and the optimizer "auto") ask for nothing."""
    given = {key: value for key, value in asked.items() if value is not None}
    if "optimizer" in recipe and given.get("optimizer") == "auto":
        del given["optimizer"]
    return {**recipe, **given}


def _trainer(overrides: dict[str, Any], settings: TrainSettings, module: nn.Module, last: Path | None) -> Any:
    """Return a trainer of the host that will train ``module``, or go on from the checkpoint ``last``."""
    from ultralytics.models import yolo

    task = overrides["task"]
    if task not in TRAINERS:
        raise ConfigError(f"cannot retrain a model for '{task}'. Known tasks: {', '.join(TRAINERS)}.")
    if task == "classify":
        find_class_folders(overrides["data"], "train")
    else:
        check_channels(module, read_data_yaml(overrides["data"]))
    cls = prune_trainer(getattr(getattr(yolo, task), TRAINERS[task]), settings)
    if last is not None:
        return cls(overrides={**overrides, "resume": str(last)})
    trainer = cls(overrides=overrides)
    for stale in (trainer.last, trainer.best):
        stale.unlink(missing_ok=True)
    trainer.model = trainer.get_model(weights=module)
    return trainer


def _task_of(module: nn.Module) -> str:
    """Return the task that a host's model was built for."""
    from ultralytics.nn.tasks import guess_model_task

    return str(getattr(module, "task", None) or guess_model_task(module))


def _finished(host: Path, run_dir: Path, trust: bool) -> bool:
    """Return whether the retraining in ``run_dir`` is over; publish its files if only that is missing."""
    last = host / "weights" / "last.pt"
    if not last.is_file():
        return (run_dir / "weights" / "best.pt").is_file() and (run_dir / "weights" / "last.pt").is_file()
    if not _is_over(last, trust):
        return False
    _publish(host, run_dir)
    return True


def refuse_ended(last: Path, trust: bool) -> None:
    """Raise CheckpointError for a checkpoint that nothing can go on from: the host would begin a new training."""
    if _is_over(last, trust):
        raise CheckpointError(f"'{last}' is of a training that ended: leave out resume to train it on.")


def _is_over(last: Path, trust: bool) -> bool:
    """Return whether the host has finished the training that a checkpoint is of, or never saw it.

    Raises:
        CheckpointError: The checkpoint, or one that the host would read beside it, is not safe to load.
    """
    checkpoint = read_checkpoint(last, trust=trust)
    check_run_files(last, checkpoint, trust=trust)
    return bool(checkpoint.get("epoch", -1) == -1)


def _resumable(host: Path) -> Path | None:
    """Return the checkpoint to go on from, or None for a run that was killed in its first epoch."""
    last = host / "weights" / "last.pt"
    if not last.is_file():
        LOGGER.info("nothing to resume in %s: retraining starts from the beginning", host)
        return None
    return last


def _publish(host: Path, run_dir: Path) -> None:
    """Move the host's checkpoints up to where the run's own are, and copy its table of epochs."""
    (run_dir / "weights").mkdir(parents=True, exist_ok=True)
    for name in ("best.pt", "last.pt"):
        (host / "weights" / name).replace(run_dir / "weights" / name)
    with replacing(run_dir / "results.csv") as temporary:
        shutil.copyfile(host / "results.csv", temporary)


def _result(weights: Path, results_csv: Path, params_before: int, trust: bool) -> RetrainResult:
    """Read the outcome of a retraining back from its files.

    Raises:
        CheckpointError: The host left no checkpoint.
        RebuiltError: A checkpoint has another number of parameters than ``params_before``.
    """
    best, last = weights / "best.pt", weights / "last.pt"
    if not last.is_file():
        raise CheckpointError(f"the host finished training but left no checkpoint in {weights}.")
    counts: dict[Path, int] = {}
    history: dict[str, Any] = {}
    for path in (last, best if best.is_file() else last):
        checkpoint = read_checkpoint(path, trust=trust)
        counts[path] = count_parameters(checkpoint["model"])
        check_still_cut(params_before, counts[path])
        history = dict(checkpoint.get(METADATA_KEY) or {}).get("retrain") or {}
    with results_csv.open(newline="", encoding="utf-8") as table:
        epochs_run = sum(1 for _ in csv.DictReader(table))
    return RetrainResult(
        best=path,
        last=last,
        results_csv=results_csv,
        params_before=params_before,
        params_after=counts[path],
        epochs_run=epochs_run,
        start_fitness=history.get("start_fitness"),
        best_fitness=history.get("fitness"),
    )
