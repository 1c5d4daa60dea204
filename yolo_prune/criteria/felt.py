"""What each channel is worth on images: by how it answers, and by how much the task would feel its loss.

Notation: ``a`` is what a channel holds at position ``p`` of image ``n`` where layer ``r`` reads it, ``g`` the gradient
that comes back through this layer alone, of a random projection of the model's outputs, which needs no labels. The sum
of ``a g`` over all positions and readers is by how much the projection falls, to first order, without the channel; one
that no layer reads is worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.cost import FloatArray
from yolo_prune.criteria.backward import run_with_gradients
from yolo_prune.criteria.calibration import Calibration, images_in
from yolo_prune.criteria.memory import in_batches_that_fit
from yolo_prune.criteria.moments import positions_read, reading_layers
from yolo_prune.errors import ConfigError, DataError
from yolo_prune.graph.groups import ChannelGraph


def score_by_taylor(module: nn.Module, graph: ChannelGraph, calibration: Calibration) -> FloatArray:
    """First-order change of the outputs when a channel is set to zero, ``sum_n |sum_r,p a g|``.

    Args:
        module: The traced module; left as it was.
        graph: Its channels.
        calibration: Images, and the projection whose gradient says what the task feels.

    Returns:
        Scores, float64, shape (channels,).

    Raises:
        ConfigError: The calibration has no projection.
        DataError: There are no images, or the model makes no numbers of them.

    Source:
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, without
        its normalisation by layer.
    """
    return _removals(module, graph, calibration, Tensor.abs)


def score_by_fisher(module: nn.Module, graph: ChannelGraph, calibration: Calibration) -> FloatArray:
    """Expected squared gradient with respect to a factor on a channel, ``sum_n (sum_r,p a g)^2``.

    With the random signs of the projection this is the diagonal of the Gauss-Newton matrix of the outputs, the Fisher
    information where these parametrise a likelihood.

    Args:
        module: The traced module; left as it was.
        graph: Its channels.
        calibration: Images, and the projection whose gradient says what the task feels.

    Returns:
        Scores, float64, shape (channels,).

    Raises:
        ConfigError: The calibration has no projection.
        DataError: There are no images, or the model makes no numbers of them.

    Source:
        Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018; Liu et al., Group Fisher
        Pruning for Practical Network Compression, ICML 2021. Ours: no labels.
    """
    return _removals(module, graph, calibration, Tensor.square)


def score_by_activation(module: nn.Module, graph: ChannelGraph, calibration: Calibration) -> FloatArray:
    """Mean absolute value of a channel over that of all channels that a layer reads; the mean over layers.

    Args:
        module: The traced module; left as it was.
        graph: Its channels.
        calibration: Images.

    Returns:
        Scores, float64, shape (channels,).

    Raises:
        DataError: There are no images, or the model makes no numbers of them.

    Source:
        Polyak and Wolf, Channel-level acceleration of deep face representations, IEEE Access 2015 (there the variance);
        the normalisation by layer is ours.
    """
    readers = Readers(module, graph)

    def measure(batches: Sequence[Any]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}

        def add(name: str, a: Tensor) -> None:
            found = a.abs().mean(-1).sum(0)
            sums[name] = sums[name] + found if name in sums else found

        readers.run(replace(calibration, batches=batches, projection=None), on_read=add)
        return sums

    total, count = np.zeros(graph.channel_count), np.zeros(graph.channel_count)
    for name, values in in_batches_that_fit(measure, calibration.batches).items():
        np.add.at(total, readers.channels[name], (values / values.mean().clamp(min=1e-12)).numpy())
        np.add.at(count, readers.channels[name], 1.0)
    return finite(np.divide(total, count, out=np.zeros_like(total), where=count > 0))


def _removals(
    module: nn.Module, graph: ChannelGraph, calibration: Calibration, worth: Callable[[Tensor], Tensor]
) -> FloatArray:
    """Return the sum over images of ``worth`` of what each removal changes."""
    if calibration.projection is None:
        raise ConfigError("taylor and fisher need a projection of the outputs: what the task feels.")
    readers = Readers(module, graph)

    def measure(batches: Sequence[Any]) -> Tensor:
        total = torch.zeros(graph.channel_count, dtype=torch.float64)
        changes = torch.zeros(0, graph.channel_count, dtype=torch.float64)

        def forward(network: nn.Module, batch: Any) -> Any:
            nonlocal changes, total
            total = total + worth(changes).sum(0)
            changes = torch.zeros(images_in(batch), graph.channel_count, dtype=torch.float64)
            return calibration.forward(network, batch)

        def add(name: str, a: Tensor, g: Tensor) -> None:
            felt = (a * g).sum(-1)  # of proposals, several rows are of one image
            images = len(changes) if len(felt) % len(changes) == 0 else 1
            changes[:images].index_add_(
                1, torch.as_tensor(readers.channels[name]), felt.reshape(images, -1, felt.shape[1]).sum(1)
            )

        readers.run(replace(calibration, batches=batches, forward=forward), on_way_back=add)
        return total + worth(changes).sum(0)

    return finite(in_batches_that_fit(measure, calibration.batches).numpy())


class Readers:
    """The layers that read free channels, and which channels those are.

    Attributes:
        channels: By weight name: the channel of each row that is handed on, shape (C,).
    """

    def __init__(self, module: nn.Module, graph: ChannelGraph) -> None:
        self._module, self._layers = module, reading_layers(module, graph)
        self._positions = positions_read(graph)
        self.channels = {
            axis.name: graph.axis_channels(axis)[:: self._positions.get(axis.name, 1)]
            for axis in graph.axes
            if axis.role == "in" and axis.name in self._layers
        }

    def run(
        self,
        calibration: Calibration,
        *,
        on_input: Callable[[str, nn.Module, Tensor], None] | None = None,
        on_read: Callable[[str, Tensor], None] | None = None,
        on_way_back: Callable[[str, Tensor, Tensor], None] | None = None,
    ) -> None:
        """Run the images and hand on what each layer reads: as it is, as (rows, C, P), float64, and what comes back."""

        def hook(name: str, layer: nn.Module) -> Callable[..., tuple[Any, ...] | None]:
            def on_call(called: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
                x = inputs[0]
                if not x.numel():  # a second stage without a proposal
                    return None
                if on_input is not None:
                    on_input(name, layer, x)
                if on_read is not None:
                    on_read(name, self.rows(name, layer, x))
                if on_way_back is None or not x.requires_grad:
                    return None
                held, own = x.detach().clone(), x.view_as(x)  # the host may write into it, and others read it

                def on_gradient(g: Tensor) -> None:
                    on_way_back(name, self.rows(name, layer, held), self.rows(name, layer, g))

                own.register_hook(on_gradient)
                return (own, *inputs[1:])

            return on_call

        with ExitStack() as undo:
            for name, layer in self._layers.items():
                undo.callback(layer.register_forward_pre_hook(hook(name, layer)).remove)
            run_with_gradients(self._module, calibration, "scoring channels")

    def rows(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """Return a layer's input, or its gradient, as (rows, C, P); of a flattened map C are its channels."""
        x = x.detach().double().cpu()
        if isinstance(layer, nn.modules.conv._ConvNd):
            return x.flatten(2)
        rows = x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)
        positions = self._positions.get(name, 1)
        return rows.reshape(len(rows), -1, positions * rows.shape[-1])


def finite(scores: FloatArray) -> FloatArray:
    """Return scores that are finite.

    Raises:
        DataError: Some are not.
    """
    if not np.isfinite(scores).all():
        raise DataError(
            "what the model makes of the calibration images, or the gradient that comes back, is infinite or NaN. Look "
            "for such numbers in the images and in the weights."
        )
    return scores
