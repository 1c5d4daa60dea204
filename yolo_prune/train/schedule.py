"""When a training is cut, and to how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from yolo_prune.cut.budget import Budget
from yolo_prune.errors import ConfigError
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.train.state import RunState

_FIRST_SHARE, _LAST_SHARE = 0.4, 0.7
_EARLIEST, _LATEST = 0.2, 0.6
_NEARLY_ALL = 1 - 1e-9


def cut_shares(prune_at: float | str, cuts: int, epochs: int) -> list[float]:
    """Return the shares of the run after which it is cut: the first as asked, the others evenly up to 0.7.

    Args:
        prune_at: Share of the run below 1, a number of epochs from 1 on, "auto" (0.6 at the latest), "late" (0.7;
            of several cuts the first at 0.4), which leaves an epoch also in a short run, or "end", after all of them.
        cuts: Number of cuts.
        epochs: Length of the run.

    Returns:
        Shares in [0, 1), ascending, shape (cuts,); 1 for the end.
    """
    if prune_at == "end":
        return [1.0]
    if prune_at == "late":
        first = min(_LAST_SHARE if cuts == 1 else _FIRST_SHARE, (epochs - 1) / epochs)
    else:
        first = _LATEST if prune_at == "auto" else float(prune_at)
    first = first / epochs if first >= 1 else first
    return (
        [float(share) for share in np.linspace(first, max(first, _LAST_SHARE), cuts)] if cuts > 1 else [first]
    )


def check_schedule(prune_at: float | str, cuts: int, epochs: int) -> list[int]:
    """Return how many epochs come before each cut.

    Raises:
        ConfigError: No epoch is left after the last cut, which was not to be at the end, or two cuts fall together.
    """
    if prune_at == "end":
        return [epochs]
    before = [_epochs_before(share, epochs) for share in cut_shares(prune_at, cuts, epochs)]
    if before[-1] >= epochs:
        raise ConfigError(
            f"prune_at={prune_at} leaves no epoch after the cut: the run has {epochs}. Cut earlier or train longer."
        )
    if len(set(before)) < cuts:
        raise ConfigError(
            f"cuts={cuts} do not fit between the first cut (after epoch {before[0]}) and the end of {epochs} "
            "epochs. Use fewer cuts, cut earlier or train longer."
        )
    return before


def _epochs_before(share: float, epochs: int) -> int:
    return int(np.floor(share * epochs + 0.5))


def cut_is_due(
    prune_at: float | str,
    cuts: int,
    done: int,
    epoch: int,
    epochs: int,
    *,
    elapsed: float | None = None,
    separated: bool = False,
) -> bool:
    """Tell at the beginning of an epoch whether to cut first; at none where the cut comes at the end.

    Args:
        prune_at: As for :func:`cut_shares`.
        cuts: Number of cuts.
        done: How many were made.
        epoch: Epochs that are over.
        epochs: Length of the run.
        elapsed: Share of the run's time that is over, where its length is a time.
        separated: The scales tell the channels apart ("auto" does not wait then).
    """
    if done >= cuts or prune_at == "end":
        return False
    share = cut_shares(prune_at, cuts, epochs)[done]
    if elapsed is not None:
        return elapsed >= share
    if prune_at == "auto" and separated and epoch >= _EARLIEST * epochs:
        return True
    return epoch >= _epochs_before(share, epochs)


def cut_budget(budget: Budget, whole: float, number: int, cuts: int) -> Budget:
    """Return the absolute budget of one cut: evenly on the way from the whole model to what was asked for.

    Args:
        budget: What was asked for, of the model that the run began with.
        whole: Its MACs, parameters or milliseconds, whatever the budget is of.
        number: Which cut, from 1.
        cuts: Number of cuts.
    """
    return Budget.of(budget.gradient, whole + (budget.limit_of(whole) - whole) * number / cuts)


def what_is_left(settings: InRunSettings, state: RunState) -> InRunSettings:
    """Return the options of a run that goes on where another ended before its last cut.

    Its budget, a share of the model that the first run began with, becomes one of the model as it is now.

    Args:
        settings: Of the first run.
        state: Where it ended, with fewer cuts than cuts.
    """
    cuts = settings.cuts - len(state.cuts)
    if settings.keep_macs is not None:
        share = min(settings.keep_macs * state.gmacs / state.current_gmacs, _NEARLY_ALL)
        return replace(settings, cuts=cuts, keep_macs=share)
    if settings.target_speedup is not None and state.ms is not None:
        left = settings.target_speedup * state.current_ms / state.ms
        return replace(settings, cuts=cuts, target_speedup=max(left, 1 / _NEARLY_ALL))
    if settings.keep_params is not None:
        share = min(settings.keep_params * state.params / state.current_params, _NEARLY_ALL)
        return replace(settings, cuts=cuts, keep_params=share)
    return replace(settings, cuts=cuts)
