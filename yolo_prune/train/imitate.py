"""How far a cut network's outputs are from those of the network that it was cut from; any outputs, no labels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from yolo_prune.criteria.calibration import Forward
from yolo_prune.criteria.distance import output_distance
from yolo_prune.criteria.heads import HeadForward
from yolo_prune.graph.decisions import Decisions
from yolo_prune.graph.randomness import untouched_randomness

WITH_LABELS = 0.0
"""How much the overlap with a teacher's boxes counts beside labels: they are nearer to what is right, and 4 cost AP."""
_Outputs = TypeVar("_Outputs")
_STEADY = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class OutputTeacher:
    """The uncut network, frozen.

    Attributes:
        module: The network.
    """

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        self.module = module.requires_grad_(False).eval()
        self._forward = forward

    def distance(self, student: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """Return the distance of a student's outputs to the teacher's for the same batch.

        See :func:`yolo_prune.criteria.distance.output_distance`.

        Args:
            student: The network that is trained; the teacher runs in its mode, but with its own statistics and without
                dropout, so that both return the same kind of outputs.
            batch: As ``forward`` takes it.
            outputs: The student's.

        Raises:
            ConfigError: The outputs are of another number or shape.
        """
        _follow_mode(self.module, student)
        with torch.no_grad():
            theirs = self._forward(self.module, batch)
        return output_distance(outputs, theirs)


class HeadTeacher:
    """The uncut network of a detector that returns losses in training: its heads are compared, not its outputs.

    Both look at the same places: the teacher takes the student's decisions (which anchors are proposals, which of them
    are learnt from) and random numbers.

    Attributes:
        module: The network; it is frozen.
        heads: What is compared, and how.
    """

    def __init__(self, module: nn.Module, heads: HeadForward) -> None:
        self.module = module.requires_grad_(False).eval()
        self.heads = heads

    def lesson(self, student: nn.Module, share: float = 1.0) -> Lesson:
        """Return what one batch is learnt with.

        Args:
            student: The network that is trained.
            share: Factor on the distance.
        """
        return Lesson(self, student, share)


class Lesson:
    """One batch: the student runs and is watched, then the teacher runs as it did."""

    def __init__(self, teacher: HeadTeacher, student: nn.Module, share: float) -> None:
        self._teacher, self._student, self._share = teacher, student, share
        self._decided, self._drawn = Decisions(), _Generators()
        self._made: list[Any] = []
        self._watched = ExitStack()

    def begin(self) -> None:
        """Watch the student from now on: what its heads make, what it decides, and what it draws at random."""
        self._drawn.note()
        self._made = self._watched.enter_context(self._teacher.heads.watching(self._student))
        self._watched.enter_context(self._decided)

    def end(self) -> None:
        """Watch it no more."""
        self._watched.close()

    def watch(self, run: Callable[[], _Outputs]) -> _Outputs:
        """Run the student, and return what it returned."""
        self.begin()
        try:
            return run()
        finally:
            self.end()

    def distance(self, run: Callable[[nn.Module], Any]) -> Tensor:
        """Run the teacher at the student's places, and return the distance of what their heads made.

        Args:
            run: Runs a network as the student was run: in training mode, on the batch with its targets. The teacher has
                its own statistics and no dropout.

        Returns:
            Scalar with gradient.

        Raises:
            ConfigError: What they made cannot be compared.
        """
        teacher = self._teacher.module
        _follow_mode(teacher, self._student)
        with (
            torch.no_grad(),
            untouched_randomness(),
            self._teacher.heads.watching(teacher) as theirs,
            Decisions(self._decided.made),
        ):
            self._drawn.again()
            run(teacher)
        return self._teacher.heads.distance(self._made, theirs) * self._share


class _Generators:
    """PyTorch's generators of random numbers at one time."""

    def note(self) -> None:
        """Keep where they are."""
        self._cpu = torch.get_rng_state()
        known = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._gpu = torch.cuda.get_rng_state() if known else None

    def again(self) -> None:
        """Let the same numbers be drawn again."""
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu)


def _follow_mode(teacher: nn.Module, student: nn.Module) -> None:
    teacher.train(student.training)
    teacher.to(next(student.parameters()).device)
    for child in teacher.modules():
        if isinstance(child, _STEADY):
            child.eval()
