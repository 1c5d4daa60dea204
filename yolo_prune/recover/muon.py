"""Optimizers of a short training: what moves matrices moves all their directions alike, so few steps go far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_MOMENTUM = 0.95
_SCALE = 0.2  # root mean square of an update of matrices, in rates: about that of AdamW's updates
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_TINY = 1e-12


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal: none of a matrix's directions outweighs the others.

    A weight is a matrix of its first dimension by all others. An update has the root mean square 0.2 x rate, whatever
    the gradient's size and the matrix's shape.

    Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024; the size of its updates from
    Liu et al., Muon is scalable for LLM training, 2025 (arXiv 2502.16982).

    Args:
        groups: Parameters of two and more dimensions, or groups of them.
        lr: The rate.
    """

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; weights without a gradient stay."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                state["average"].lerp_(weight.grad, 1 - _MOMENTUM)
                ahead = weight.grad.lerp(state["average"], _MOMENTUM)
                update = orthogonal(ahead.flatten(1)).view_as(weight)
                size = update.square().mean().sqrt().clamp(min=_TINY)
                weight.sub_(update / size * (group["lr"] * _SCALE))


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix of about the same singular vectors, whose singular values all lie near 1 (0.7 to 1.2).

    Five iterations of Newton and Schulz with the coefficients of Jordan et al., 2024; directions below a thousandth of
    the largest do not get that far.

    Args:
        matrix: Shape (rows, columns), float32.
    """
    rows, columns = matrix.shape
    if rows > columns:
        return orthogonal(matrix.T).T
    first, third, fifth = _COEFFICIENTS
    result: Tensor = matrix / matrix.norm().clamp(min=_TINY)
    for _ in range(_ITERATIONS):
        gram = result @ result.T
        result = first * result + (third * gram + fifth * gram @ gram) @ result
    return result


def optimizers_for(module: nn.Module, size: Callable[[Tensor], float]) -> list[torch.optim.Optimizer]:
    """Return what trains the parameters that want gradients, each of them a group of its own.

    Args:
        module: Weights of its convolutions that mix channels, and of its linear layers, are trained by :class:`Muon`,
            all else by AdamW without weight decay.
        size: Called with each parameter; stands in its group as ``size``.

    Returns:
        One or two optimizers whose rates are 0 until they are set.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    matrices = set(_matrices(module))
    apart = [[weight for weight in weights if (weight in matrices) is chosen] for chosen in (True, False)]
    mixing, others = ([{"params": [weight], "size": size(weight)} for weight in part] for part in apart)
    made: list[torch.optim.Optimizer] = [Muon(mixing, lr=0.0)] if mixing else []
    return made + ([torch.optim.AdamW(others, lr=0.0, weight_decay=0.0)] if others else [])


def _matrices(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        if isinstance(part, (_ConvNd, nn.Linear)) and min(part.weight.shape[:2]) > 1:
            yield part.weight
