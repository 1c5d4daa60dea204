"""What each channel is worth: a plain dict of criteria that read weights only.

A score is per channel, larger is worth more, and comparable between groups. What needs images is in
:mod:`yolo_prune.criteria.reconstruction`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.cost import FloatArray
from yolo_prune.criteria import CRITERIA, MEASURED
from yolo_prune.errors import ConfigError
from yolo_prune.graph.atoms import Axis
from yolo_prune.graph.copies import check_has_weights
from yolo_prune.graph.groups import ChannelGraph

Criterion = Callable[[nn.Module, ChannelGraph, int], FloatArray]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    check_has_weights(module, "every criterion but 'random'")
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _values(tensors: Mapping[str, Tensor], axis: Axis) -> Tensor:
    """Return what an axis belongs to in float64, on the CPU.

    Raises:
        ConfigError: Not all of it are finite numbers: a training in 16 bits that went astray ranks nothing.
    """
    values = tensors[axis.name].detach().cpu().double()
    if wrong := int((~values.isfinite()).sum()):
        raise ConfigError(
            f"{wrong} of the {values.numel()} values of '{axis.name}' are infinite or NaN, and rank no channels. Load "
            "weights of a training that did not diverge, or use criterion=random."
        )
    return values


def _scatter(
    graph: ChannelGraph, axis: Axis, values: FloatArray, total: FloatArray, count: FloatArray
) -> None:
    channels = graph.axis_channels(axis)
    np.add.at(total, channels, values)
    np.add.at(count, channels, 1.0)


def _mean(total: FloatArray, count: FloatArray) -> FloatArray:
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def norm_scale_names(module: nn.Module) -> list[str]:
    """Return the names of all BatchNorm scales (parameters, or buffers where the norm is frozen)."""
    names = []
    for name, child in module.named_modules():
        if isinstance(getattr(child, "running_var", None), Tensor) and isinstance(
            getattr(child, "weight", None), Tensor
        ):
            names.append(f"{name}.weight" if name else "weight")
    return names


def score_by_bn_scale(module: nn.Module, graph: ChannelGraph, seed: int = 0) -> FloatArray:
    """Mean |gamma| over the BatchNorms of a channel.

    Args:
        module: The traced module.
        graph: Its channels.
        seed: Unused.

    Returns:
        Scores, float64, shape (channels,). A channel without BatchNorm gets the mean of all others times its relative
        strength: the geometric mean of how strongly it is made and how strongly it is read, each as the norm of its
        weights over the mean norm of its layer. So it does not matter how a layer shares its scale with its readers.

    Source:
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017. Ours: the mean over
        coupled layers, so that a wide residual group is not worth more for having more members; channels without norm.
    """
    total, count = np.zeros(graph.channel_count), np.zeros(graph.channel_count)
    tensors, scales = _tensors(module), set(norm_scale_names(module))
    for axis in graph.axes:
        if axis.name in scales:
            _scatter(graph, axis, _values(tensors, axis).abs().numpy(), total, count)
    scores = _mean(total, count)
    known = count > 0
    level = float(scores[known].mean()) if known.any() else 1.0
    made = _score_by_norm(module, graph, 2, roles=("out", "vector"), missing=1.0)
    read = _score_by_norm(module, graph, 2, roles=("in", "grouped"), missing=1.0)
    scores[~known] = level * np.sqrt(made * read)[~known]
    return scores


def _score_by_norm(
    module: nn.Module,
    graph: ChannelGraph,
    order: int,
    *,
    roles: Container[str] = ("out", "vector", "in", "grouped"),
    missing: float = 0.0,
) -> FloatArray:
    """Mean over a channel's weight slices of their norm, each layer divided by its own mean.

    Args:
        module: The traced module.
        graph: Its channels.
        order: Of the norm.
        roles: Which axes count.
        missing: Score of a channel that has none of them.
    """
    total, count = np.zeros(graph.channel_count), np.zeros(graph.channel_count)
    tensors = _tensors(module)
    for axis in graph.axes:
        if tensors[axis.name].dim() < 2 or axis.role not in roles:
            continue
        rows = _values(tensors, axis).movedim(axis.dim, 0).reshape(axis.size, -1)
        norms = torch.linalg.vector_norm(rows, ord=order, dim=1).cpu().numpy()
        _scatter(graph, axis, norms / max(float(norms.mean()), 1e-12), total, count)
    return np.where(count > 0, _mean(total, count), missing)


def score_by_l1(module: nn.Module, graph: ChannelGraph, seed: int = 0) -> FloatArray:
    """L1 norm of every weight slice of a channel, relative to its layer's mean, averaged.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017; layer normalisation and readers are ours.
    """
    return _score_by_norm(module, graph, 1)


def score_by_l2(module: nn.Module, graph: ChannelGraph, seed: int = 0) -> FloatArray:
    """L2 norm of every weight slice of a channel, relative to its layer's mean, averaged."""
    return _score_by_norm(module, graph, 2)


def score_by_lamp(module: nn.Module, graph: ChannelGraph, seed: int = 0) -> FloatArray:
    """Squared norm of a slice over the summed squared norms of all slices of its layer that are no smaller.

    Source: Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, per channel.
    """
    total, count = np.zeros(graph.channel_count), np.zeros(graph.channel_count)
    tensors = _tensors(module)
    for axis in graph.axes:
        if tensors[axis.name].dim() < 2 or axis.role == "in":
            continue
        rows = _values(tensors, axis).movedim(axis.dim, 0).reshape(axis.size, -1)
        squared = rows.pow(2).sum(1).numpy()
        order = np.argsort(squared)
        tail = np.cumsum(squared[order][::-1])[::-1]
        values = np.empty_like(squared)
        values[order] = squared[order] / np.maximum(tail, 1e-30)
        _scatter(graph, axis, values, total, count)
    return _mean(total, count)


def score_by_fpgm(module: nn.Module, graph: ChannelGraph, seed: int = 0) -> FloatArray:
    """Summed distance of a filter to all filters of its layer, relative to the layer's mean.

    Source: He et al., Filter Pruning via Geometric Median, CVPR 2019.
    """
    total, count = np.zeros(graph.channel_count), np.zeros(graph.channel_count)
    tensors = _tensors(module)
    for axis in graph.axes:
        if axis.role != "out":
            continue
        rows = _values(tensors, axis).movedim(axis.dim, 0).reshape(axis.size, -1)
        distance = torch.cdist(rows, rows).sum(1).cpu().numpy()
        _scatter(graph, axis, distance / max(float(distance.mean()), 1e-12), total, count)
    return _mean(total, count)


def score_at_random(module: nn.Module, graph: ChannelGraph, seed: int = 0) -> FloatArray:
    """Uniform noise: the control that every criterion must beat."""
    return np.random.default_rng(seed).random(graph.channel_count)


SCORES: dict[str, Criterion] = {
    "bn_scale": score_by_bn_scale,
    "l1": score_by_l1,
    "l2": score_by_l2,
    "lamp": score_by_lamp,
    "fpgm": score_by_fpgm,
    "random": score_at_random,
}


def find_criterion(name: str) -> Criterion:
    """Return the criterion of that name, of those that need no images.

    Raises:
        ConfigError: There is none; the text lists all and suggests the nearest. Or it needs images.
    """
    if name in SCORES:
        return SCORES[name]
    if name in MEASURED:
        raise ConfigError(f"criterion={name} measures on images: give calibration=.")
    near = difflib.get_close_matches(name, CRITERIA, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ConfigError(f"unknown criterion '{name}'; known are {', '.join(CRITERIA)}.{hint}")
