"""Rates of optimizers that are lowered for single steps and given back: the schedule is the loop's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class LoweredRates:
    """Hooks around the steps of the optimizers of one training.

    Args:
        optimizers: All of them; the first one counts the steps.
        factor: Called before every step of the first one; what it returns is the factor on the rates of all until its
            next step, None for the rates as they are.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], factor: Callable[[], float | None]
    ) -> None:
        self._optimizers, self._factor = optimizers, factor
        self._now: float | None = None
        self._rates: dict[int, list[float]] = {}
        self._hooks: list[Any] = []

    def attach(self) -> None:
        """Begin."""
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before))
            self._hooks.append(optimizer.register_step_post_hook(self._after))

    def detach(self) -> None:
        """End."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self._optimizers[0]:
            self._now = self._factor()
        if self._now is not None:
            self._rates[id(optimizer)] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self._now

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        rates = self._rates.pop(id(optimizer), None)
        for group, rate in zip(optimizer.param_groups, rates or (), strict=False):
            group["lr"] = rate
