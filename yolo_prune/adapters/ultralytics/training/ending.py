"""The end of a training that prunes: its best model is cut, and what was interrupted there is made once more."""

from __future__ import annotations

import shutil
from copy import deepcopy
from typing import Any

from torch import nn

from yolo_prune.adapters.ultralytics.load import read_checkpoint
from yolo_prune.adapters.ultralytics.own import own_classes
from yolo_prune.adapters.ultralytics.training import aftercut, rescue
from yolo_prune.adapters.ultralytics.training.trainer import unwrap
from yolo_prune.cost import count_parameters
from yolo_prune.errors import CheckpointError
from yolo_prune.files import replacing
from yolo_prune.progress import LOGGER

_OF_A_TRAINING = ("args", "nc", "names", "stride", "class_weights")


class AllEpochsOverError(Exception):
    """An interrupted run has no epoch left; it leaves the host's loop by this, and nobody sees it."""


def end_training(trainer: Any) -> None:
    """Cut the best model of a training whose last epoch is over and saved, where it was to be cut then.

    Args:
        trainer: A trainer of the host at the end of an epoch.
    """
    trainer.ending, epoch = True, trainer.epoch
    trainer.epoch = epoch + 1  # as a cut at the beginning of the next one: what is saved is of this
    try:
        trainer.session.end(rescue.rescued(trainer))
    finally:
        trainer.epoch = epoch


def make_end(trainer: Any) -> None:
    """Go on with a run that was interrupted after its last epoch: cut, or only finish the files, and evaluate.

    Args:
        trainer: A trainer of the host that was set up and has left its loop.
    """
    LOGGER.info("all epochs are over: what is left is the end.")
    trainer.epoch = trainer.start_epoch - 1
    end_training(trainer)
    if aftercut.is_first_process():
        _finish_best(trainer)
    trainer.final_eval()
    if aftercut.is_first_process():
        trainer.run_callbacks("on_train_end")
    for loader in (trainer.train_loader, trainer.test_loader):
        if hasattr(loader, "close"):
            loader.close()


def _finish_best(trainer: Any) -> None:
    """Write best.pt where the run was interrupted between last.pt and it, or while it was written."""
    best, trust = trainer.best, bool(own_classes(unwrap(trainer.model)))
    try:
        checkpoint = read_checkpoint(best, trust=trust)
        cut = count_parameters(checkpoint.get("ema") or checkpoint["model"]) == trainer.state.current_params
    except CheckpointError:
        cut = False
    if not cut:
        with replacing(best) as temporary:
            shutil.copyfile(trainer.last, temporary)


def fitness_of(trainer: Any, module: nn.Module) -> float:
    """Return the host's fitness of a model on the validation images.

    Args:
        trainer: A trainer of the host at the end of its training.
        module: A model of it; untouched.
    """
    average, copied = trainer.ema.ema, deepcopy(module).to(trainer.device)
    for name in _OF_A_TRAINING:
        if hasattr(unwrap(trainer.model), name):
            setattr(copied, name, getattr(unwrap(trainer.model), name))
    setattr(copied, "criterion", None)  # noqa: B010 - a plain attribute, no submodule
    before = trainer.metrics, trainer.best_fitness, trainer.fitness
    try:
        trainer.ema.ema = copied
        with rescue.as_after_last_epoch(trainer):
            fitness = trainer.validate()[1]
    finally:
        trainer.ema.ema = average
        trainer.metrics, trainer.best_fitness, trainer.fitness = before
    return float(fitness)
