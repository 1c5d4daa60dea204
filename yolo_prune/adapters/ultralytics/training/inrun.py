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
        final_eval() *                      parameters before and after
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.recognise import is_cut
from yolo_prune.adapters.ultralytics.training import aftercut, beginning, midrun, rescue
from yolo_prune.adapters.ultralytics.training.exact import _ResumesExactly
from yolo_prune.adapters.ultralytics.training.history import RUN_KEY
from yolo_prune.adapters.ultralytics.training.sparse import SparsePhase, free_scales
from yolo_prune.adapters.ultralytics.training.trainer import TrainSettings, _StaysCut, unwrap
from yolo_prune.adapters.ultralytics.undisturbed import training_options
from yolo_prune.cost import count_parameters
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.cut.budget import one_budget
from yolo_prune.cut.plan import check_possible
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.widths import Lineage
from yolo_prune.errors import BudgetError
from yolo_prune.imgsz import plain_size
from yolo_prune.options.inrun import InRunSettings, make_settings, same_settings, stored_settings
from yolo_prune.progress import LOGGER, log_to_console
from yolo_prune.train import CutRecord, RunState, cut_budget, cut_is_due, is_separated
from yolo_prune.train.randomness import untouched_randomness
from yolo_prune.train.schedule import cut_shares


class _PrunesInRun(_ResumesExactly):
    """The overrides, mixed in before a trainer class of the host."""

    settings = TrainSettings(judge_start=False)
    pruning = InRunSettings()
    state: RunState
    sparse: SparsePhase
    busy = False
    record: Mapping[str, Any] = MappingProxyType({})
    began_cut = False

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
        module = unwrap(self.model)
        with untouched_randomness():
            cost = self._anatomy(module).cost_of(midrun.average_as_saved(self.ema.ema))
        if self.resume and RUN_KEY in self.resumed:
            self.state = RunState.from_dict(self.resumed[RUN_KEY]["state"])
        else:
            whole = cost.everything
            before = Lineage.of(cost.graph).widths if self.pruning.cuts > 1 else {}
            self.state = RunState(cost.macs(whole) / 1e9, count_parameters(module), widths=before)
            beginning.say_what_the_budget_is_of(self)
        self.params_before = self.state.current_params
        self.check_sizes()
        if len(self.state.cuts) < self.pruning.cuts:
            widths, lineage = midrun.allowed_widths(self.pruning, self.state)
            wholes = lineage.wholes(cost.graph) if lineage else None
            check_possible(cost, self._budget(self.pruning.cuts), widths, wholes)
            self.stopper.patience = float("inf")  # early stopping waits for the last cut
        share = midrun.share_of_parent(self.pruning, self.state)
        picture = Path(self.save_dir, "prune_scales.png")
        self.sparse = SparsePhase(
            self.pruning, self.state, free_scales(cost), max(1.0 - share**0.5, 0.0), picture
        )
        if self.state.cuts:
            aftercut.resume_average(self)
            aftercut.attach_teacher(self, None)

    def _anatomy(self: Any, module: nn.Module) -> Any:
        frozen = midrun.frozen_modules(self.freeze_layer_names, self.pruning.keep_layers, module)
        return anatomy_of(module, midrun.size_of(self), frozen)

    def _budget(self: Any, number: int) -> Any:
        """Return the absolute budget of the cut with this number."""
        asked = one_budget(**dict([self.pruning.budget]))
        state = self.state
        return cut_budget(asked, state.gmacs * 1e9, state.params, number, self.pruning.cuts)

    def begin_epoch(self: Any) -> None:
        """Cut when it is time; keep the hook where it belongs; a model that has grown back is noticed here."""
        self.check_sizes()
        self.pick_up_exactly()
        if self._is_due():
            with rescue.rescued(self):
                self.cut()
        self.order_epoch()
        if len(self.state.cuts) >= self.pruning.cuts or self.epoch < self._first_sparse():
            self.sparse.detach()
        else:
            steps = -(-len(self.train_loader) // self.batches_per_step)
            left = max(self._last_sparse() - self.epoch, 1)
            lr_sum = steps * sum(float(self.lf(epoch)) for epoch in range(self.epoch, self.epoch + left))
            self.sparse.attach(
                unwrap(self.model), self.optimizer, steps_left=steps * left, lr_sum=lr_sum, epochs=left
            )
        aftercut.fade_teacher(self)
        self.softened = 0

    def _first_sparse(self: Any) -> int:
        """Return the first sparse epoch: a tenth of the run is dense, to know what accuracy there is to lose."""
        return int(max(round(0.1 * self.epochs), 1))

    def _last_sparse(self: Any) -> int:
        """Return the epoch of the last cut, as it is planned now."""
        shares = cut_shares(self.pruning.prune_at, self.pruning.cuts, self.epochs)
        return math.floor(shares[-1] * float(self.epochs) + 0.5)

    def _is_due(self: Any) -> bool:
        elapsed = None
        if self.args.time:
            elapsed = self.from_first_rank((time.time() - self.train_time_start) / (3600 * self.args.time))
        pruning = self.pruning
        return cut_is_due(
            pruning.prune_at,
            pruning.cuts,
            len(self.state.cuts),
            self.epoch,
            self.epochs,
            elapsed=elapsed,
            separated=pruning.prune_at == "auto" and self._separated(self.ema.ema),
        )

    def _separated(self: Any, module: nn.Module) -> bool:
        return self.state.sparse_epochs > 0 and is_separated(self.sparse.scales(module), self.sparse.wanted)

    def cut(self: Any) -> None:
        """Cut the average, put it under the training, and write a checkpoint that a crash can go on from."""
        number, began = len(self.state.cuts) + 1, time.perf_counter()
        self.sparse.detach()
        with untouched_randomness():
            parent = midrun.average_as_saved(self.ema.ema)
            criterion = self.pruning.criterion
            if criterion == "auto":
                criterion = "bn_scale" if self._separated(parent) else RECONSTRUCTION
            LOGGER.info("epoch %d: cut %d of %d by %s", self.epoch, number, self.pruning.cuts, criterion)
            if number == 1:
                aftercut.save_parent(self, parent)
            recovered = midrun.from_first_process(lambda: self._recover(parent, number, criterion))
            midrun.swap_(unwrap(self.model), self.optimizer, recovered)
            plan = self.state.whole_plan(recovered.plan, dict([self.pruning.budget]))
            params = count_parameters(unwrap(self.model))
            used = str(recovered.plan.settings["criterion"])
            self.state.cuts.append(CutRecord(self.epoch, used, plan.gmacs, params))
            self.state.plan = plan.to_json()
            self.params_before = params
            aftercut.start_afresh(self, parent if number == 1 else None)
            self._save_cut(plan)
        LOGGER.info(
            "cut done in %.0f s: %.2f of the MACs and %.2f of the parameters stay (%s -> %s)",
            time.perf_counter() - began,
            plan.kept_macs,
            plan.kept_params,
            f"{self.state.params:,}",
            f"{params:,}",
        )

    def _recover(self: Any, parent: nn.Module, number: int, criterion: str) -> midrun.Recovered:
        """Cut a copy; where layers are dead, so that no reconstruction ranks them, the scales have to do."""
        pruning = self.pruning
        images = midrun.calibration_images(self, pruning.calibration_images, self.args.seed)
        budget, classes = self._budget(number), len(self.data["names"])
        options: dict[str, Any] = {"imgsz": midrun.size_of(self), "classes": classes, "seed": self.args.seed}
        options["widths"], options["lineage"] = midrun.allowed_widths(self.pruning, self.state)
        anatomy = self._anatomy(parent)
        try:
            return midrun.recover(parent, anatomy, budget, pruning, criterion, images, **options)
        except BudgetError as error:
            if pruning.criterion != "auto" or criterion != RECONSTRUCTION:
                raise
            LOGGER.warning("%s Cutting by the scales instead.", error)
            return midrun.recover(parent, anatomy, budget, pruning, "bn_scale", images, **options)

    def _save_cut(self: Any, plan: PrunePlan) -> None:
        """Measure the cut model, then write plan.json, last.pt and best.pt, in an order that survives a kill."""
        with rescue.as_after_last_epoch(self):
            if self.args.val:
                metrics, self.fitness = self.validate()
                self.metrics = metrics if metrics is not None else self.metrics
                self.state.cuts[-1].fitness = self.from_first_rank(self.fitness)
            if aftercut.is_first_process():
                plan.save(Path(self.save_dir, "plan.json"))
                if self.best.is_file():
                    self.best.replace(self.wdir / "best_uncut.pt")
                self.save_model()
                if self.epoch < 0:
                    self.last.unlink()  # nothing was trained: there is nothing to resume from

    def end_epoch(self: Any) -> None:
        """Say where the scales are, and give loggers and results.csv our columns."""
        module = unwrap(self.model)
        first = aftercut.is_first_process()
        self.sparse.end_epoch(module, draw=bool(self.args.plots) and first)
        if self.metrics is not None:
            self.metrics = {**self.metrics, **self.columns()}

    def columns(self: Any) -> dict[str, float]:
        """Return what a line of results.csv says of the pruning."""
        return {
            "prune/lambda": self.sparse.current,
            "prune/below": self.sparse.below(unwrap(self.model)),
            "prune/gmacs": self.state.current_gmacs,
            "prune/params": self.state.current_params,
        }

    def validate(self: Any) -> Any:
        """Validate like the host; our columns join, and the search for lambda judges the epoch."""
        metrics, fitness = super().validate()
        shared = self.from_first_rank(fitness)
        if not self.busy:
            begin, last = self._first_sparse(), self._last_sparse()
            done = (self.epoch + 1 - begin) / max(last - begin, 1)
            self.sparse.note_fitness(shared, self.sparse.below(unwrap(self.model)), min(max(done, 0.0), 1.0))
        return (metrics if metrics is None else {**metrics, **self.columns()}), fitness

    def save_metrics(self: Any, metrics: dict[str, Any]) -> None:
        """Write a line of results.csv; the teacher's column is there from the first one on."""
        super().save_metrics(  # type: ignore[misc]
            aftercut.with_teacher_column(self, metrics)
        )

    def save_model(self: Any) -> bool:
        """Save like the host, with the state of the run inside."""
        budget = dict([self.pruning.budget])
        run = {"settings": self.pruning.to_dict(), "state": self.state.to_dict()}
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

    def _load_checkpoint_state(self: Any, ckpt: Any) -> None:
        """Load like the host, which makes a new average: it gets its horizon again."""
        super()._load_checkpoint_state(ckpt)  # type: ignore[misc]
        if getattr(self, "state", None) is not None and self.state.cuts:
            aftercut.resume_average(self)

    def final_eval(self: Any) -> None:
        """Evaluate like the host, then say what came out and how to go on."""
        self.sparse.detach()
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
