"""The host's trainer as a loop that a session can prune in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.closeness import calibration_of
from yolo_prune.adapters.ultralytics.own import own_classes
from yolo_prune.adapters.ultralytics.training import aftercut, midrun
from yolo_prune.adapters.ultralytics.training.ending import fitness_of
from yolo_prune.adapters.ultralytics.training.trainer import unwrap
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.record import PrunePlan
from yolo_prune.train.midcut import is_distributed
from yolo_prune.train.timing import Timekeeper

_TIMED_IMAGES = 16


class HostLoop:
    """See :class:`yolo_prune.train.loop.TrainingLoop`."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def model(self) -> nn.Module:
        """The model without DDP, compiler and the like."""
        return unwrap(self._trainer.model)

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The host has one."""
        return (self._trainer.optimizer,)

    @property
    def average(self) -> nn.Module:
        """The host's EMA."""
        average: nn.Module = self._trainer.ema.ema
        return average

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return int(self._trainer.epoch)

    @property
    def epochs(self) -> int:
        """Length of the run."""
        return int(self._trainer.epochs)

    @property
    def elapsed(self) -> float | None:
        """Share of ``time=`` that is over; all processes have the first one's."""
        trainer = self._trainer
        if not trainer.args.time:
            return None
        hours = (time.time() - trainer.train_time_start) / 3600
        share: float | None = trainer.from_first_rank(hours / trainer.args.time)
        return share

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer, which waits for several batches."""
        batches = len(self._trainer.train_loader)
        return math.ceil(batches / int(self._trainer.batches_per_step))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return aftercut.is_first_process()

    @property
    def timekeeper(self) -> Timekeeper:
        """Times checkpoints as the host writes and exports them; ``weights/parent.pt`` is written by the cut."""
        from yolo_prune.runs.latency import Deployment
        from yolo_prune.runs.timekeeper import RunTimekeeper

        trainer = self._trainer

        def write(module: nn.Module, file: Path, plan: PrunePlan | None) -> Path:
            return aftercut.write_model(trainer, module, file, {"cut": plan is not None or trainer.began_cut})

        images = midrun.files_of(trainer.train_loader.dataset)
        deployment = Deployment(write, midrun.size_of(trainer), images and images[:_TIMED_IMAGES])
        own = bool(own_classes(self.model))
        return RunTimekeeper.of(
            trainer.pruning, deployment, Path(trainer.save_dir), writes_parent=False, trust=own
        )

    @property
    def classifies(self) -> bool:
        """Whether the host trains a classifier."""
        return bool(self._trainer.args.task == "classify")

    @property
    def score(self) -> Callable[[nn.Module], float] | None:
        """The host's fitness; several processes validate together, but only one of them recovers a cut model."""
        return None if is_distributed() or not self._trainer.args.val else partial(fitness_of, self._trainer)

    def rate_factor(self, epoch: int) -> float:
        """Return what the host's schedule makes of the initial rates."""
        return float(self._trainer.lf(epoch))

    def averaged(self) -> nn.Module:
        """Return the EMA as the host's checkpoints hold it; after the last epoch the best one."""
        trainer = self._trainer
        if trainer.ending and trainer.best.is_file():
            return midrun.best_as_saved(trainer.best, bool(own_classes(self.model)))
        return midrun.average_as_saved(self.average)

    def anatomy(self) -> Anatomy:
        """Return how to run the model; what the host was told not to train keeps its channels."""
        trainer = self._trainer
        frozen = midrun.frozen_modules(trainer.freeze_layer_names, trainer.pruning.keep_layers, self.model)
        return anatomy_of(self.model, midrun.size_of(trainer), frozen)

    def calibration(self, count: int) -> Calibration:
        """Return the images that are trained on as validation would see them."""
        trainer, size = self._trainer, midrun.size_of(self._trainer)
        seed = int(trainer.args.seed)
        batches = midrun.calibration_images(trainer, count, seed)
        classes = len(trainer.data["names"])
        calibration = calibration_of(self.model, batches, imgsz=size, classes=classes, seed=seed)
        return replace(calibration, labels=lambda: midrun.labels_in(trainer, count, seed))

    def before_first_cut(self, parent: nn.Module) -> None:
        """Write ``weights/parent.pt``."""
        aftercut.save_parent(self._trainer, parent)

    def after_cut(self, plan: PrunePlan, parent: nn.Module | None) -> None:
        """Make wrappers, average and early stopping anew, attach the teacher, validate and save."""
        self._trainer.params_before = self._trainer.state.current_params
        aftercut.start_afresh(self._trainer, parent)
        self._trainer.save_cut(plan)
