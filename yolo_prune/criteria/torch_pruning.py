"""The importance estimators of Torch-Pruning on the channels of this package: ``criterion=tp:NAME``.

What is grouped, what may go and how much are ours; the score of a channel in its group is theirs.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from yolo_prune.cost import FloatArray
from yolo_prune.criteria import FOREIGN
from yolo_prune.criteria.backward import run_with_gradients
from yolo_prune.criteria.calibration import Calibration, images_in, part_of
from yolo_prune.errors import ConfigError, DataError, MissingRuntimeError
from yolo_prune.graph.atoms import IntArray
from yolo_prune.graph.copies import check_has_weights
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.modes import in_full_precision

_BY_GRADIENT = ("GroupTaylorImportance", "GroupHessianImportance")
_NEEDS_HOOKS = (
    "OBDCImportance",
    "ActivationImportance",
)  # of its own, on models that its own tracer took apart


def is_foreign(name: str) -> bool:
    """Tell whether a criterion is one of Torch-Pruning's."""
    return name.startswith(FOREIGN)


def check_foreign(name: str, *, images: bool) -> None:
    """Refuse an estimator that is not there, or that has nothing to measure on.

    Args:
        name: ``tp:`` and the name of a class of ``torch_pruning.importance``.
        images: Whether there are images.

    Raises:
        ConfigError: There is no such estimator, or it needs images and there are none.
        MissingRuntimeError: Torch-Pruning is not installed.
    """
    kind = _kind_of(name)
    if _by_gradient(kind) and not images:
        raise ConfigError(f"criterion={name} measures on images: give calibration=.")


def score_by_foreign(
    name: str, module: nn.Module, graph: ChannelGraph, calibration: Calibration, seed: int
) -> FloatArray:
    """Return what an estimator of Torch-Pruning makes of every channel.

    Each group that may lose channels is handed over as it would group it: the layers that make its channels, the norms
    behind them and the layers that read them, with the indices of each. A channel that stands for several indices is
    worth their mean. Gradients are those of the calibration's projection of the outputs, summed over images: no loss,
    since there are no labels. A group that an estimator has no number for (BatchNorm scales where there is no
    BatchNorm) gets the highest score there is, so that its channels go last; Torch-Pruning leaves such a group whole.

    Args:
        name: ``tp:`` and the name of a class of ``torch_pruning.importance``, built without arguments.
        module: The traced module; left as it was.
        graph: Its channels.
        calibration: Images, for the estimators that need gradients.
        seed: Of the random one.

    Returns:
        Scores, float64, shape (channels,).

    Raises:
        ConfigError: There is no such estimator, or it needs images and there are none.
        DataError: What it says of a channel is infinite or NaN.
        MissingRuntimeError: Torch-Pruning is not installed.

    Source:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023; https://github.com/VainF/Torch-Pruning. Of
        1.6, GroupHessianImportance counts the last image alone: its sum is begun anew with each.
    """
    check_foreign(name, images=bool(calibration.batches))
    check_has_weights(module, f"criterion={name}")
    kind = _kind_of(name)
    estimator = kind()
    scores = np.full(graph.channel_count, np.nan)
    with torch.random.fork_rng(devices=[]), in_full_precision(module):
        torch.manual_seed(seed)
        with _gradients(module, calibration, estimator) if _by_gradient(kind) else nullcontext():
            for group, handed in zip(graph.groups, _handed_over(module, graph), strict=True):
                if graph.frozen[group.channels].all() or not handed.layers:
                    continue
                found = estimator(handed.layers)
                if isinstance(found, Tensor):
                    values = _values(found, handed, name, group.name)
                    total = np.bincount(handed.owner, values, len(group.channels))
                    scores[group.channels] = total / np.bincount(handed.owner, minlength=len(group.channels))
    known = scores[~np.isnan(scores)]
    scores[np.isnan(scores)] = known.max() if len(known) else 0.0
    scores[0] = 0.0
    return scores


def _kind_of(name: str) -> Any:
    """Return a class of Torch-Pruning's estimators.

    Raises:
        ConfigError: There is none of that name, or it measures with hooks on what Torch-Pruning itself traced.
        MissingRuntimeError: Torch-Pruning is not installed.
    """
    try:
        importance: Any = importlib.import_module("torch_pruning").importance
    except ImportError as error:
        raise MissingRuntimeError(
            f'criterion={name} needs Torch-Pruning: pip install "yolo-prune[compare]".'
        ) from error
    kinds = {
        key: value
        for key, value in vars(importance).items()
        if isinstance(value, type)
        and issubclass(value, importance.Importance)
        and value is not importance.Importance
        and not any(base.__name__ in _NEEDS_HOOKS for base in value.__mro__)
    }
    asked = name.removeprefix(FOREIGN)
    if asked not in kinds:
        near = difflib.get_close_matches(asked, kinds, n=1)
        hint = f" Did you mean '{FOREIGN}{near[0]}'?" if near else ""
        listed = ", ".join(FOREIGN + each for each in kinds)
        raise ConfigError(f"unknown criterion '{name}'; known of Torch-Pruning are {listed}.{hint}")
    return kinds[asked]


def _by_gradient(kind: Any) -> bool:
    return any(base.__name__ in _BY_GRADIENT for base in kind.__mro__)


@contextmanager
def _gradients(module: nn.Module, calibration: Calibration, estimator: Any) -> Iterator[None]:
    """Let the weights hold the gradient of the projection over all images, one image after the other.

    Raises:
        ConfigError: The calibration has no projection.
    """
    if calibration.projection is None:
        raise ConfigError(
            "estimators that use gradients need a projection of the outputs: what the task feels."
        )
    kept = [(weight, weight.grad) for weight in module.parameters()]
    singles = [
        part_of(batch, slice(number, number + 1))
        for batch in calibration.batches
        for number in range(images_in(batch))
    ]

    def add() -> None:
        if hasattr(estimator, "accumulate_grad"):
            estimator.accumulate_grad(module)
            module.zero_grad()

    try:
        module.zero_grad()
        run_with_gradients(module, replace(calibration, batches=singles), "scoring channels", after=add)
        for weight, _ in kept:  # it reads a gradient of every layer, also of one that no image reached
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        yield
    finally:
        for weight, gradient in kept:
            weight.grad = gradient


class _Layer(tuple[Any, list[int]]):
    """A layer of a group and its indices there, and which channel of the group each of them is."""

    root_idxs: list[int]


@dataclass
class _Handed:
    """A group as Torch-Pruning knows it.

    Attributes:
        layers: What makes, passes on and reads its channels.
        owner: Which channel each index of the first of them is of, shape (indices,).
    """

    layers: list[_Layer] = field(default_factory=list)
    owner: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, dependency: SimpleNamespace, indices: IntArray, places: IntArray) -> None:
        """Add a layer: its indices, and the channel of each; the n-th of a channel belongs to the n-th of the first."""
        if not self.layers:
            self.owner = places
        order = np.argsort(self.owner, kind="stable")
        first, count = np.searchsorted(self.owner[order], places), np.bincount(self.owner)[places]
        turn = _turns(places) % count
        entry = _Layer((dependency, indices.tolist()))
        entry.root_idxs = order[first + turn].tolist()
        self.layers.append(entry)


def _turns(places: IntArray) -> IntArray:
    """Return how often each value was there before, shape as ``places``.

    Example:
        >>> _turns(np.array([4, 2, 4, 4, 2])).tolist()
        [0, 0, 1, 2, 1]
    """
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    turns = np.empty_like(places)
    turns[order] = np.arange(len(places)) - np.searchsorted(ordered, ordered)
    return turns


def _handed_over(module: nn.Module, graph: ChannelGraph) -> list[_Handed]:
    """Return every group as Torch-Pruning hands it to its estimators: makers of channels first."""
    group_of, place = (np.full(graph.channel_count, -1) for _ in range(2))
    for number, group in enumerate(graph.groups):
        group_of[group.channels], place[group.channels] = number, np.arange(len(group.channels))
    modules = dict(module.named_modules())
    found = [_Handed() for _ in graph.groups]
    for axis in sorted(graph.axes, key=lambda axis: axis.role != "out"):
        owner, _, leaf = axis.name.rpartition(".")
        cut = _function_for(modules.get(owner), axis.role) if leaf == "weight" else None
        if cut is None:
            continue
        layer, channels = modules[owner], graph.axis_channels(axis)
        target = SimpleNamespace(module=layer, name=owner)
        for number in np.unique(group_of[channels]):
            if number >= 0:
                indices = np.flatnonzero(group_of[channels] == number)
                dependency = SimpleNamespace(
                    layer=layer, pruning_fn=cut, handler=cut, trigger=cut, target=target
                )
                found[number].add(dependency, indices, place[channels[indices]])
    return found


def _function_for(layer: nn.Module | None, role: str) -> Any:
    """Return by which function Torch-Pruning would cut a layer on that side, None where its estimators look away."""
    function: Any = importlib.import_module("torch_pruning").pruner.function
    if isinstance(layer, _ConvNd) and role in ("out", "in"):
        if layer.groups > 1 and role == "in":
            return None
        return function.prune_conv_out_channels if role == "out" else function.prune_conv_in_channels
    if isinstance(layer, nn.Linear) and role in ("out", "in"):
        return function.prune_linear_out_channels if role == "out" else function.prune_linear_in_channels
    if isinstance(layer, _BatchNorm):
        return function.prune_batchnorm_out_channels
    return function.prune_layernorm_out_channels if isinstance(layer, nn.LayerNorm) else None


def _values(found: Tensor, handed: _Handed, name: str, group: str) -> FloatArray:
    """Return scores as an array; a group of which all is zero, which estimators divide by its mean, is worth nothing.

    Raises:
        DataError: A score is infinite or NaN because a weight or a gradient is.
    """
    values: FloatArray = found.detach().double().cpu().numpy()
    if np.isfinite(values).all():
        return values
    weights = [dependency.layer.weight for dependency, _ in handed.layers]
    held = [tensor for weight in weights for tensor in (weight, weight.grad) if tensor is not None]
    if not all(bool(tensor.isfinite().all()) for tensor in held):
        raise DataError(
            f"{name} says infinite or NaN of channels of '{group}'. Look for such numbers in the weights, and in what "
            "the model makes of the images."
        )
    return np.where(np.isfinite(values), values, 0.0)
