"""Where accuracy before training falls off, found by scoring few of the models on the way to the budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

_Model = TypeVar("_Model")
STEEP = 0.25
"""A fall between two models by more than this share of the best score is a cliff."""


def score_around_cliffs(
    models: Sequence[_Model], score: Callable[[_Model], float]
) -> tuple[float | None, ...]:
    """Score the first and the last model, and of those between as many as it takes to see every cliff.

    A stretch whose ends differ by no more than a cliff is not looked into, any other is halved. So what is missed is a
    fall that later models make good again; it says nothing against a smaller budget.

    Args:
        models: From the largest to the smallest.
        score: Accuracy, larger is better.

    Returns:
        One score a model, None where it was not asked for.

    Example:
        >>> score_around_cliffs([0.6, 0.6, 0.6, 0.6, 0.1], lambda accuracy: accuracy)
        (0.6, None, 0.6, 0.6, 0.1)
    """
    scores: list[float | None] = [None] * len(models)

    def ask(index: int) -> float:
        known = scores[index]
        if known is None:
            known = scores[index] = score(models[index])
        return known

    pending = [(0, len(models) - 1)] if models else []
    while pending:
        first, last = pending.pop()
        before, after = ask(first), ask(last)
        best = max(value for value in scores if value is not None)
        if last - first > 1 and is_cliff(before, after, best):
            middle = (first + last) // 2
            pending += [(middle, last), (first, middle)]
    return tuple(scores)


def score_waiting_models(
    models: Sequence[nn.Module], validate: Callable[[nn.Module], float]
) -> tuple[float | None, ...]:
    """As :func:`score_around_cliffs`; all models but the last wait on the CPU, and are scored where that one is."""
    device = next(models[-1].parameters()).device

    def score(model: nn.Module) -> float:
        try:
            return validate(model.to(device))
        finally:
            model.to("cpu" if model is not models[-1] else device)

    return score_around_cliffs(models, score)


def is_cliff(before: float, after: float, best: float) -> bool:
    """Tell whether a fall is steep beside the best score."""
    return best > 0 and before - after > STEEP * best


def first_cliff(
    points: Sequence[tuple[float, float]],
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return the two neighbours between which scores first fall off, None where they do not.

    Args:
        points: How much is kept, and the score, from the largest model to the smallest.
    """
    best = max((score for _, score in points), default=0.0)
    pairs = itertools.pairwise(points)
    return next((pair for pair in pairs if is_cliff(pair[0][1], pair[1][1], best)), None)
