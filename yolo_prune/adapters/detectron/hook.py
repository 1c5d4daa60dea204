"""A hook that prunes inside the training of detectron2 or mayaku.

Nothing of the training changes but this line::

    trainer.register_hooks([PruningHook(keep_macs=0.5)])

It fires where hooks fire::

    before_train()      checks the budget, or goes on where a resumed training was
    for iter in range(start_iter, max_iter):
        before_step()   nothing
        ...             the step itself
        after_step()    ends a part of the training: cuts when it is time
    after_train()       writes the plan
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yolo_prune.adapters.detectron import parts
from yolo_prune.adapters.detectron.batches import (
    RecentImages,
    example_of,
    images_of,
    watch_batches,
    whole_example_of,
)
from yolo_prune.adapters.detectron.division import Division
from yolo_prune.adapters.detectron.journal import Journal, say_begin, say_cut, say_frozen_norms
from yolo_prune.adapters.detectron.saved import WithPruning, check_weights, weigh
from yolo_prune.adapters.detectron.teaching import add_teacher
from yolo_prune.criteria.batches import are_given
from yolo_prune.criteria.calibration import Forward, Projection, call
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.graph.randomness import untouched_randomness
from yolo_prune.options.inrun import make_settings, refuse_places, without_images
from yolo_prune.progress import LOGGER
from yolo_prune.recover.effort import images_for
from yolo_prune.train.midcut import from_first_process
from yolo_prune.train.plain import PruningSession
from yolo_prune.train.wrappers import unwrapped

try:
    from detectron2.engine.train_loop import HookBase  # its trainer asks for one of this class
except ImportError:
    HookBase = object

_PLAN = "plan.json"
_SCORE = "bbox/AP"  # where detectron2's evaluation leaves it, in per cent


class PruningHook(HookBase):  # type: ignore[misc]
    """Sparse training, the cut, gentle rates and a teacher after it, for a trainer with hooks.

    The training is divided into ``parts`` equal parts, which are the epochs of :class:`yolo_prune.PruningSession`: it
    can be cut between them. The model and the optimizer stay the same objects, so schedulers, averages (mayaku's
    ``EMAHook``), gradient scalers, checkpointers and evaluators go on; the hook puts itself before all others, so that
    what they save and evaluate is what the cut left. Checkpoints hold its state, and the plan is written to
    ``plan.json`` beside them.

    Attributes:
        trainer: Set when the hook is registered.
        parts: How many parts the training has.
        cut_after: Iterations that were over at the last cut; None before it.
    """

    trainer: Any = None
    cut_after: int | None = None

    def __init__(
        self,
        *,
        parts: int = 50,
        example_input: Any = None,
        cost_input: Any = None,
        calibration: Iterable[Any] | None = None,
        forward: Forward = call,
        projection: Projection | None = None,
        output_dir: Path | str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Check the options; the training is looked at when it begins.

        Args:
            parts: Equal parts of the training, at whose beginnings it can be cut.
            example_input: What is traced and proven, as for :func:`yolo_prune.prune_module`. None: the middle of an
                image of the loader, up to 128 pixels wide and high.
            cost_input: Input whose MACs count. None: that image whole.
            calibration: Batches that a cut is measured on. None: the latest ones of the training, which costs neither
                a second reader of the loader nor its order. ``()``: none, and weights alone rank.
            forward: ``forward(model, batch)`` runs the model on a batch of ``calibration``.
            projection: Scalar of its outputs whose squared gradient says how much predictions change. None: of a
                detector that filters its boxes, what the last layers of its heads made.
            output_dir: Where ``plan.json`` goes. None: where the trainer writes checkpoints.
            seed: Of what is drawn at random.
            **options: Fields of :class:`yolo_prune.options.inrun.InRunSettings`: a budget, ``cuts``, ``criterion``,
                ...; ``prune_at`` from 1 on is a number of iterations here.

        Raises:
            ConfigError: An option is unknown or wrong, or there is no budget.
        """
        if parts < 1:
            raise ConfigError(f"parts must be at least 1, got {parts}.")
        if calibration is not None and not are_given(calibration):
            options = without_images(options)
        self.parts, self._options = parts, options
        self._settings = make_settings(options)
        refuse_places(self._settings)
        self._example, self._cost_input, self._calibration = example_input, cost_input, calibration
        self._forward, self._seed = forward, seed
        self._projection = projection
        self._output_dir = Path(output_dir) if output_dir is not None else None
        self._session: PruningSession | None = None
        self._recent: RecentImages | None = None
        self._handles: list[Any] = []
        self._teaching: list[Any] = []
        self._stage = "new"
        self._fed = self._judged = 0
        self._saved: Mapping[str, Any] | None = None

    @property
    def plan(self) -> PrunePlan | None:
        """From the model that the training began with to the present one; None before the first cut."""
        return self._session.plan if self._session is not None else None

    # What the trainer calls.

    def before_train(self) -> None:
        """Check the budget, and begin; after :meth:`load_state_dict` go on.

        Raises:
            BudgetError: The budget cannot be met.
            ConfigError: The trainer has no model, optimizer, loader or iteration to go, its optimizer does not train
                its model, the hook is registered twice or has ended, or a checkpoint's weights are missing.
        """
        trainer = self._registered()
        if self._stage == "ended":
            raise ConfigError(
                "this PruningHook has ended with its training: register a new one to train again."
            )
        hooks = [hook for hook in parts.hooks_of(trainer) if isinstance(hook, PruningHook)]
        if len(hooks) > 1 or self._stage == "training":
            raise ConfigError(f"{len(hooks)} PruningHooks are registered: a training has one.")
        length = parts.length_of(trainer)
        session = self._session or self._make_session(length)
        self._check_resumed(length)
        parts.go_first(trainer, self)
        self._journal = Journal(trainer)
        self._journal.open()
        self._stage = "training"
        session.before_train()
        self._watch(session)
        self._teaching = (
            add_teacher(session.model, session.lesson) if self._settings.learns_from_parent else []
        )
        for writer in parts.writers_of(trainer):
            writer.metadata = WithPruning(writer.metadata, self.state_dict)
        self._say_begin(session)
        if session.plan is not None:
            self._note_cut(session, self.cut_after or int(trainer.start_iter))

    def before_step(self) -> None:
        """Do nothing."""

    def after_backward(self) -> None:
        """Do nothing."""

    def after_step(self) -> None:
        """End a part of the training where it ends; cut when it is time."""
        session, done = self._session, int(self.trainer.iter) + 1
        if session is None or self._stage != "training":
            return
        self._fed += 1
        # Processes that train together decide alike: they see other images, and only the first one evaluates.
        while session.epoch < self._division.over(done) and not from_first_process(lambda: self._waits(done)):
            before = session.columns()["prune/params"]
            session.after_epoch(from_first_process(self._fitness))
            if session.columns()["prune/params"] != before:
                self._note_cut(session, done)
            self._journal.numbers.update(session.columns())
        self._journal.write()

    def after_train(self) -> None:
        """Take everything off and write the plan."""
        session = self._session
        if session is None or self._stage != "training":
            return
        self._stage = "ended"
        session.finish()
        for handle in (*self._handles, *self._teaching):
            handle.remove()
        self._handles, self._teaching, self._recent = [], [], None
        self._journal.close()

    # What checkpoints hold.

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold beside the weights: plain values; empty before the training."""
        if self._session is None or self._stage == "new":
            return {}
        return {
            "max_iter": self._division.length,
            "weight": weigh(self._session.model),
            "cut_after": self.cut_after,
            "session": self._session.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the trainer's fresh model as the saved one was; then load its weights and the optimizer's state.

        detectron2's checkpointer loads weights first, which fit the uncut model in part: when the training begins,
        they are loaded once more.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            ConfigError: The hook is not registered, or was asked for with other options.
            PlanError: The model is of another architecture; nothing was cut then.
            CheckpointError: The state is no such state.
        """
        self._registered()
        if self._stage != "new" or self._session is not None:
            raise ConfigError("this PruningHook has begun already: load the state before the training.")
        if not isinstance(state, Mapping) or not {"max_iter", "weight", "session"} <= state.keys():
            raise CheckpointError("expected the state of a PruningHook: what its state_dict() returned.")
        session = self._make_session(int(state["max_iter"]))
        session.load_state_dict(state["session"])
        self._saved, self.cut_after = state, state.get("cut_after")

    # Inside.

    def _registered(self) -> Any:
        if self.trainer is None:
            raise ConfigError(
                "this PruningHook has no trainer: register it first, trainer.register_hooks([hook])."
            )
        return self.trainer

    def _make_session(self, length: int) -> PruningSession:
        """Look at the trainer and make its session.

        Args:
            length: Iterations of the whole training.
        """
        trainer = self.trainer
        self._division = division = Division.of(length, self.parts, self._settings)
        model = parts.model_of(trainer)
        example, cost_input, calibration = self._example, self._cost_input, self._calibration
        if example is None or calibration is None:
            with untouched_randomness():
                images = from_first_process(lambda: images_of(parts.first_batch(trainer)))
            if calibration is None:
                self._recent = calibration = RecentImages(
                    images_for(self._settings.calibration_images), images
                )
            if example is None:
                example = example_of(images)
                cost_input = whole_example_of(images) if cost_input is None else cost_input
        self._session = session = PruningSession(
            *(model, parts.optimizers_of(trainer), example),
            total=division.parts,
            calibration=calibration,
            forward=self._forward,
            projection=self._projection,
            average=parts.average_of(trainer),
            cost_input=cost_input,
            seed=self._seed,
            **{**self._options, "prune_at": division.prune_at},
        )
        return session

    def _check_resumed(self, length: int) -> None:
        """Refuse to go on with another length or without the weights that belong to the state."""
        if self._saved is None or self._session is None:
            return
        if length != self._division.length:
            raise ConfigError(
                f"the training was saved with max_iter={self._division.length} and goes on with {length}: it would be "
                "cut at another time. Resume with the same."
            )
        check_weights(self._session.model, float(self._saved["weight"]), parts.checkpointer_of(self.trainer))

    def _watch(self, session: PruningSession) -> None:
        """Keep the images that the model is trained on, as long as a cut is to come."""
        if self._recent is not None and not self._is_done(session):
            self._handles = [watch_batches(session.model, self._recent.feed)]

    def _waits(self, done: int) -> bool:
        """Tell whether a resumed training has not seen the images yet that an unbroken one would be cut on."""
        if self._recent is None or self._is_done(self._session) or done >= self._division.length:
            return False
        wanted = min(
            images_for(self._settings.calibration_images), done * len(self._recent) / max(self._fed, 1)
        )
        return len(self._recent) < wanted

    def _is_done(self, session: PruningSession | None) -> bool:
        return session is not None and session.cuts_left == 0

    def _fitness(self) -> float | None:
        """Return the AP of an evaluation since the last part, in [0, 1]."""
        found = self._journal.latest(_SCORE)
        if found is None or found[1] <= self._judged:
            return None
        self._judged = found[1]
        return found[0] / 100

    def _say_begin(self, session: PruningSession) -> None:
        """Say what will be cut, and what can never be made sparse."""
        columns, settings = session.columns(), self._settings
        if settings.budget is not None and session.plan is None:
            say_begin(
                settings.budget,
                columns["prune/gmacs"],
                int(columns["prune/params"]),
                self._division.cuts_after,
            )
        if frozen := parts.frozen_norms(unwrapped(session.model)):
            say_frozen_norms(frozen, settings.criterion)
        self._journal.numbers = columns

    def _note_cut(self, session: PruningSession, iteration: int) -> None:
        """Say what a cut left, keep it for the storage, and write the plan."""
        plan = session.plan
        if plan is None:
            return
        say_cut(plan, iteration)
        self.cut_after = iteration
        self._journal.numbers |= {
            "prune/cut_iter": float(iteration),
            "prune/kept_macs": plan.kept_macs,
            "prune/kept_params": plan.kept_params,
            "prune/difference": float(plan.equivalence.get("max_difference", 0.0)),
        }
        if self._is_done(session):
            for handle in self._handles:
                handle.remove()
            self._handles = []
        folder = self._output_dir or parts.output_dir_of(self.trainer)
        if folder is None:
            LOGGER.warning("the plan is in the checkpoints alone: give output_dir= for a plan.json.")
        elif parts.is_first():
            LOGGER.info("the plan is in %s", plan.save(folder / _PLAN))
