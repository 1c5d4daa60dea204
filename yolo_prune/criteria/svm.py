"""What each channel is worth for telling classes apart: a linear SVM on what layers read in labelled regions."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.cost import FloatArray
from yolo_prune.criteria.calibration import Calibration, Labels, images_in
from yolo_prune.criteria.felt import Readers, finite
from yolo_prune.errors import ConfigError, DataError
from yolo_prune.extras import missing_extra
from yolo_prune.graph.atoms import IntArray
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.progress import track

_BACKGROUND = -1
_TRIES = 20  # to place a region where nothing is
_OVERLAP = 0.1  # of a background region that an object may cover
_SIZE = 0.2  # of the input: side of such a region in an image without an object
_STRENGTH = 10.0  # of the fit, shared by all regions


def score_by_svm(module: nn.Module, graph: ChannelGraph, calibration: Calibration) -> FloatArray:
    """Squared weight of a channel in linear SVMs that tell each class from all else, in every layer that reads it.

    What a layer reads is averaged over the region of each object, and over as many regions of background, drawn beside
    the objects in their sizes; each channel is brought to mean 0 and variance 1 over all regions. The score in a layer
    is ``sum_k w_kc^2``, of the weights of one SVM for each class, background among them, over the mean of the layer; of
    a channel that several layers read it is their mean. Of an image without boxes (a classifier's) all is one region.
    A channel that no layer reads as a map of the whole image (regions are not known there) gets the mean of all others.

    Args:
        module: The traced module; left as it was.
        graph: Its channels.
        calibration: Images and their labels; its seed draws the background.

    Returns:
        Scores, float64, shape (channels,).

    Raises:
        ConfigError: The calibration has no labels.
        DataError: They are of one class alone, not one for each image, or the model makes no numbers of the images.
        MissingRuntimeError: scikit-learn is not installed.

    Source:
        Guyon et al., Gene selection for cancer classification using support vector machines, Machine Learning 2002, for
        the squared weight of a feature; Zhuang et al., Discrimination-aware channel pruning, NeurIPS 2018, for channels
        that tell classes apart. Ours: regions of objects against background, in every layer.
    """
    regions = _regions(calibration)
    classes = np.concatenate([region.classes for region in regions])
    if len(np.unique(classes)) < 2:
        raise DataError(
            f"criterion=svm tells classes apart, but all {len(classes)} regions of the calibration images are of one. "
            "Take more images or another criterion."
        )
    readers = Readers(module, graph)
    total, count = np.zeros(graph.channel_count), np.zeros(graph.channel_count)
    for name, features in track(_pooled(readers, calibration, regions).items(), "fitting SVMs"):
        worth = finite(_worth(features, classes, calibration.seed))
        np.add.at(total, readers.channels[name], worth)
        np.add.at(count, readers.channels[name], 1.0)
    known = count > 0
    scores = np.divide(total, count, out=np.zeros_like(total), where=known)
    scores[~known] = scores[known].mean() if known.any() else 1.0
    scores[0] = 0.0
    return scores


def check_svm(*, labels: bool) -> None:
    """Refuse the criterion where it cannot work.

    Args:
        labels: Whether it is known what is in the images.

    Raises:
        ConfigError: There are no labels.
        MissingRuntimeError: scikit-learn is not installed.
    """
    if not labels:
        raise ConfigError(
            "criterion=svm needs to know what is in the calibration images: give labels=, or take another criterion."
        )
    _machine()


def _regions(calibration: Calibration) -> list[Labels]:
    """Return what is where in each image, with background beside the objects.

    Raises:
        ConfigError: There are no labels.
        DataError: Not one for each image.
    """
    check_svm(labels=calibration.labels is not None)
    labels = list(calibration.labels()) if calibration.labels else []
    images = sum(map(images_in, calibration.batches))
    if len(labels) != images:
        raise DataError(
            f"criterion=svm needs the labels of each of {images} calibration images, got {len(labels)}."
        )
    random = np.random.default_rng(calibration.seed)
    return [label if label.boxes is None else _with_background(label, random) for label in labels]


def _with_background(label: Labels, random: np.random.Generator) -> Labels:
    """Return objects with as many regions where none is, one in an image without an object."""
    boxes = np.zeros((0, 4)) if label.boxes is None else np.asarray(label.boxes, np.float64).reshape(-1, 4)
    sizes = boxes[:, 2:] - boxes[:, :2] if len(boxes) else np.full((1, 2), _SIZE)
    found = []
    for width, height in np.clip(sizes, 0.0, 1.0):
        for _ in range(_TRIES):
            left, top = random.random(2) * (1 - width, 1 - height)
            region = np.array([left, top, left + width, top + height])
            sides = np.minimum(region[2:], boxes[:, 2:]) - np.maximum(region[:2], boxes[:, :2])
            if (np.clip(sides, 0, None).prod(1) <= _OVERLAP * width * height).all():
                found.append(region)
                break
    classes = [*np.asarray(label.classes).tolist(), *[_BACKGROUND] * len(found)]
    return Labels(np.array(classes, np.int64), np.concatenate([boxes, np.array(found).reshape(-1, 4)]))


def _pooled(readers: Readers, calibration: Calibration, regions: Sequence[Labels]) -> dict[str, FloatArray]:
    """Return by layer what it reads, averaged over every region, shape (regions, C)."""
    parts: dict[str, list[Tensor]] = {}
    first, here = 0, list[Labels]()

    def forward(network: nn.Module, batch: Any) -> Any:
        nonlocal first, here
        here = list(regions[first : first + images_in(batch)])
        first += len(here)
        return calibration.forward(network, batch)

    def add(name: str, layer: nn.Module, x: Tensor) -> None:
        whole = all(region.boxes is None for region in here)
        if len(x) != len(here) or (
            x.dim() != 4 and not whole
        ):  # proposals, or tokens: nobody knows where they are
            return
        maps = x if x.dim() == 4 else readers.rows(name, layer, x)[..., None]
        found = [
            _average(one.detach().double().cpu(), region) for one, region in zip(maps, here, strict=True)
        ]
        parts.setdefault(name, []).extend(found)

    readers.run(replace(calibration, forward=forward, projection=None), on_input=add)
    pooled = {name: torch.cat(found).numpy() for name, found in parts.items()}
    regions_in_all = sum(len(region.classes) for region in regions)
    return {name: features for name, features in pooled.items() if len(features) == regions_in_all}


def _average(one: Tensor, region: Labels) -> Tensor:
    """Return a map (C, H, W) averaged over each region, over at least one cell, shape (regions, C)."""
    if region.boxes is None:
        return one.mean((1, 2))[None]
    height, width = one.shape[1:]
    boxes = torch.as_tensor(region.boxes, dtype=torch.float64)
    down, across = _cells(boxes[:, [1, 3]], height), _cells(boxes[:, [0, 2]], width)
    return torch.einsum("nh,chw,nw->nc", down, one, across)


def _cells(spans: Tensor, length: int) -> Tensor:
    """Return what each cell of a side counts in the average over a span, shape (spans, length)."""
    begin = (spans[:, 0] * length).floor().clamp(0, length - 1)
    end = torch.maximum((spans[:, 1] * length).ceil(), begin + 1)
    cells = torch.arange(length, dtype=torch.float64)
    inside = ((cells >= begin[:, None]) & (cells < end[:, None])).double()
    return inside / inside.sum(1, keepdim=True)


def _worth(features: FloatArray, classes: IntArray, seed: int) -> FloatArray:
    """Return the squared weights of channels, summed over the SVMs, over their mean, shape (C,)."""
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread > 1e-12, spread, np.inf)
    machine = _machine()(
        C=_STRENGTH / len(classes), dual=False, tol=1e-2, class_weight="balanced", random_state=seed
    )
    weights = machine.fit(scaled, classes).coef_
    worth: FloatArray = np.square(weights).sum(0)
    return worth / max(float(worth.mean()), 1e-30)


def _machine() -> Any:
    """Return the class of linear SVMs.

    Raises:
        MissingRuntimeError: scikit-learn is not installed.
    """
    try:
        return importlib.import_module("sklearn.svm").LinearSVC
    except ImportError as error:
        raise missing_extra(error, "criterion=svm") or error from error
