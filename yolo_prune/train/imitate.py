"""How far a cut network's outputs are from those of the network that it was cut from; any outputs, no labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from yolo_prune.criteria.calibration import Forward
from yolo_prune.errors import ConfigError
from yolo_prune.graph.values import tensors_in

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

        The mean over the floating-point outputs: of class scores (B, C) the Kullback-Leibler divergence, of any other
        the squared error relative to the teacher's variance.

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
            theirs = _floating(self._forward(self.module, batch))
        ours = _floating(outputs)
        if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs] or not ours:
            raise ConfigError(
                f"the uncut model's outputs cannot be compared: {_shapes(ours)} of the model, {_shapes(theirs)} of its "
                "teacher. Hand over the batch that the outputs are of, and the outputs before they are filtered."
            )
        return torch.stack([_distance(*pair) for pair in zip(ours, theirs, strict=True)]).mean()

    def _follow_mode(self, student: nn.Module) -> None:
        self.module.train(student.training)
        self.module.to(next(student.parameters()).device)
        for child in self.module.modules():
            if isinstance(child, _STEADY):
                child.eval()


def _floating(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point() and tensor.numel()]


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "no floating-point tensor"


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    ours, theirs = ours.float(), theirs.detach().float()
    if theirs.dim() == 2 and theirs.shape[1] > 1:
        return F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean")
    spread = theirs.var(correction=0).clamp(min=1e-12)
    return (ours - theirs).square().mean() / spread
