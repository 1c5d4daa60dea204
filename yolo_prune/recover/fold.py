"""Fold removed channels into the kept ones, and re-estimate BatchNorm statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.cost import FloatArray
from yolo_prune.criteria.calibration import Calibration, images_in
from yolo_prune.criteria.moments import Moments, by_channel
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.graph.copies import check_has_weights
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.modes import evaluating, in_full_precision
from yolo_prune.progress import LOGGER, track


def solve_fold(
    moments: Moments, kept: IntArray, removed: IntArray, ridge: float = 1e-3
) -> tuple[FloatArray, FloatArray]:
    """Regress the removed channels on the kept ones and the constant.

    Args:
        moments: Of the layer's input.
        kept: Kept input indices, shape (K,).
        removed: Removed input indices, shape (R,).
        ridge: As in :meth:`Moments.damping`.

    Returns:
        Coefficients, shape (K, R), and constants, shape (R,): ``x_removed ~ coefficients^T x_kept + constants``.
    """
    covariance = moments.covariance
    normal = covariance[np.ix_(kept, kept)].copy()
    normal[np.diag_indices(len(kept))] += moments.damping(ridge)
    coefficients = np.linalg.solve(normal, covariance[np.ix_(kept, removed)])
    return coefficients, moments.mean[removed] - coefficients.T @ moments.mean[kept]


def fold_removed_(
    module: nn.Module,
    graph: ChannelGraph,
    keep: BoolArray,
    moments: dict[str, Moments],
    *,
    ridge: float = 1e-3,
) -> int:
    """Fold, in place and *before* the cut, what the removed channels did into the weights of the kept ones.

    ``W_kept += W_removed A`` is exact for any kernel size because the map is pointwise; the constant goes into the
    layer's bias or its BatchNorm's running mean (exact but for zero-padded borders).

    Args:
        module: The uncut module.
        graph: Its channels.
        keep: Which channels will stay.
        moments: Of the same module.
        ridge: As in :func:`solve_fold`.

    Returns:
        How many layers were changed.
    """
    modules, changed = dict(module.named_modules()), 0
    for axis in graph.axes:
        seen = moments.get(axis.name)
        mask = keep[graph.axis_channels(axis)]
        if axis.role != "in" or seen is None or mask.all() or not mask.any():
            continue
        mask = mask[:: len(mask) // len(seen.mean)]  # of a flattened map: once for all its positions
        kept, removed = np.flatnonzero(mask), np.flatnonzero(~mask)
        coefficients, constants = solve_fold(seen, kept, removed, ridge)
        layer = modules[axis.name.rpartition(".")[0]]
        norm = modules[graph.norm_of[axis.name]] if axis.name in graph.norm_of else None
        if isinstance(layer.weight, Tensor):
            weight = by_channel(layer.weight.detach().cpu().double(), axis.dim, len(mask))
            gone = weight[torch.from_numpy(removed)]
            fold_into_(layer, axis.dim, norm, kept, gone, coefficients, constants, channels=len(mask))
            changed += 1
    return changed


def fold_into_(
    layer: nn.Module,
    dim: int,
    norm: nn.Module | None,
    kept: IntArray,
    gone: Tensor,
    coefficients: FloatArray,
    constants: FloatArray,
    *,
    channels: int | None = None,
) -> None:
    """Fold weights that nothing feeds any more into those beside them, in place.

    Args:
        layer: The reading layer.
        dim: The dimension along which its weight reads.
        norm: The BatchNorm right behind it, which takes the constant where there is no bias.
        kept: Indices that take over, shape (K,).
        gone: Weights of what is missing, float64, on the CPU, the reading dimension first, shape (R, ...).
        coefficients: Missing channels in terms of the kept ones, shape (K, R).
        constants: Their constant parts, shape (R,).
        channels: How many are read; None: as many as the dimension is long.
    """
    weight = layer.weight
    if not isinstance(weight, Tensor):
        return
    with torch.no_grad():
        wide = weight.detach().cpu().double().clone()
        moved = by_channel(wide, dim, channels or weight.shape[dim])
        matrix = torch.from_numpy(coefficients)
        moved[torch.from_numpy(kept)] += (matrix @ gone.flatten(1)).reshape(len(kept), *moved.shape[1:])
        weight.copy_(wide.to(weight.dtype))
        taps = gone.flatten(2).sum(2) if gone.dim() > 2 else gone
        constant = torch.from_numpy(constants) @ taps
        if getattr(layer, "transposed", False):  # every output pixel sees one tap in so many: their mean
            constant /= math.prod(getattr(layer, "stride", (1,)))
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            bias += constant.to(bias.dtype).to(bias.device)
        elif norm is not None and isinstance(norm.running_mean, Tensor):
            norm.running_mean -= constant.to(norm.running_mean.dtype).to(norm.running_mean.device)


def recalibrate_bn_(module: nn.Module, calibration: Calibration) -> nn.Module:
    """Re-estimate the running statistics of every BatchNorm as plain averages over all batches, in place.

    A BatchNorm that does not run (a head for training alone) keeps its statistics, and so do all without a batch. A
    batch of one image joins the one beside it; where a single image is all there is, a BatchNorm on a map of one pixel
    keeps its statistics, with a warning. After an error all keep theirs.

    Args:
        module: The model; its mode and momenta are restored.
        calibration: Images and how the model runs on them.

    Returns:
        The same module.

    Raises:
        ConfigError: The model is on the meta device.
    """
    check_has_weights(module, "estimating BatchNorm statistics")
    norms = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm)
    }
    before = {
        name: {key: value.clone() for key, value in norm.named_buffers()} for name, norm in norms.items()
    }
    momenta = {name: norm.momentum for name, norm in norms.items()}
    estimated: set[str] = set()
    with evaluating(module), in_full_precision(module), ExitStack() as undo, torch.no_grad():
        undo.callback(_settle_statistics_, norms, momenta, before, estimated)
        for name, norm in norms.items():
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
            undo.callback(norm.register_forward_pre_hook(_Starving(name, before[name])).remove)
        for batch in _without_singles(track(calibration.batches, "re-estimating BatchNorm")):
            calibration.run(module, batch)
        estimated.update(name for name, norm in norms.items() if norm.training and norm.num_batches_tracked)
    return module


def _settle_statistics_(
    norms: Mapping[str, nn.modules.batchnorm._BatchNorm],
    momenta: Mapping[str, float | None],
    before: Mapping[str, Mapping[str, Tensor]],
    estimated: Set[str],
) -> None:
    """Give momenta back, and the old statistics to every norm that has no new ones."""
    for name, norm in norms.items():
        norm.momentum = momenta[name]
        if name not in estimated:
            norm.load_state_dict(before[name], strict=False)


class _Starving:
    """Before a BatchNorm sees one value per channel, which has no variance: it goes on with its old statistics."""

    def __init__(self, name: str, before: Mapping[str, Tensor]) -> None:
        self.name, self.before = name, before

    def __call__(self, norm: nn.modules.batchnorm._BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        if norm.training and norm.track_running_stats and inputs and inputs[0].numel() == inputs[0].shape[1]:
            LOGGER.warning(
                "'%s' keeps its BatchNorm statistics: one image of one pixel has no variance, it takes two images.",
                self.name,
            )
            norm.training = False
            norm.load_state_dict(dict(self.before), strict=False)


def _without_singles(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches; one of a single image is joined to the one before it or after it that has its shape."""
    held: list[Any] = []
    for batch in batches:
        joined = _joined(held[-1], batch) if held and images_in(held[-1]) == 1 else None
        if joined is None:
            held.append(batch)
        else:
            held[-1] = joined
        if len(held) > 2:
            yield held.pop(0)
    if len(held) == 2 and images_in(held[1]) == 1 and (joined := _joined(*held)) is not None:
        held = [joined]
    yield from held


def _joined(one: Any, other: Any) -> Any:
    """Return two batches as one, None where they do not go together."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.cat([one, other]) if one.shape[1:] == other.shape[1:] else None
    return [*one, *other] if isinstance(one, list) and isinstance(other, list) else None
