"""How far a cut network's outputs are from those of the network that it was cut from; any outputs, no labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.criteria.calibration import Forward
from yolo_prune.criteria.distance import output_distance

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
        self._follow_mode(student)
        with torch.no_grad():
            theirs = self._forward(self.module, batch)
        return output_distance(outputs, theirs)

    def _follow_mode(self, student: nn.Module) -> None:
        self.module.train(student.training)
        self.module.to(next(student.parameters()).device)
        for child in self.module.modules():
            if isinstance(child, _STEADY):
                child.eval()
