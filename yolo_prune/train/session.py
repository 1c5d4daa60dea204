"""Pruning inside a running training, whoever runs it: sparse epochs, the cuts, gentle rates, what to remember.

The loop that the session is in calls it here::

    session.begin()                 once, before the first epoch or after a resume
    each epoch:
        session.begin_epoch()       cuts when it is time; keeps the hook of the sparse epochs where it belongs
        each batch:
            session.gentle()        factor on the rates in the first epoch after a cut
        session.end_epoch()         where the scales are
        session.judge(fitness)      lambda is judged by what validation says
    session.end()                   after the last epoch: cuts where prune_at=end
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.cost import count_parameters
from yolo_prune.cost.latency import Latency
from yolo_prune.criteria import RECONSTRUCTION
from yolo_prune.criteria.ranking import check_criterion
from yolo_prune.cut.budget import Budget, one_budget
from yolo_prune.cut.plan import check_not_met, check_possible
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.widths import Lineage
from yolo_prune.errors import BudgetError
from yolo_prune.graph.randomness import untouched_randomness
from yolo_prune.options.inrun import InRunSettings, refuse_places
from yolo_prune.options.places import has_place
from yolo_prune.progress import LOGGER
from yolo_prune.recover.effort import images_for
from yolo_prune.train.loop import TrainingLoop
from yolo_prune.train.midcut import (
    Recovered,
    allowed_widths,
    from_first_process,
    recover,
    share_of_parent,
    swap_,
)
from yolo_prune.train.scales import is_separated
from yolo_prune.train.schedule import cut_budget, cut_is_due, cut_shares
from yolo_prune.train.sparse import SparsePhase, free_scales
from yolo_prune.train.state import CutRecord, RunState
from yolo_prune.train.timing import Target, time_after

_DENSE_SHARE = 0.1
_FIRST_RATE = 0.1


class Session:
    """One training that is pruned on the way.

    Attributes:
        settings: How.
        loop: The training.
        state: Where it is; there from :meth:`begin` on.
        sparse: Its sparse epochs; there from :meth:`begin` on.
        softened: Steps of this epoch whose rates were lowered after a cut.
    """

    state: RunState
    sparse: SparsePhase

    def __init__(self, settings: InRunSettings, loop: TrainingLoop) -> None:
        self.settings, self.loop = settings, loop
        self.softened = 0

    @property
    def is_done(self) -> bool:
        """Whether every cut was made."""
        return len(self.state.cuts) >= self.settings.cuts

    def begin(self, state: RunState | None = None, picture: Path | None = None) -> None:
        """Check the budget before hours are spent, and pick up where a resumed training was.

        For a budget of time layers are timed first; a resumed training has the times that it began with.

        Args:
            state: Of the training that goes on; None for a new one.
            picture: Where the scales are drawn; None draws none.

        Raises:
            BudgetError: The budget cannot be met.
            ConfigError: There is no such criterion.
        """
        settings, loop = self.settings, self.loop
        check_criterion(settings.criterion)
        if settings.without_effect:
            words = ", ".join(settings.without_effect)
            LOGGER.warning("without effect at prune_at=%s: %s", settings.moment, words)
        with untouched_randomness():
            traced = Traced.of(loop.averaged(), loop.anatomy())
            is_new = state is None
            self.state = state = self._first_state(traced) if state is None else state
            if state.latency:
                traced = Traced.of(traced.module, self._anatomy())
        cost = traced.cost
        if is_new and state.latency:
            state.ms = cost.amount(cost.counts(cost.everything), "latency")
            check_not_met(cost, self._asked)
        if not self.is_done:
            widths, lineage = allowed_widths(settings, state)
            wholes = lineage.wholes(cost.graph) if lineage else None
            check_possible(cost, self._budget(settings.cuts), widths, wholes)
        wanted = max(1.0 - share_of_parent(settings, state) ** 0.5, 0.0)
        self.sparse = SparsePhase(settings, state, free_scales(cost), wanted, picture)

    def _first_state(self, traced: Traced) -> RunState:
        """Return the state of a training that begins now, with what a runtime says of its model where one is asked."""
        cost = traced.cost
        before = Lineage.of(cost.graph).widths if self.settings.cuts > 1 else {}
        gmacs = cost.macs(cost.everything) / 1e9
        state = RunState(gmacs, count_parameters(self.loop.model), widths=before)
        keeper = self.loop.timekeeper if has_place(self.settings) else None
        refuse_places(self.settings, keeper)
        if keeper is not None:
            latency, granularity = from_first_process(lambda: keeper.ask(traced))
            state.latency = latency.to_json() if latency else ""
            if granularity is not None:
                state.round_to, state.granularity = granularity.step, granularity.to_dict()
        return state

    def _anatomy(self) -> Anatomy:
        """Return how to run the model, with the times of its layers where the budget is one of time."""
        latency = Latency.from_json(self.state.latency) if self.state.latency else None
        return replace(self.loop.anatomy(), latency=latency) if latency else self.loop.anatomy()

    def begin_epoch(self, around_cut: AbstractContextManager[None] | None = None) -> None:
        """Cut when it is time, and see that the hook of the sparse epochs is where it belongs.

        Args:
            around_cut: Entered around a cut, for a loop that has something to say when it fails.
        """
        if self.is_due():
            with around_cut or nullcontext():
                self.cut()
        self.softened = 0

    def end(self, around_cut: AbstractContextManager[None] | None = None) -> None:
        """Cut after the last epoch, where that was asked for and not done yet.

        Args:
            around_cut: As for :meth:`begin_epoch`.
        """
        if self.settings.at_end and not self.is_done:
            with around_cut or nullcontext():
                self.cut()

    def order_scales(self) -> None:
        """Put the hook on the optimizers in sparse epochs and take it off in others; call after a cut."""
        loop = self.loop
        if self.is_done or loop.epoch < self.first_sparse:
            self.sparse.detach()
            return
        left = max(self.last_sparse - loop.epoch, 1)
        steps = loop.steps_per_epoch
        self.sparse.attach(
            loop.model,
            loop.optimizers,
            steps_left=steps * left,
            lr_sum=steps * sum(loop.rate_factor(epoch) for epoch in range(loop.epoch, loop.epoch + left)),
            epochs=left,
        )

    @property
    def first_sparse(self) -> int:
        """The first sparse epoch: a tenth of the training is dense, to know what accuracy there is to lose."""
        return int(max(round(_DENSE_SHARE * self.loop.epochs), 1))

    @property
    def last_sparse(self) -> int:
        """The epoch of the last cut, as it is planned now."""
        shares = cut_shares(self.settings.moment, self.settings.cuts, self.loop.epochs)
        return math.floor(shares[-1] * float(self.loop.epochs) + 0.5)

    def is_due(self) -> bool:
        """Tell at the beginning of an epoch whether to cut first."""
        settings, loop = self.settings, self.loop
        return cut_is_due(
            settings.moment,
            settings.cuts,
            len(self.state.cuts),
            loop.epoch,
            loop.epochs,
            elapsed=loop.elapsed,
            separated=settings.moment == "auto" and self._separated(loop.average),
        )

    def _separated(self, module: nn.Module) -> bool:
        return self.state.sparse_epochs > 0 and is_separated(self.sparse.scales(module), self.sparse.wanted)

    @property
    def _asked(self) -> Budget:
        """The budget, of the model that the training began with."""
        return one_budget(**dict([self.settings.budget or ("keep_macs", 1.0)]))

    def _budget(self, number: int) -> Budget:
        """Return the absolute budget of the cut with this number."""
        asked = self._asked
        return cut_budget(asked, self.state.wholes[asked.gradient], number, self.settings.cuts)

    def cut(self) -> None:
        """Cut the averaged weights, put them under the training, and tell the loop.

        Raises:
            BudgetError: The budget cannot be met.
            EquivalenceError: No exact cut was found.
        """
        loop, state = self.loop, self.state
        number, began = len(state.cuts) + 1, time.perf_counter()
        self.sparse.detach()
        with untouched_randomness():
            parent = loop.averaged()
            criterion = self.settings.criterion
            if criterion == "auto":
                criterion = "bn_scale" if self._separated(parent) else RECONSTRUCTION
            LOGGER.info("epoch %d: cut %d of %d by %s", loop.epoch, number, self.settings.cuts, criterion)
            if number == 1:
                loop.before_first_cut(parent)
            recovered = from_first_process(lambda: self._recover(parent, number, criterion))
            swap_(loop.model, loop.optimizers, recovered, loop.anatomy().rules)
            plan = state.whole_plan(recovered.plan, dict([self.settings.budget or ("keep_macs", 1.0)]))
            params = count_parameters(loop.model)
            used = str(recovered.plan.settings["criterion"])
            ms = time_after(recovered.plan)
            state.cuts.append(CutRecord(loop.epoch, used, plan.gmacs, params, ms=ms))
            state.plan = plan.to_json()
            state.latency = "" if self.is_done else state.latency
            loop.after_cut(plan, parent if number == 1 else None)
        LOGGER.info(
            "cut done in %.0f s: %.2f of the MACs and %.2f of the parameters stay (%s -> %s)",
            time.perf_counter() - began,
            plan.kept_macs,
            plan.kept_params,
            f"{state.params:,}",
            f"{params:,}",
        )

    def _recover(self, parent: nn.Module, number: int, criterion: str) -> Recovered:
        """Cut a copy; where layers are dead, so that no reconstruction ranks them, the scales have to do."""
        settings, loop = self.settings, self.loop
        widths, lineage = allowed_widths(settings, self.state)
        anatomy, budget = self._anatomy(), self._budget(number)
        images = images_for(settings.calibration_images, classifier=loop.classifies)

        def attempt(criterion: str, target: Target | None) -> Recovered:
            return recover(
                parent,
                anatomy,
                budget,
                settings,
                criterion,
                loop.calibration(images),  # each attempt draws the same
                widths=widths,
                lineage=lineage,
                target=target,
                score=loop.score,
                lessons=loop.calibration,
            )

        with self._target(parent, number) as target:
            try:
                return attempt(criterion, target)
            except BudgetError as error:
                if settings.criterion != "auto" or criterion != RECONSTRUCTION:
                    raise
                LOGGER.warning("%s Cutting by the scales instead.", error)
                return attempt("bn_scale", target)

    @contextmanager
    def _target(self, parent: nn.Module, number: int) -> Iterator[Target | None]:
        """Yield the budget of time of a cut, None of another one; models are timed in the last cut alone."""
        state = self.state
        keeper = self.loop.timekeeper if state.latency else None
        if keeper is None or state.ms is None:
            yield None
            return
        target = Target(self._budget(number).value, state.ms, keeper.where)
        if number == 1:
            keeper.keep(parent)
        if number < self.settings.cuts:
            yield target
            return
        with keeper.watch(state.ms, state.plan) as measure:
            yield replace(target, measure=measure)

    def gentle(self, batches: int) -> float | None:
        """Return the factor on the rates of the next batch: rising from a tenth over the first epoch after a cut.

        Args:
            batches: In this epoch.

        Returns:
            The factor, None in other epochs.
        """
        cuts = self.state.cuts
        if not cuts or cuts[-1].epoch != self.loop.epoch:
            return None
        share = min(self.softened / max(batches - 1, 1), 1.0)
        self.softened += 1
        return _FIRST_RATE + (1 - _FIRST_RATE) * share

    def teacher_share(self) -> float:
        """Return how much the uncut model counts as a teacher: less with every epoch, for it was not finished."""
        first = self.state.cuts[0].epoch
        return max(1 - (self.loop.epoch - first) / max(self.loop.epochs - first, 1), 0.0)

    def end_epoch(self, *, draw: bool = False) -> None:
        """Say where the scales are, and draw them."""
        self.sparse.end_epoch(self.loop.model, draw=draw and self.loop.is_first)

    def judge(self, fitness: float | None) -> None:
        """Let the search for lambda judge an epoch that is over.

        Args:
            fitness: What validation says of it, larger is better; None where nothing was validated.
        """
        begin, last = self.first_sparse, self.last_sparse
        done = (self.loop.epoch + 1 - begin) / max(last - begin, 1)
        self.sparse.note_fitness(fitness, self.sparse.below(self.loop.model), min(max(done, 0.0), 1.0))

    def columns(self) -> dict[str, float]:
        """Return what a line of a log of the training says of the pruning."""
        return {
            "prune/lambda": self.sparse.current,
            "prune/below": self.sparse.below(self.loop.model),
            "prune/gmacs": self.state.current_gmacs,
            "prune/params": self.state.current_params,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, as plain values that a restricted loader reads."""
        if hasattr(self, "sparse"):
            self.sparse.count_steps()
        return {"settings": self.settings.to_dict(), "state": self.state.to_dict()}
