"""Detectors that filter what they find: there is nothing in an empty list of boxes, so their heads are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from yolo_prune.criteria.calibration import Calibration, Distance, Forward, Projection, part_of
from yolo_prune.criteria.distance import relative_distance
from yolo_prune.criteria.predictions import OVERLAP, PredictionProjection, prediction_distance
from yolo_prune.criteria.projection import HeadProjection, OutputProjection
from yolo_prune.graph.dispatch import OperatorMode
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.modes import evaluating
from yolo_prune.graph.plugged import known_of
from yolo_prune.graph.randomness import untouched_randomness
from yolo_prune.graph.reading import last_weights
from yolo_prune.progress import LOGGER


def measured_at_heads(module: nn.Module, graph: ChannelGraph, calibration: Calibration) -> Calibration:
    """Return what a model is measured on, felt at its heads where its outputs are filtered by their values.

    Behind a threshold or non-maximum suppression there may be nothing, of which nothing has a gradient, and a region
    proposal network is cut off from the boxes on purpose. What the last layer of each head makes is always there; of
    the detectors of known libraries it is known what are scores and what are boxes.

    Args:
        module: The model.
        graph: Its channels.
        calibration: A projection that was given stays.
    """
    if not calibration.batches or not isinstance(calibration.projection, OutputProjection):
        return calibration
    if not _filters(module, calibration):
        return calibration
    forward = calibration.forward
    heads = known_heads(module, forward) or HeadForward(forward, last_layers(module, graph))
    LOGGER.info(
        "the outputs are filtered by their values: measuring at %s", ", ".join(heads.layers) or "no layer"
    )
    projection = heads.projection(calibration.seed)
    return replace(calibration, forward=heads, projection=projection, distance=heads.distance, paired=True)


def last_layers(module: nn.Module, graph: ChannelGraph) -> tuple[str, ...]:
    """Return the names of the layers that make what no other layer reads: one or more for each head."""
    weights = last_weights(graph.axes, graph.channel_of, graph.contracted)
    known = dict(module.named_modules())
    owners = (name.rpartition(".")[0] for name in weights if name.endswith("weight"))
    return tuple(sorted({owner for owner in owners if owner in known}))


def known_heads(module: nn.Module, forward: Forward, *, overlap: float = OVERLAP) -> HeadForward | None:
    """Return what to watch of a detector that is, or has in it, one of a known library; None of any other.

    Args:
        module: The model.
        forward: Runs it.
        overlap: How much the overlap of boxes counts in the distance.
    """
    known = ((name, part, known_of("heads", type(part))) for name, part in module.named_modules())
    found = [(name, readers(part)) for name, part, readers in known if readers is not None]
    if len(found) != 1:
        return None
    (name, own), *_ = found
    readers = {".".join(filter(None, (name, layer))): read for layer, read in own.items()}
    distance = partial(prediction_distance, overlap=overlap)
    return HeadForward(forward, readers, distance, PredictionProjection)


Reader = Callable[[Any], Any]


class HeadForward:
    """Runs a model and returns what its heads made, in the order in which they ran.

    Args:
        forward: Runs the model.
        layers: Names of its last layers, or of its heads with what to make of what each returns.
        distance: How far what a model's heads made is from what another's did; None: the mean over all of the squared
            error relative to the teacher's variance.
        projection: Makes of a seed what a task feels of what they made.
    """

    def __init__(
        self,
        forward: Forward,
        layers: Sequence[str] | Mapping[str, Reader],
        distance: Distance | None = None,
        projection: Callable[[int], Projection] = HeadProjection,
    ) -> None:
        self._forward = forward
        named = layers if isinstance(layers, Mapping) else dict.fromkeys(layers, _as_it_is)
        self.layers = dict(named)
        self.distance, self.projection = distance or relative_distance, projection

    def __call__(self, module: nn.Module, batch: Any) -> list[Any]:
        """Return what was made for every call of a head."""
        with self.watching(module) as made:
            self._forward(module, batch)
        return made

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[list[Any]]:
        """Yield a list that gets what the heads of a model make until the block ends."""
        made: list[Any] = []

        def keep(read: Reader, layer: nn.Module, inputs: Any, output: Any) -> None:
            made.append(read(output))

        with ExitStack() as undo:
            for name, read in self.layers.items():
                layer = module.get_submodule(name)
                undo.callback(layer.register_forward_hook(partial(keep, read)).remove)
            yield made


def _as_it_is(output: Any) -> Any:
    return output


def _filters(module: nn.Module, calibration: Calibration) -> bool:
    """Tell whether the values in an image decide how many results there are."""
    watch = _HowMany()
    first = part_of(calibration.batches[0], slice(0, 1))
    with untouched_randomness(), evaluating(module), torch.no_grad(), watch:
        calibration.run(module, first)
    return watch.depends


class _HowMany(OperatorMode):
    """Sees whether the size of some result depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.depends = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "index":  # by positions it is of their size, by a mask of as many as are true
            leaves = pytree.tree_leaves(args[1:])
            self.depends |= any(isinstance(at, Tensor) and at.dtype is torch.bool for at in leaves)
        else:
            self.depends |= torch.Tag.dynamic_output_shape in func.tags or name == "nms"
        return func(*args, **kwargs)
