"""Let a cut network imitate the one that it was cut from, on unlabelled images, and keep it only where it got closer.

BatchNorm statistics stay, weights move. How fast they may is different from model to model (what mends one ruins
another), so the highest of some rates begins, and images that nobody learns from say whether to go on with it or with
the next, how far the whole got, and which weights to keep: those of the beginning where nothing came closer. They are
looked at changed as a lesson's are: a folded network agrees with its parent on images like those that it was folded on,
and gives some of that up for what it learns of all others, which is worth more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.criteria.apart import mean_distance, outputs_apart
from yolo_prune.criteria.calibration import Calibration, images_in, part_of
from yolo_prune.criteria.memory import in_batches_that_fit
from yolo_prune.graph.modes import evaluating, in_full_precision
from yolo_prune.progress import LOGGER, bar
from yolo_prune.recover.augment import augmented
from yolo_prune.recover.learnable import learnable
from yolo_prune.recover.muon import optimizers_for
from yolo_prune.words import counted

RATES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
"""Of the root mean square of each tensor: trained long or short, weights differ by ten in size, and what moves one a
little ruins another."""
_SHORT, _SHORT_RATE = 80, 1e-2
"""Fewer steps than these begin at a lower rate: the highest ruins what folding has left, and has no time to mend it."""
_SMALLEST = 0.01  # root mean square that a tensor counts as at least: biases begin at 0
LESSONS = 256  # images that are imitated on, where there are so many: more than moments need
_PASSES = 20  # over the images; more of them only learn these by heart
_WARM_UP = 20
_BATCH = 16
_AVERAGE = 0.95  # what stays of the averaged weights in a step
_CLIP = 10.0
_HELD_OUT, _MOST_HELD_OUT = 6, 64  # one image in so many is not learnt from, and so many are enough
_LOOKS_AT_EACH = 2  # each time changed in another way
_LOOK = 20  # steps between two looks at them
_PATIENCE = 60  # steps until a rate has to be on its way
_AWAY = 2.0  # less the share of its steps that it took: so many times as far as it began is too far
_SHORTEST = 1e-6  # seconds of a step, for a clock that does not see it


@dataclass(frozen=True)
class Imitation:
    """What came of it.

    Attributes:
        before: Distance to the teacher on images that were not learnt from, changed as lessons are.
        after: The same of the weights that were kept; never larger.
        rate: Of the optimizer, relative to the size of each tensor; 0 where nothing came closer.
        steps: That led to the weights that were kept.
        seconds: All in all.
    """

    before: float
    after: float
    rate: float
    steps: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return what is the same on every machine as plain data."""
        return {"before": self.before, "after": self.after, "rate": self.rate, "steps": self.steps}


def imitate_(
    student: nn.Module,
    teacher: nn.Module,
    calibration: Calibration,
    *,
    steps: int = 240,
    seconds: float | None = None,
    rates: Sequence[float] = RATES,
) -> Imitation:
    """Bring a network closer to its teacher, in place.

    Args:
        student: The cut network; its modes and the flags of its parameters are restored.
        teacher: The uncut one; untouched.
        calibration: Images and how both run on them; its seed orders and varies them.
        steps: Steps of the optimizer, and 60 or more for every rate that is given up; of few images fewer, 20 for each
            batch.
        seconds: Take fewer steps where so many would take longer than this; the result then depends on the machine.
            None: no limit.
        rates: Of the optimizer, relative to the size of each tensor, from the first to begin with on; fewer than 80
            steps begin at 0.01 at most, where one of them is no higher.

    Returns:
        How far it got.

    Raises:
        ConfigError: The outputs of the two cannot be compared.
    """
    began = time.monotonic()
    deadline = None if seconds is None else began + seconds

    def learnt(batches: Sequence[Any]) -> tuple[float, _Reached | None]:
        lessons, held_out = _divided(batches)
        generator = torch.Generator().manual_seed(calibration.seed)
        judges = [augmented(batch, generator) for batch in held_out for _ in range(_LOOKS_AT_EACH)]
        lesson = _Lesson(student, teacher, calibration, lessons, judges, rates)
        with lesson.running():
            before = lesson.distance()
            most = min(steps, _PASSES * len(lesson.learnt))
            return before, lesson.learn_at_some_rate(before, most, deadline)

    before, best = in_batches_that_fit(learnt, calibration.batches)
    result = Imitation(before, before, 0.0, 0, 0.0)
    if best is not None:
        student.load_state_dict(best.state)
        result = Imitation(before, best.distance, best.rate, best.steps, 0.0)
    LOGGER.info(
        "imitation: distance to the parent %.4g -> %.4g in %s",
        before,
        result.after,
        counted(result.steps, "step"),
    )
    return replace(result, seconds=time.monotonic() - began)


@dataclass(frozen=True)
class _Reached:
    """Averaged weights after some steps, their distance to the teacher, and whether their rate was given up."""

    distance: float
    rate: float
    steps: int
    state: dict[str, Tensor]
    given_up: bool = False


def _divided(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return batches to learn from, and others that nobody learns from: one image in six, of any batch size.

    Of a single batch of a single image there is nothing to hold out: it is both.
    """
    parts = [
        part_of(batch, slice(at, at + _BATCH))
        for batch in batches
        for at in range(0, images_in(batch), _BATCH)
    ]
    learnt, held_out, held = list[Any](), list[Any](), 0
    for number, part in enumerate(parts):
        images = images_in(part)
        share = images // _HELD_OUT if images >= _HELD_OUT else images * (number % _HELD_OUT == 1)
        if held >= _MOST_HELD_OUT:
            share = 0
        held += share
        if share:
            held_out.append(part_of(part, slice(images - share, None)))
        if share < images:
            learnt.append(part_of(part, slice(0, images - share)))
    return learnt, held_out or learnt


@dataclass(frozen=True)
class _Lesson:
    """A student, its teacher, and the images."""

    student: nn.Module
    teacher: nn.Module
    calibration: Calibration
    learnt: Sequence[Any]
    held_out: Sequence[Any]
    rates: Sequence[float]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run both in evaluation mode and full precision; only the student's weights want gradients."""
        weights = [*self.student.parameters(), *self.teacher.parameters()]
        wanted = [weight.requires_grad for weight in weights]
        with ExitStack() as undo:
            for module in (self.student, self.teacher):
                undo.enter_context(evaluating(module))
                undo.enter_context(in_full_precision(module))
            undo.enter_context(torch.enable_grad())
            self.teacher.requires_grad_(False)
            free = learnable(self.student, self.teacher)
            self.student.requires_grad_(False)
            for weight in free:
                weight.requires_grad_(True)
            try:
                yield
            finally:
                for weight, flag in zip(weights, wanted, strict=True):
                    weight.requires_grad_(flag)
                    weight.grad = None

    def distance(self) -> float:
        """Return the distance on the images that nobody learns from."""
        return mean_distance(self.student, self.teacher, self.calibration, self.held_out)

    def learn_at_some_rate(self, before: float, steps: int, deadline: float | None) -> _Reached | None:
        """Take the highest rate that is not given up on its way, and ends closer than it began.

        The longer a training, the higher the rate that is best for it, and all but the lowest lead away at first.
        Where there is none, the one that had come nearest gets the whole all the same, unless it had it.

        Returns:
            Weights that are closer than ``before``; None where nothing came closer.
        """
        step = self._seconds_of_a_step() if deadline is not None else 0.0

        def affordable() -> int:
            # A rate that falls to its end does more than one that is broken off.
            return max(
                steps if deadline is None else min(steps, int((deadline - time.monotonic()) / step)), 1
            )

        best: _Reached | None = None
        low = [rate for rate in self.rates if rate <= _SHORT_RATE] if affordable() < _SHORT else []
        for rate in low or self.rates:
            reached = self.learn(rate, affordable(), deadline, closer_than=before)
            best = _closest(best, reached)
            late = deadline is not None and time.monotonic() > deadline
            arrived = reached is not None and not reached.given_up and reached.distance <= before
            if late or arrived:
                break
        else:
            if best is not None and best.given_up:
                best = _closest(best, self.learn(best.rate, affordable(), deadline))
        return best if best is not None and best.distance < before else None

    def _seconds_of_a_step(self) -> float:
        """Time the second of two steps, and go back to the beginning."""
        start, taken = _state(self.student), self._averages(min(self.rates), 2)
        try:
            next(taken, None)
            began = time.monotonic()
            next(taken, None)
            return max(time.monotonic() - began, _SHORTEST)
        finally:
            self.student.load_state_dict(start)

    def learn(
        self, rate: float, steps: int, deadline: float | None, closer_than: float = math.inf
    ) -> _Reached | None:
        """Take steps and go back to the beginning; return the closest averaged weights, None where it diverged.

        From 60 steps, or a quarter of them, on, what is too far away is given up: after a quarter 1.75 times as far as
        that, after a half 1.5 times. A rate leads away as long as it is high, and back as it falls.
        """
        start, patience = _state(self.student), min(_PATIENCE, steps // 4)
        best: _Reached | None = None
        step, late = 0, False
        try:
            with bar(steps, f"imitating the parent, rate {rate:.0e}") as shown:
                for step, average in enumerate(self._averages(rate, steps), 1):
                    shown.update()
                    away = False
                    late = deadline is not None and time.monotonic() > deadline
                    if step % _LOOK == 0 or step in (patience, steps) or late:
                        reached = self._reached(average, rate, step)
                        best = _closest(best, reached) or reached
                        shown.set_postfix_str(f"distance {reached.distance:.4g}")
                        on_its_way = reached.distance <= closer_than * (_AWAY - step / steps)
                        away = step >= patience and not on_its_way
                    if late or away:
                        break
            given_up = step < steps and not late  # or its gradients were not finite any more
            if given_up:
                LOGGER.info("imitation: the rate %.0e leads away from the parent and is given up", rate)
        finally:  # also where memory does not suffice, or a user has seen enough
            self.student.load_state_dict(start)
        return None if best is None else replace(best, given_up=given_up)

    def _averages(self, rate: float, steps: int) -> Iterator[dict[str, Tensor]]:
        """Train the student and yield its averaged weights after every step; end where a gradient is not finite."""
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        optimizers = optimizers_for(self.student, _size)
        generator = torch.Generator().manual_seed(self.calibration.seed)
        average = _state(self.student)
        for step, batch in enumerate(_shuffled(self.learnt, steps, generator)):
            for optimizer in optimizers:
                optimizer.zero_grad()
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["size"] * _factor(step, steps)
            changed = augmented(batch, generator)
            apart = outputs_apart(self.student, self.teacher, self.calibration, changed)
            if not apart.requires_grad:  # nothing that may move reaches the outputs
                return
            apart.backward()  # type: ignore[no-untyped-call]
            if not bool(nn.utils.clip_grad_norm_(weights, _CLIP).isfinite()):
                return
            for optimizer in optimizers:
                optimizer.step()
            _blend_(average, self.student, min(_AVERAGE, (1 + step) / (10 + step)))
            yield average

    def _reached(self, average: dict[str, Tensor], rate: float, steps: int) -> _Reached:
        """Measure averaged weights on the images that nobody learns from."""
        present = _state(self.student)
        self.student.load_state_dict(average)
        found = self.distance()
        self.student.load_state_dict(present)
        return _Reached(found, rate, steps, {name: tensor.clone() for name, tensor in average.items()})


def _closest(*reached: _Reached | None) -> _Reached | None:
    """Return the best of those that there are, the first where several are equal."""
    return min((one for one in reached if one is not None), key=lambda one: one.distance, default=None)


def _size(weight: Tensor) -> float:
    return max(float(weight.detach().square().mean().sqrt()), _SMALLEST) if weight.numel() else _SMALLEST


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _blend_(average: dict[str, Tensor], module: nn.Module, share: float) -> None:
    """Move averaged weights towards those of a module, in place; ``share`` is what stays of them."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor.detach(), 1 - share)


def _factor(step: int, steps: int) -> float:
    """Return the rate at a step as a share of the highest: a short rise, then half a cosine down."""
    rise = min(1.0, (step + 1) / max(min(_WARM_UP, steps // 3), 1))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _shuffled(batches: Sequence[Any], steps: int, generator: torch.Generator) -> Iterator[Any]:
    """Yield so many batches, all of them in a new order time after time."""
    order: list[int] = []
    for _ in range(steps):
        if not order:
            order = torch.randperm(len(batches), generator=generator).tolist()
        yield batches[order.pop()]
