"""Fold removed channels into the kept ones, and re-estimate BatchNorm statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.cost import FloatArray
from yolo_prune.graph.atoms import BoolArray, IntArray
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.progress import track
from yolo_prune.recover.moments import Moments


def solve_fold(
    moments: Moments, kept: IntArray, removed: IntArray, ridge: float = 1e-3
) -> tuple[FloatArray, FloatArray]:
    """Regress the removed channels on the kept ones and the constant.

    Args:
        moments: Of the layer's input.
        kept: Kept input indices, shape (K,).
        removed: Removed input indices, shape (R,).
        ridge: Share of the mean variance added to the diagonal.

    Returns:
        Coefficients, shape (K, R), and constants, shape (R,): ``x_removed ~ coefficients^T x_kept + constants``.
    """
    covariance = moments.covariance
    normal = covariance[np.ix_(kept, kept)].copy()
    normal[np.diag_indices(len(kept))] += ridge * max(float(np.trace(covariance)) / len(covariance), 1e-12)
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
        kept, removed = np.flatnonzero(mask), np.flatnonzero(~mask)
        coefficients, constants = solve_fold(seen, kept, removed, ridge)
        layer = modules[axis.name.rpartition(".")[0]]
        norm = modules.get(graph.norm_of.get(axis.name, ""))
        if isinstance(layer.weight, Tensor):
            gone = layer.weight.detach().double().movedim(axis.dim, 0)[torch.from_numpy(removed)]
            fold_into_(layer, axis.dim, norm, kept, gone, coefficients, constants)
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
) -> None:
    """Fold weights that nothing feeds any more into those beside them, in place.

    Args:
        layer: The reading layer.
        dim: The dimension along which its weight reads.
        norm: The BatchNorm right behind it, which takes the constant where there is no bias.
        kept: Indices that take over, shape (K,).
        gone: Weights of what is missing, float64, the reading dimension first, shape (R, ...).
        coefficients: Missing channels in terms of the kept ones, shape (K, R).
        constants: Their constant parts, shape (R,).
    """
    weight = layer.weight
    if not isinstance(weight, Tensor):
        return
    with torch.no_grad():
        moved = weight.detach().double().movedim(dim, 0).clone()
        matrix = torch.from_numpy(coefficients).to(moved.device)
        moved[torch.from_numpy(kept)] += (matrix @ gone.flatten(1)).reshape(len(kept), *moved.shape[1:])
        weight.copy_(moved.movedim(0, dim).to(weight.dtype))
        taps = gone.flatten(2).sum(2) if gone.dim() > 2 else gone
        constant = torch.from_numpy(constants).to(moved.device) @ taps
        if getattr(layer, "transposed", False):  # every output pixel sees one tap in so many: their mean
            constant /= math.prod(getattr(layer, "stride", (1,)))
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            bias += constant.to(bias.dtype)
        elif norm is not None and isinstance(norm.running_mean, Tensor):
            norm.running_mean -= constant.to(norm.running_mean.dtype)


def recalibrate_bn_(module: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Re-estimate the running statistics of every BatchNorm as plain averages over ``batches``, in place.

    A BatchNorm that does not run (a head for training alone) keeps its statistics, and so do all without a batch.

    Args:
        module: The model; its mode and momenta are restored.
        batches: Image batches, shape (B, 3, H, W), on the model's device.

    Returns:
        The same module.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    modes = {child: child.training for child in module.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    try:
        module.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        with torch.no_grad():
            for batch in track(batches, "re-estimating BatchNorm"):
                module(batch)
    finally:
        for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and not norm.num_batches_tracked:
                norm.load_state_dict(buffers, strict=False)
        for child, mode in modes.items():
            child.training = mode
    return module
