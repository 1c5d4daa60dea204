"""Pruning in a training loop of your own, for any module and any optimizer.

Around an ordinary loop::

    session = PruningSession(model, optimizer, example, keep_macs=0.5, total=epochs, calibration=loader)
    session.before_train()
    for epoch in range(epochs):
        for images, targets in loader:
            ...                                     # your step, as it is
        session.after_epoch(validate(model))        # cuts when it is time
    plan = session.finish()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.criteria.batches import ReadLabels, are_given
from yolo_prune.criteria.calibration import Forward, Projection, call
from yolo_prune.cut.optimizer import able_to_follow
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.prunable import check_prunable
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import ConfigError
from yolo_prune.graph.copies import check_has_weights
from yolo_prune.graph.decisions import Positions
from yolo_prune.graph.module_rules import ModuleRules
from yolo_prune.graph.rules import Operator
from yolo_prune.graph.trace import OutputSelector
from yolo_prune.options.inrun import check_state, refuse_places, settings_for
from yolo_prune.progress import LOGGER
from yolo_prune.train.imitate import Lesson
from yolo_prune.train.lowered import LoweredRates
from yolo_prune.train.own_loop import OwnLoop, looked_into
from yolo_prune.train.session import Session
from yolo_prune.train.state import RunState
from yolo_prune.train.timing import Timekeeper
from yolo_prune.train.wrappers import unwrapped

_VERSION = 1


class PruningSession:
    """One training of your own that is pruned on the way: sparse epochs, the cut, gentle rates, a teacher.

    The model object stays the same; its parameters are replaced by smaller ones at the cut, in the optimizer too, whose
    momenta are sliced. Schedulers, hooks and gradient scalers go on. DistributedDataParallel is set up anew in place,
    and an average of the weights starts afresh from the cut model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> images = torch.rand(4, 3, 8, 8)
        >>> session = PruningSession(net, optimizer, images[:1], keep_macs=0.5, total=2, calibration=[images])
        >>> session.before_train()
        >>> for epoch in range(2):
        ...     net(images).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     session.after_epoch()
        >>> session.finish().kept_macs <= 0.5
        True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        example_input: Any,
        *,
        total: int,
        calibration: Iterable[Any] = (),
        forward: Forward = call,
        projection: Projection | None = None,
        labels: ReadLabels | None = None,
        average: nn.Module | None = None,
        steps_per_epoch: int | None = None,
        cost_input: Any = None,
        rules: ModuleRules | None = None,
        operators: Mapping[str, Operator] | None = None,
        select_outputs: OutputSelector | None = None,
        seed: int = 0,
        timekeeper: Timekeeper | None = None,
        **options: Any,
    ) -> None:
        """Check everything that can be checked now; nothing is changed before :meth:`before_train`.

        Args:
            model: The network that is trained, or what DistributedDataParallel or ``torch.compile`` made of it.
            optimizer: What trains it: one, or several that share its parameters.
            example_input: What the model is called with, batch size 1, as for :func:`yolo_prune.prune_module`.
            total: Length of the training in epochs: how often :meth:`after_epoch` will be called.
            calibration: Training batches, such as the loader; read at a cut, up to ``calibration_images`` images (96,
                of a classifier 512). Without them channels are ranked by BatchNorm scales, and nothing is folded.
            forward: ``forward(model, batch)`` runs the network on one of them and returns its outputs, where a batch is
                not its one argument: ``lambda model, batch: model(batch[0])``.
            projection: Scalar of the outputs whose squared gradient says how much predictions change. None:
                :func:`yolo_prune.criteria.projection.output_projection`.
            labels: As for :func:`yolo_prune.prune_module`.
            average: An average of the weights that goes on beside the training, such as
                ``torch.optim.swa_utils.AveragedModel``; the cut starts from it.
            steps_per_epoch: For loops that count iterations: :meth:`after_step` then ends an epoch after so many.
            cost_input: Input whose MACs count, when it is not the example.
            rules: As for :func:`yolo_prune.prune_module`.
            operators: As for :func:`yolo_prune.prune_module`.
            select_outputs: As for :func:`yolo_prune.prune_module`.
            seed: Of what is drawn at random.
            timekeeper: Times models for a budget of time and ``round_to=auto``; None: these are refused.
            **options: Fields of :class:`yolo_prune.options.inrun.InRunSettings`: a budget, ``prune_at``, ``cuts``, ...

        Raises:
            ConfigError: An option is unknown or wrong, the optimizer does not hold the model's parameters, the model
                cannot be cut (scripted, quantised, on the meta device, in DataParallel), or a calibration batch is not
                what the model takes.
        """
        network = unwrapped(model)
        check_prunable(network)
        check_has_weights(network, "a training")
        optimizers = able_to_follow(optimizer, network)
        if total < 1:
            raise ConfigError(f"total must be at least 1 epoch, got {total}.")
        settings = settings_for(options, images=are_given(calibration), labels=labels is not None)
        refuse_places(settings, timekeeper)
        calibration, checked = looked_into(
            calibration, network, settings.calibration_images, forward, projection, seed
        )
        self._positions = Positions()
        how = Anatomy(
            *(example_input, cost_input, rules, select_outputs, settings.keep_layers, operators),
            positions=self._positions,
        )
        felt, taught = checked.projection if checked else None, settings.learns_from_parent
        self._loop = OwnLoop(
            *(model, optimizers, total, how, calibration, forward, felt, seed, average, taught),
            classifies=checked is not None and checked.classifies,
            counted=steps_per_epoch or 0,
            labels=labels,
            timekeeper=timekeeper,
        )
        self._session = Session(settings, self._loop)
        self._per_epoch, self._iterations = steps_per_epoch, 0
        self._rates = LoweredRates(optimizers, self._factor_on_rates)
        self._stage = "new"
        self._within: Mapping[str, int] = {}

    @property
    def model(self) -> nn.Module:
        """The network without wrappers."""
        return self._loop.model

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._loop.epoch

    # What the training calls.

    def before_train(self) -> None:
        """Check the budget, and begin. After :meth:`load_state_dict` it goes on where that training was.

        Raises:
            BudgetError: The budget cannot be met.
            ConfigError: It was called before.
        """
        self._expect("new")
        state = getattr(self._session, "state", None)
        self._session.begin(state)
        self._rates.attach()
        self._stage = "training"
        self._begin_epoch()
        if self._within:  # stopped in the middle of an epoch
            self._loop.steps, self._session.softened = self._within["steps"], self._within["softened"]

    def after_step(self) -> None:
        """End an epoch where the loop counts iterations and the session was told ``steps_per_epoch``."""
        self._expect("training")
        if self._per_epoch is None:
            return
        self._iterations += 1
        if self._iterations % self._per_epoch == 0 and self.epoch < self._loop.epochs:
            self.after_epoch()

    def after_epoch(self, fitness: float | None = None) -> None:
        """End an epoch: say where the scales are, and cut when it is time, at the end of the last one unless told else.

        Args:
            fitness: What validation says of the epoch, larger is better; ``sparsify=auto`` looks for its strength by
                it.
        """
        self._expect("training")
        self._session.end_epoch()
        self._session.judge(fitness)
        loop = self._loop
        loop.epoch += 1
        loop.steps, loop.counted = 0, max(loop.steps, 1)
        if loop.epoch < loop.epochs:
            self._begin_epoch()
        else:
            self._session.end()

    def teacher_loss(self, batch: Any, outputs: Any) -> Tensor:
        """Return the distance of a batch's outputs to those of the uncut model, to be added to the loss.

        It fades to zero at the end of the training and is zero before the first cut.

        Args:
            batch: As ``forward`` takes it.
            outputs: Of the model for it, in the mode that it is trained in.

        Returns:
            Scalar, with gradient.

        Raises:
            ConfigError: The uncut model's outputs are of another kind or shape.
        """
        teacher = self._loop.teacher
        if teacher is None:
            return self._no_distance()
        return teacher.distance(self.model, batch, outputs) * self._session.teacher_share()

    def learn(self, run: Callable[[nn.Module], Any]) -> tuple[Any, Tensor]:
        """Run a detector on a batch, and return how far its heads are from the uncut model's, to be added to the loss.

        For models that return losses in training. As :meth:`teacher_loss` it fades, and is zero before the first cut.
        Scores and boxes are compared where the detector is of a known library, else what the last layer of each head
        makes, by its spread.

        Args:
            run: Runs a network as the loop does: ``losses, apart = session.learn(lambda net: net(images, targets))``.

        Returns:
            What the model returned, and a scalar with gradient.
        """
        lesson, wrapped = self.lesson(), self._loop.wrapped
        if lesson is None:
            return run(wrapped), self._no_distance()
        outputs = lesson.watch(lambda: run(wrapped))
        return outputs, lesson.distance(run)

    def lesson(self) -> Lesson | None:
        """Return :meth:`learn` in parts, for a loop that cannot call it; None before the first cut."""
        teacher = self._loop.head_teacher
        return None if teacher is None else teacher.lesson(self.model, self._session.teacher_share())

    def finish(self) -> PrunePlan | None:
        """Take every hook off and return the plan, None where nothing was cut. What stopped early is cut now.

        Raises:
            ConfigError: The session has ended before.
        """
        if self._stage == "finished":
            raise ConfigError("this session has ended: finish() was called before.")
        if self._stage == "training":
            self._session.sparse.detach()
            self._session.end()
            if not self._session.is_done:
                done, wanted = len(self._session.state.cuts), self._session.settings.cuts
                LOGGER.warning("the training ended after %d of %d cuts: the budget is not met.", done, wanted)
        self._rates.detach()
        self._loop.teacher, self._stage = None, "finished"
        return self.plan

    @property
    def plan(self) -> PrunePlan | None:
        """From the model that the training began with to the present one; None before the first cut."""
        state = getattr(self._session, "state", None)
        return PrunePlan.from_json(state.plan) if state is not None and state.plan else None

    @property
    def cuts_left(self) -> int:
        """Cuts that are still to come."""
        state = getattr(self._session, "state", None)
        return self._session.settings.cuts - (len(state.cuts) if state is not None else 0)

    def columns(self) -> dict[str, float]:
        """Return what a line of a log of the training says of the pruning, once it has begun."""
        return self._session.columns()

    # To stop and go on.

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold beside the model and its optimizers: plain values and tensors."""
        loop = self._loop
        teacher = loop.teacher.module.state_dict() if loop.teacher else None
        return {
            "version": _VERSION,
            "epoch": loop.epoch,
            "steps": loop.counted,
            "within": {
                "iterations": self._iterations,
                "steps": loop.steps,
                "softened": self._session.softened,
            },
            "positions": self._positions.state_dict() if self.cuts_left else {},
            "teacher": teacher,
            **self._session.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the fresh model what it was, cut where it was cut; then load its own weights and the optimizers'.

        Args:
            state: What :meth:`state_dict` returned, with the model as it was built before its first cut.

        Raises:
            CheckpointError: The state is of another version.
            ConfigError: The session runs already, or was asked for with other options.
            PlanError: The model is of another architecture; nothing was cut then.
        """
        self._expect("new")
        check_state(state, _VERSION, self._session.settings)
        stored, loop = RunState.from_dict(state["state"]), self._loop
        if stored.plan:
            loop.cut_again(PrunePlan.from_json(stored.plan), state["teacher"])
        self._session.state, loop.epoch, loop.counted = stored, int(state["epoch"]), int(state["steps"])
        self._within = state.get("within", {})
        self._positions.load_state_dict(state.get("positions", {}))
        self._iterations = self._within.get("iterations", 0)

    # Inside.

    def _begin_epoch(self) -> None:
        self._session.begin_epoch()
        self._session.order_scales()

    def _factor_on_rates(self) -> float | None:
        """Return what is left of the rates in the next step, lower in the first epoch after a cut, and count it."""
        factor = self._session.gentle(self._loop.steps_per_epoch)
        self._loop.steps += 1
        return factor

    def _no_distance(self) -> Tensor:
        return torch.zeros((), device=next(self.model.parameters()).device)

    def _expect(self, stage: str) -> None:
        if self._stage == stage:
            return
        if self._stage == "finished":
            raise ConfigError("this session has ended: make a new one to go on pruning.")
        if stage == "training":
            raise ConfigError("call before_train() first: it checks the budget before hours are spent.")
        raise ConfigError("this session has begun already.")
