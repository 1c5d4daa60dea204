"""A training that runs, as :class:`yolo_prune.train.session.Session` sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.record import PrunePlan
from yolo_prune.train.timing import Timekeeper


class TrainingLoop(Protocol):
    """What a session asks of the training that it prunes in, and what it tells it.

    A host's adapter stands behind it, or a loop of the user's own. Time is counted in epochs: whole numbers of equal
    parts of the training, at whose beginnings it can be cut.
    """

    @property
    def model(self) -> nn.Module:
        """The network that is trained, without wrappers."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """What trains it; together they hold every parameter once."""

    @property
    def average(self) -> nn.Module:
        """The averaged weights, which the cut starts from; the model itself where there is no average."""

    @property
    def epoch(self) -> int:
        """Epochs that are over."""

    @property
    def epochs(self) -> int:
        """Length of the training."""

    @property
    def elapsed(self) -> float | None:
        """Share of the training's time that is over, where its length is a time and no number of epochs."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer in an epoch."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files: the only one, or the first of a distributed training."""

    @property
    def timekeeper(self) -> Timekeeper | None:
        """What times its models on a runtime; None where no runtime can be handed any."""

    @property
    def classifies(self) -> bool:
        """Whether it is known to train a classifier of images."""

    @property
    def score(self) -> Callable[[nn.Module], float] | None:
        """What says how accurate a cut model is on the validation data, larger is better; None where nothing does."""

    def rate_factor(self, epoch: int) -> float:
        """Return what the schedule makes of the initial rates in an epoch."""

    def averaged(self) -> nn.Module:
        """Return a float32 copy of the averaged weights as a checkpoint would hold them, in evaluation mode.

        After the last epoch it is the model that the training would have had as its result.
        """

    def anatomy(self) -> Anatomy:
        """Return how to run the model, and which modules keep their channels."""

    def calibration(self, count: int) -> Calibration:
        """Return what a cut measures on: ``count`` training images in all, as validation sees them, and how."""

    def before_first_cut(self, parent: nn.Module) -> None:
        """Keep the uncut model: a teacher, and what a resumed training makes it of."""

    def after_cut(self, plan: PrunePlan, parent: nn.Module | None) -> None:
        """Make anew what belongs to the model before the cut: wrappers, average, early stopping; validate; save.

        Args:
            plan: From the model that the training began with to the one it trains now.
            parent: The uncut model after the first cut, None after a later one.
        """
