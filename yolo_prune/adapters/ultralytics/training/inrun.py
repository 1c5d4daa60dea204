"""A trainer class that prunes inside the training that it runs: dense and sparse epochs, the cut, retraining.

The host's loop, seen from here (where we step in is starred)::

    Trainer(overrides)
    train()
        setup_model() -> get_model() *      the host's own model; a checkpoint that is already cut stays cut
        optimizer, EMA, loaders, resume
        "on_train_start" *                  the budget is checked, a resumed run picks up its state
        each epoch:
            "on_train_epoch_start" *        cut when it is time, hook of the sparse epochs
            batches: "on_train_batch_start" * (gentle rates after a cut)
            "on_train_epoch_end" *          where the scales are
            validate() *                    our columns join the metrics; lambda is judged
            save_model() *                  our state goes into the checkpoint
            "on_fit_epoch_end" *            after the last one: the best model is cut, where prune_at=end
        final_eval() *                      parameters before and after
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.ultralytics.recognise import is_cut
from yolo_prune.adapters.ultralytics.training import aftercut, beginning, ending, midrun, rescue
from yolo_prune.adapters.ultralytics.training.exact import _ResumesExactly
from yolo_prune.adapters.ultralytics.training.history import RUN_KEY
from yolo_prune.adapters.ultralytics.training.loop import HostLoop
from yolo_prune.adapters.ultralytics.training.trainer import TrainSettings, _StaysCut
from yolo_prune.adapters.ultralytics.undisturbed import training_options
from yolo_prune.cut.record import PrunePlan
from yolo_prune.imgsz import plain_size
from yolo_prune.options.inrun import InRunSettings, make_settings, same_settings, stored_settings
from yolo_prune.progress import LOGGER, log_to_console
from yolo_prune.train import RunState
from yolo_prune.train.session import Session


class _PrunesInRun(_ResumesExactly):
    """The overrides, mixed in before a trainer class of the host."""

    settings = TrainSettings(judge_start=False)
    pruning = InRunSettings()
    session: Any = None
    busy = False
    ending = all_epochs_over = False
    record: Mapping[str, Any] = MappingProxyType({})
    began_cut = False

    @property
    def state(self: Any) -> Any:
        """Where the run is."""
        return self.session.state

    def get_model(self: Any, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> Any:
        """Return the host's model; weights that are already cut are taken as they are."""
        other = isinstance(self.args.pretrained, (str, Path)) and not self.resume
        self.began_cut = weights is not None and is_cut(weights, {} if other else self.record)
        if self.began_cut:
            return super().get_model(cfg=cfg, weights=weights, verbose=verbose)
        return super(_StaysCut, self).get_model(  # type: ignore[misc]
            cfg=cfg, weights=weights, verbose=verbose
        )

    def train(self: Any) -> Any:
        """Train like the host; what our options change in the process is put back."""
        with training_options(self.pruning.threads):
            return super().train()

    def run_callbacks(self: Any, event: str) -> None:
        """Run the host's callbacks of ``event``; our own part comes first."""
        if event == "on_train_epoch_start":
            self.begin_epoch()
        elif event == "on_train_batch_start":
            self.count_batch()
            aftercut.soften_rates(self)
        elif event == "on_train_epoch_end":
            self.end_epoch()
        elif event == "on_fit_epoch_end" and not self.ending and self.from_first_rank(self.stop):
            ending.end_training(self)
        super().run_callbacks(event)

    def begin_retraining(self: Any) -> None:
        """Check what can be checked before hours are spent, and pick up a resumed run where it was."""
        if self.resume and RUN_KEY in self.resumed:
            stored = make_settings(stored_settings(self.resumed[RUN_KEY]["settings"]))
            if not same_settings(stored, self.pruning) and self.pruning.budget is not None:
                LOGGER.warning(
                    "resume goes on with the pruning options of the checkpoint, not with new ones."
                )
            self.pruning = replace(stored, threads=self.pruning.threads)
        if aftercut.is_first_process() and self.args.verbose and not logging.getLogger().handlers:
            log_to_console()  # under the host's DDP and from Python nobody else has asked for it
        if self.pruning.threads is not None:
            torch.set_num_threads(self.pruning.threads)
        beginning.refuse_what_cannot_work(self)
        rescue.report_left_out(self)
        self.note_batches_per_step()
        self.session = Session(self.pruning, HostLoop(self))
        goes_on = self.resume and RUN_KEY in self.resumed
        state = RunState.from_dict(self.resumed[RUN_KEY]["state"]) if goes_on else None
        self.session.begin(state, Path(self.save_dir, "prune_scales.png"))
        if state is None:
            beginning.say_what_the_budget_is_of(self)
        self.params_before = self.state.current_params
        self.check_sizes()
        if not (self.session.is_done or self.pruning.at_end):
            self.stopper.patience = float("inf")  # early stopping waits for the last cut
        if self.state.cuts:
            aftercut.resume_average(self)
            aftercut.attach_teacher(self, None)

    def begin_epoch(self: Any) -> None:
        """Cut when it is time; a model that has grown back is noticed here.

        Raises:
            AllEpochsOverError: An interrupted run was in its end already.
        """
        if self.all_epochs_over:
            raise ending.AllEpochsOverError
        self.check_sizes()
        self.pick_up_exactly()
        self.session.begin_epoch(rescue.rescued(self))
        self.order_epoch()
        self.session.order_scales()
        aftercut.fade_teacher(self)

    def save_cut(self: Any, plan: PrunePlan) -> None:
        """Measure the cut model, then write plan.json, last.pt and best.pt, in an order that survives a kill."""
        with rescue.as_after_last_epoch(self):
            if self.args.val:
                metrics, self.fitness = self.validate()
                self.metrics = metrics if metrics is not None else self.metrics
                self.state.cuts[-1].fitness = self.from_first_rank(self.fitness)
            # So that the host writes best.pt, whatever was better before the cut.
            self.best_fitness = self.fitness
            if aftercut.is_first_process():
                plan.save(Path(self.save_dir, "plan.json"))
                if self.best.is_file() and not self.ending:  # parent.pt holds the best of all epochs then
                    self.best.replace(self.wdir / "best_uncut.pt")
                self.save_model()
                if self.epoch < 0:
                    self.last.unlink()  # nothing was trained: there is nothing to resume from

    def end_epoch(self: Any) -> None:
        """Say where the scales are, and give loggers and results.csv our columns."""
        self.session.end_epoch(draw=bool(self.args.plots))
        if self.metrics is not None:
            self.metrics = {**self.metrics, **self.session.columns()}

    def validate(self: Any) -> Any:
        """Validate like the host; our columns join, and the search for lambda judges the epoch."""
        metrics, fitness = super().validate()
        shared = self.from_first_rank(fitness)
        if not self.busy:
            self.session.judge(shared)
        return (metrics if metrics is None else {**metrics, **self.session.columns()}), fitness

    def save_metrics(self: Any, metrics: dict[str, Any]) -> None:
        """Write a line of results.csv; the teacher's column is there from the first one on."""
        super().save_metrics(  # type: ignore[misc]
            aftercut.with_teacher_column(self, metrics)
        )

    def save_model(self: Any) -> bool:
        """Save like the host, with the state of the run inside."""
        budget = dict([self.pruning.budget])
        run = self.session.to_dict()
        role, cut = ("retrained", True) if self.state.cuts else ("training", self.began_cut)
        meta = {
            "role": role,
            "cut": cut,
            "plan": budget,
            "imgsz": plain_size(midrun.size_of(self)),
            RUN_KEY: run,
        }
        self.settings = replace(self.settings, meta=meta)
        return super().save_model()

    def resume_training(self: Any, ckpt: Any) -> None:
        """Resume like the host, and also what was interrupted after its last epoch, which the host calls finished."""
        epoch = int(ckpt.get("epoch", -1)) + 1 if self.resume and ckpt else 0
        if not epoch or epoch < self.epochs:
            super().resume_training(ckpt)  # type: ignore[misc]
            return
        self._load_checkpoint_state(ckpt)
        self.start_epoch, self.all_epochs_over = epoch, True

    def _do_train(self: Any, *arguments: Any) -> Any:
        """Train like the host; where only the end was left, make that."""
        try:
            return super()._do_train(*arguments)  # type: ignore[misc]
        except ending.AllEpochsOverError:
            return ending.make_end(self)

    def _load_checkpoint_state(self: Any, ckpt: Any) -> None:
        """Load like the host, which makes a new average: it gets its horizon again."""
        super()._load_checkpoint_state(ckpt)  # type: ignore[misc]
        if self.session is not None and self.state.cuts:
            aftercut.resume_average(self)

    def final_eval(self: Any) -> None:
        """Evaluate like the host, then say what came out and how to go on."""
        self.session.sparse.detach()
        aftercut.detach_teacher(self)
        super().final_eval()
        if aftercut.is_first_process():
            for line in aftercut.closing_lines(self):
                LOGGER.info("%s", line)


def inrun_trainer(base: type, settings: InRunSettings | None = None, **options: Any) -> type:
    """Return a subclass of the host's trainer ``base`` that prunes inside the training.

    Use it as ``model.train(trainer=inrun_trainer(DetectionTrainer, keep_macs=0.5), data=...)``; :func:`attach`
    does the same for a plain ``model.train(...)``. The class carries its settings, so the host's DDP, which
    pickles the class, hands them to its processes.

    Args:
        base: A trainer class of the host.
        settings: The options; None makes them from ``options``.
        **options: Fields of :class:`yolo_prune.options.inrun.InRunSettings`.

    Raises:
        ConfigError: An option is unknown or wrong, or there is no budget.
    """
    return inrun_class(base, settings if settings is not None else make_settings(options), {})


def inrun_class(base: type, settings: InRunSettings, record: Mapping[str, Any]) -> type:
    """Return the class of :func:`inrun_trainer`.

    Args:
        base: A trainer class of the host.
        settings: The options.
        record: What yolo_prune recorded in the checkpoint that the model comes from; empty where it is not known.
    """
    # Loggers of the host attach only to classes with "Trainer" in their names.
    members = {"pruning": settings, "record": dict(record)}
    return type(f"Pruning{base.__name__}", (_PrunesInRun, base), members)
