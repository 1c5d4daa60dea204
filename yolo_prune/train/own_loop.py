"""A training loop of the user's own, as a session sees it: see :class:`yolo_prune.train.loop.TrainingLoop`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.criteria.batches import ReadLabels, calibration_of, gather_batches
from yolo_prune.criteria.calibration import Calibration, Forward, Projection
from yolo_prune.criteria.distance import bounded_distance
from yolo_prune.criteria.heads import HeadForward, known_heads, last_layers
from yolo_prune.cut.optimizer import follow_cut
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.recover.effort import images_for
from yolo_prune.train.imitate import WITH_LABELS, HeadTeacher, OutputTeacher
from yolo_prune.train.midcut import is_distributed
from yolo_prune.train.timing import Timekeeper
from yolo_prune.train.wrappers import average_inside, renew_wrappers_, restart_average_, unwrapped


@dataclass
class OwnLoop:
    """What is known of the loop, and where it is.

    Attributes:
        wrapped: The network as the loop holds it.
        optimizers: They train it.
        epochs: Length of the training.
        how: How to run the network.
        batches: Where calibration batches come from.
        forward: Runs a network on one of them.
        projection: What its task feels.
        seed: Of what is drawn at random.
        mean: The average of the weights, None where there is none.
        distill: Keep the uncut network as a teacher.
        epoch: Epochs that are over.
        steps: Steps of the optimizer in this epoch.
        counted: Steps of the optimizer in the last one.
        teacher: The uncut network.
        labels: Says of batches what is in each of their images.
        heads: What its heads make; None as long as nobody asked.
        timekeeper: Times its models on a runtime, None where nothing can.
        classifies: All that the network makes of an image is a row of scores.
    """

    wrapped: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    epochs: int
    how: Anatomy
    batches: Iterable[Any]
    forward: Forward
    projection: Projection | None
    seed: int
    mean: nn.Module | None
    distill: bool
    epoch: int = 0
    steps: int = 0
    counted: int = 0
    teacher: OutputTeacher | None = None
    labels: ReadLabels | None = None
    heads: HeadForward | None = None
    timekeeper: Timekeeper | None = None
    classifies: bool = False

    @property
    def model(self) -> nn.Module:
        """The network without wrappers."""
        return unwrapped(self.wrapped)

    @property
    def average(self) -> nn.Module:
        """The averaged weights, or the model itself."""
        return self.model if self.mean is None else average_inside(self.mean)

    @property
    def elapsed(self) -> None:
        """The length is a number of epochs."""
        return None

    @property
    def steps_per_epoch(self) -> int:
        """As counted in the last epoch."""
        return max(self.counted, 1)

    @property
    def is_first(self) -> bool:
        """Whether this process is the only one or the first."""
        return not is_distributed() or torch.distributed.get_rank() == 0

    @property
    def score(self) -> None:
        """Nothing says how accurate it is."""
        return None

    def rate_factor(self, epoch: int) -> float:
        """Return what has become of the initial rates by now: how the schedule goes on is not known."""
        group = self.optimizers[0].param_groups[0]
        first = float(group.get("initial_lr", group["lr"]))
        return float(group["lr"]) / first if first else 1.0

    def averaged(self) -> nn.Module:
        """Return a float32 copy of the averaged weights in evaluation mode."""
        return copy.deepcopy(self.average).float().eval()

    def anatomy(self) -> Anatomy:
        """Return how to run the model."""
        return self.how

    def calibration(self, count: int) -> Calibration:
        """Return batches of ``count`` images in all."""
        batches = gather_batches(self.batches, count)
        read = None if self.labels is None else partial(self.labels, tuple(batches))
        return Calibration(batches, self.projection, self.forward, self.seed, labels=read)

    def before_first_cut(self, parent: nn.Module) -> None:
        """Make the uncut model the teacher."""
        if self.distill:
            self.teacher = OutputTeacher(copy.deepcopy(parent), self.forward)

    @property
    def head_teacher(self) -> HeadTeacher | None:
        """The uncut model as a teacher of detectors, None before the first cut."""
        if self.teacher is None:
            return None
        uncut = self.teacher.module
        if self.heads is None:
            self.heads = known_heads(uncut, self.forward, overlap=WITH_LABELS) or HeadForward(
                self.forward, last_layers(uncut, self.how.cost_of(uncut).graph), bounded_distance
            )
        return HeadTeacher(uncut, self.heads)

    def after_cut(self, plan: PrunePlan, parent: nn.Module | None) -> None:
        """Renew wrappers and average."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.renew()

    def cut_again(self, plan: PrunePlan, teacher: Mapping[str, Tensor] | None) -> None:
        """Cut a fresh model as that of a saved training was.

        Args:
            plan: What was cut.
            teacher: Weights of the uncut model, where there was a teacher.
        """
        if teacher is not None:
            uncut = copy.deepcopy(self.model)
            uncut.load_state_dict(teacher)
            self.teacher = OutputTeacher(uncut, self.forward)
        cut_(self.model, plan, rules=self.how.rules)
        for optimizer in self.optimizers:
            follow_cut(optimizer, self.model)
        self.renew()

    def renew(self) -> None:
        """Set up anew what remembers parameters that are gone."""
        renew_wrappers_(self.wrapped)
        if self.mean is not None:
            restart_average_(self.mean, self.model)


def looked_into(
    source: Iterable[Any],
    network: nn.Module,
    given: int | None,
    forward: Forward,
    projection: Projection | None,
    seed: int,
) -> tuple[Iterable[Any], Calibration | None]:
    """Run the network on the first calibration batch, before hours are spent.

    Args:
        source: Where calibration batches come from. An iterator can be read once: now, and the cut is later.
        network: What is trained.
        given: How many images its user wants to measure on; None: as many as are enough.
        forward: Runs the network on a batch.
        projection: What its task feels, None for that of any outputs.
        seed: Of what is drawn at random.

    Returns:
        Where to read the batches at a cut, and what is known of them now; None where there are none.

    Raises:
        ConfigError: The network does not take a batch, or there is none.
    """
    once = isinstance(source, Iterator)

    def how_many(classifies: bool) -> int:
        return images_for(given, classifies) if once else 1

    found = calibration_of(network, source, how_many, forward, projection, seed)
    return (found.batches if found is not None and once else source), found
