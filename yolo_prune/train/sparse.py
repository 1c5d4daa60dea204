"""The sparse epochs of a running training: the hook, its strength, and the line that says whether scales move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from yolo_prune.cost import CostModel
from yolo_prune.errors import ConfigError
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.progress import LOGGER
from yolo_prune.train.scales import NEAR_ZERO, ScaleWatch, draw_scales
from yolo_prune.train.sparsify import (
    Ramp,
    Sparsifier,
    batchnorm_scales,
    shrinkage,
    sparsify,
    summarise_scales,
)
from yolo_prune.train.state import RunState
from yolo_prune.train.strength import StrengthSearch, first_strength, most_strength

_END_OF_RAMP = 0.1
_MEAN_OF_RAMP = 0.725  # up over the first tenth, full to the half, down to the end


def free_scales(cost: CostModel) -> frozenset[str]:
    """Return the layers whose scales belong to channels that may go; to shrink others would be of no use."""
    graph = cost.graph
    free = {
        axis.name.rpartition(".")[0]
        for axis in graph.axes
        if not graph.frozen[graph.axis_channels(axis)].all()
    }
    return frozenset(free)


class SparsePhase:
    """Shrinks the scales of one run from a first epoch to its last cut.

    Attributes:
        hooks: One at work for each optimizer that trains scales, none outside the sparse epochs.
    """

    def __init__(
        self,
        settings: InRunSettings,
        state: RunState,
        layers: frozenset[str],
        wanted: float,
        picture: Path | None,
    ) -> None:
        self.settings, self.state, self.layers, self.wanted, self.picture = (
            settings,
            state,
            layers,
            wanted,
            picture,
        )
        self.hooks: list[Sparsifier] = []
        self._optimizers: tuple[Any, ...] = ()
        self._before: dict[str, Tensor] = {}
        self._search: StrengthSearch | None = None
        self._impossible = settings.strength == 0

    @property
    def sparsifier(self) -> Sparsifier | None:
        """The first hook at work; all of them go in step."""
        return self.hooks[0] if self.hooks else None

    def scales(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Return the scales of the layers that may lose channels."""
        return {name: scale for name, scale in batchnorm_scales(module).items() if name in self.layers}

    def attach(
        self, module: nn.Module, optimizers: Sequence[Any], *, steps_left: int, lr_sum: float, epochs: int
    ) -> None:
        """See that the hook is on these optimizers; one that was made anew gets a hook of its own.

        Args:
            module: The model that is trained.
            optimizers: They train it.
            steps_left: Optimizer steps up to the last cut.
            lr_sum: Sum of the factors on the initial rates over those steps.
            epochs: Epochs up to the last cut.
        """
        if self._impossible or (self.hooks and self._optimizers == tuple(optimizers)):
            return
        self.detach()
        scales, state = self.scales(module), self.state
        trained = {name: scale for name, scale in scales.items() if scale.requires_grad}
        if not trained:
            LOGGER.warning(
                "sparse training is off: no BatchNorm scale of a layer that may be cut is trained."
            )
            self._impossible = True
            return
        if state.first_mean is None:
            state.first_mean = summarise_scales(trained).mean
        if state.strength is None:
            median, reach = summarise_scales(trained).median, _reach(optimizers, trained, lr_sum)
            most = most_strength(median, reach, epochs, normalised=not any(map(_has_momentum, optimizers)))
            state.strength = self.settings.strength or min(first_strength(median, reach, epochs), most)
            state.first_strength, state.most_strength = state.strength, most
        if state.ramp_steps is None:
            state.ramp_steps = state.sparse_steps + max(steps_left, 1)
        ramp = Ramp(state.ramp_steps, end=_END_OF_RAMP)
        try:
            self.hooks = [
                sparsify(optimizer, mine, state.strength, ramp)
                for optimizer, mine in _by_optimizer(optimizers, trained)
            ]
        except ConfigError as error:
            LOGGER.warning("sparse training is off: %s", error)
            self._impossible = True
            return
        for hook in self.hooks:
            hook.steps = state.sparse_steps
        self._optimizers = tuple(optimizers)
        self._before = self._before or {name: scale.detach().clone() for name, scale in scales.items()}
        if self.settings.strength is None and self._search is None:
            self._search = StrengthSearch(
                state.strength,
                self.settings.max_drop,
                self.wanted,
                start=state.first_strength,
                best=state.best_fitness,
                most=state.most_strength,
                rest=state.rest,
            )

    def count_steps(self) -> None:
        """Note how far the sparse steps are."""
        if self.sparsifier is not None:
            self.state.sparse_steps = self.sparsifier.steps

    def detach(self) -> None:
        """Take the hook off; the scales stay as they are."""
        if self.sparsifier is not None:
            self.count_steps()
            self.state.ramp_steps = None
        for hook in self.hooks:
            hook.remove()
        self.hooks, self._optimizers = [], ()

    def end_epoch(self, module: nn.Module, *, draw: bool) -> None:
        """Say where the scales are, and draw them."""
        if self.sparsifier is None:
            return
        state, scales = self.state, self.scales(module)
        self.count_steps()
        state.sparse_epochs += 1
        watch = ScaleWatch(
            summarise_scales(scales), state.first_mean or 0.0, self.sparsifier.current, state.sparse_epochs
        )
        LOGGER.info("%s", watch.line())
        if complaint := watch.complaint():
            LOGGER.warning("%s", complaint)
        if draw and self.picture is not None and self._before.keys() == scales.keys():
            draw_scales(self.picture, self._before, scales)

    def note_fitness(self, fitness: float | None, below: float, done: float) -> None:
        """Let the search for lambda judge an epoch: the dense ones before the hook set the mark.

        Args:
            fitness: Of the epoch.
            below: Share of scales near zero.
            done: Share of the sparse epochs that are over.
        """
        state = self.state
        if self.sparsifier is None or self._search is None:
            if fitness is not None and np.isfinite(fitness) and not state.cuts:
                state.best_fitness = max(float(fitness), state.best_fitness or 0.0)
            return
        if news := self._search.update(fitness, below, done):
            LOGGER.info("%s", news)
        state.strength, state.best_fitness, state.rest = (
            self._search.strength,
            self._search.best,
            self._search.rest,
        )
        for hook in self.hooks:
            hook.strength = state.strength

    def below(self, module: nn.Module) -> float:
        """Return the share of scales near zero."""
        scales = self.scales(module)
        return summarise_scales(scales, NEAR_ZERO).below if scales else 0.0

    @property
    def current(self) -> float:
        """Lambda of the last step, 0 outside the sparse epochs."""
        return self.sparsifier.current if self.sparsifier is not None else 0.0


def _by_optimizer(
    optimizers: Sequence[Any], scales: dict[str, nn.Parameter]
) -> list[tuple[Any, dict[str, nn.Parameter]]]:
    """Return every optimizer that trains scales, with those; where none trains any, the first one will complain."""
    found = []
    for optimizer in optimizers:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        mine = {name: scale for name, scale in scales.items() if id(scale) in held}
        if mine:
            found.append((optimizer, mine))
    return found or [(optimizers[0], scales)]


def _reach(optimizers: Sequence[Any], scales: dict[str, nn.Parameter], lr_sum: float) -> float:
    """Return the sum of the thresholds that lambda = 1 gives over all sparse steps."""
    wanted = {id(scale) for scale in scales.values()}
    rates = [
        shrinkage({**group, "lr": group.get("initial_lr", group["lr"])}, 1.0)
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(id(parameter) in wanted for parameter in group["params"])
    ]
    return max(rates, default=0.0) * lr_sum * _MEAN_OF_RAMP


def _has_momentum(optimizer: Any) -> bool:
    """Tell optimizers whose steps follow the gradient's size (SGD) from those that normalise it (Adam, RMSprop)."""
    return any("momentum" in group and "alpha" not in group for group in optimizer.param_groups)
