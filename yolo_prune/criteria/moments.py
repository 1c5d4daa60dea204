"""Second moments at the input of every layer that reads prunable channels, weighted by what the task feels.

For a layer that reads ``x`` (C channels) and makes ``z = W x``, an error ``e`` in the input costs, to second order,
``sum_p sum_o g_o(p)^2 (W e(p))_o^2`` with ``g`` the gradient of a random projection of the model's decoded outputs.
The pixel's part ``s(p) = sum_o g_o(p)^2`` weights the moments, the channel's part ``r_o`` the rows of ``W``. The sum
runs over all positions of the output, so that layers with maps of different sizes can be compared.

A linear layer that reads a flattened map (C, H, W) is measured as the convolution that it is: C channels at H W places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.cost import FloatArray
from yolo_prune.criteria.backward import WayBack, run_with_gradients
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.memory import in_batches_that_fit
from yolo_prune.errors import DataError
from yolo_prune.graph.groups import ChannelGraph

_PIXELS = 256
_ROUNDED = 1e-9  # of the squares of an input: variances below it are no more than rounding


@dataclass(frozen=True)
class Moments:
    """What one reading layer saw.

    Attributes:
        second: Weighted mean of ``x x^T``, shape (C, C), where C may be fewer than the layer reads: of a flattened map.
        mean: Weighted mean of ``x``, shape (C,).
        energy: Sum of ``s(p)`` over all positions of all images, estimated from those that were sampled: how much the
            task feels an error here, absolute. Without a task: the number of images over the output's variance.
        rows: Share ``r_o`` of each output channel in it, shape (C_out,), sums to 1.
        samples: Number of pixels behind it.
    """

    second: FloatArray
    mean: FloatArray
    energy: float
    rows: FloatArray
    samples: int

    @property
    def covariance(self) -> FloatArray:
        """Weighted covariance of the input, shape (C, C)."""
        return self.second - np.outer(self.mean, self.mean)

    def damping(self, ridge: float) -> float:
        """Return what makes the covariance one that can be solved with, once it is added to its diagonal.

        Args:
            ridge: Share of the mean variance. Where an input hardly varies beside its mean, rounding leaves a
                covariance with negative variances; there it is a share of the squares.
        """
        variance = float((self.second.diagonal() - self.mean**2).mean())
        return ridge * max(variance, _ROUNDED * float(self.second.diagonal().max()), 1e-12)


class _Accumulator:
    """Collects one layer's sums over all batches."""

    def __init__(self) -> None:
        self.second: Tensor | None = None
        self.first: Tensor | None = None
        self.weight = 0.0
        self.rows: Tensor | None = None
        self.samples = 0

    def add(self, x: Tensor, squared: Tensor) -> None:
        """Add pixels ``x`` (P, C) whose outputs weigh ``squared`` (P, C_out); several in a row may share an output."""
        pixel = squared.sum(1).double()
        if len(x) > len(pixel):
            shared = len(x) // len(pixel)
            pixel = pixel.repeat_interleave(shared) / shared
        x = x.double()
        weighted = x * pixel[:, None]
        second, first, rows = weighted.T @ x, weighted.sum(0), squared.double().sum(0)
        if self.second is None or self.first is None or self.rows is None:
            self.second, self.first, self.rows = second, first, rows
        else:
            self.second += second
            self.first += first
            self.rows += rows
        self.weight += float(pixel.sum())
        self.samples += len(x)

    def check_finite(self, name: str) -> None:
        """Refuse sums that are no numbers.

        Raises:
            DataError: They are not.
        """
        sums = [tensor for tensor in (self.second, self.first, self.rows) if tensor is not None]
        if not all(bool(tensor.isfinite().all()) for tensor in sums):
            raise DataError(
                f"what '{name}' reads of the calibration images, or the gradient that comes back to it, is infinite or "
                "NaN. Look for such numbers in the images and in the weights of the layers before it."
            )

    def finish(self) -> Moments | None:
        """Return the moments, None when the layer never ran or nothing depends on it."""
        if self.second is None or self.first is None or self.rows is None or self.weight <= 0:
            return None
        return Moments(
            second=(self.second / self.weight).numpy(),
            mean=(self.first / self.weight).numpy(),
            energy=self.weight,
            rows=(self.rows / self.rows.sum()).numpy(),
            samples=self.samples,
        )


def reading_layers(module: nn.Module, graph: ChannelGraph) -> dict[str, nn.Module]:
    """Return weight name -> layer for every layer that reads a free channel."""
    modules = dict(module.named_modules())
    layers = {}
    for axis in graph.axes:
        owner, _, leaf = axis.name.rpartition(".")
        if axis.role == "in" and leaf == "weight" and not graph.frozen[graph.axis_channels(axis)].all():
            layers[axis.name] = modules[owner]
    return layers


def positions_read(graph: ChannelGraph) -> dict[str, int]:
    """Return by weight name how many indices in a row stand for one channel, for those that read a flattened map."""
    found = {}
    for axis in graph.axes:
        channels = graph.axis_channels(axis)
        changes = np.flatnonzero(np.diff(channels))
        run = int(changes[0]) + 1 if len(changes) else 1
        if axis.role == "in" and run > 1 and len(channels) % run == 0:
            rows = channels.reshape(-1, run)
            if (rows == rows[:, :1]).all():
                found[axis.name] = run
    return found


def by_channel(weight: Tensor, dim: int, channels: int) -> Tensor:
    """Return a weight with the channels that it reads first and the positions of a flattened map last, a view."""
    apart = weight.view(*weight.shape[:dim], channels, -1, *weight.shape[dim + 1 :])
    return apart.movedim((dim, dim + 1), (0, -1))


def collect_moments(
    module: nn.Module,
    graph: ChannelGraph,
    calibration: Calibration,
    *,
    description: str = "measuring",
    blocks: Iterable[str] = (),
) -> dict[str, Moments]:
    """Run calibration images through the model and collect every reading layer's moments.

    Args:
        module: The model; it is left as it was (mode, gradients, parameters).
        graph: Its channels.
        calibration: Images and how the model runs on them; its projection's gradient weights pixels and channels.
        description: Label of the progress bar.
        blocks: Residual blocks to measure too: what comes in, followed by what the branch adds, at the block's output.

    Returns:
        Weight name or block name -> moments.

    Raises:
        DataError: There was no image, or the model makes infinite numbers or NaN of them.
    """
    layers, positions = reading_layers(module, graph), positions_read(graph)
    added = {name: module.get_submodule(name) for name in blocks}

    def measure(batches: Sequence[Any]) -> dict[str, _Accumulator]:
        generator = torch.Generator().manual_seed(calibration.seed)
        way_back = WayBack() if calibration.projection else None
        sums = {name: _Accumulator() for name in (*layers, *added)}
        watched = [
            (
                layer,
                _hook(
                    *(sums[name].add, generator, way_back),
                    branch=name in added,
                    positions=positions.get(name, 1),
                ),
            )
            for name, layer in (*layers.items(), *added.items())
        ]
        with _hooked(watched):
            run_with_gradients(module, replace(calibration, batches=batches), description)
        return sums

    sums = in_batches_that_fit(measure, calibration.batches)
    for name, total in sums.items():
        total.check_finite(name)
    return {name: moments for name, total in sums.items() if (moments := total.finish()) is not None}


@contextmanager
def _hooked(watched: Iterable[tuple[nn.Module, Callable[..., Tensor | None]]]) -> Iterator[None]:
    """Have functions called with what modules read and return, until the block ends."""
    with ExitStack() as undo:
        for layer, on_forward in watched:
            undo.callback(layer.register_forward_hook(on_forward).remove)
        yield


def _hook(
    add: Callable[[Tensor, Tensor], None],
    generator: torch.Generator,
    way_back: WayBack | None,
    *,
    branch: bool = False,
    positions: int = 1,
) -> Callable[..., Tensor | None]:
    """Return a forward hook that samples input pixels and weighs them by their outputs' gradients.

    Of a residual block (``branch``) it samples the input beside the difference that the block makes. Of a flattened map
    so many ``positions`` of a channel stand in a row. Without ``way_back`` there is no task.
    """

    def on_forward(layer: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
        x = inputs[0].detach()
        spatial = isinstance(layer, nn.modules.conv._ConvNd) or (branch and x.dim() > 3)
        if branch:
            x = torch.cat([x, out.detach() - x], 1 if spatial else -1)
        pixels, targets = _sample(x, out, spatial, generator)
        x = _take(x, pixels, spatial).cpu()
        sampled = len(x)
        if not sampled:  # a second stage without a proposal
            return None
        if positions > 1:
            x = x.view(sampled, x.shape[1] // positions, positions).transpose(1, 2).flatten(0, 1)
        if way_back is None:
            z = _take(out.detach(), targets, spatial).float().cpu()
            variance = (z - z.mean(0)).pow(2).mean(0).sum().clamp(min=1e-12)
            add(x, torch.ones_like(z) * len(out) / (z.numel() * variance))
        elif out.requires_grad:
            out = way_back.begin(out)
            every = (
                out.numel() // out.shape[1 if spatial else -1] / sampled
            )  # one in so many positions is sampled
            out.register_hook(  # type: ignore[no-untyped-call]
                lambda g: add(x, _take(g, targets, spatial).float().cpu().pow(2) * every)
            )
            return out
        return None

    return on_forward


class Samples:
    """The pixels that one layer saw, for regressions between two models."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.weights: list[Tensor] = []

    def add(self, x: Tensor, squared: Tensor) -> None:
        """Add pixels ``x`` (P, C) whose outputs weigh ``squared`` (P, C_out)."""
        self.inputs.append(x)
        self.weights.append(squared)


def sample_inputs(
    module: nn.Module, names: Iterable[str], calibration: Calibration, *, description: str
) -> dict[str, Samples]:
    """Return what layers read, at the same pixels of the same images whatever the model around them.

    Args:
        module: The model; left as it was.
        names: Weight names of the layers.
        calibration: As for :func:`collect_moments`.
        description: Label of the progress bar.
    """
    layers = {name: module.get_submodule(name.rpartition(".")[0]) for name in names}

    def measure(batches: Sequence[Any]) -> dict[str, Samples]:
        found = {name: Samples() for name in layers}
        way_back = WayBack() if calibration.projection else None
        watched = [
            (layer, _hook(found[name].add, torch.Generator().manual_seed(calibration.seed), way_back))
            for name, layer in layers.items()
        ]
        with _hooked(watched):
            run_with_gradients(module, replace(calibration, batches=batches), description)
        return found

    return in_batches_that_fit(measure, calibration.batches)


def moments_between(before: Samples, after: Samples, source: list[int]) -> Moments | None:
    """Return the moments of what a layer reads now, followed by what it lacks beside what it read before.

    Args:
        before: Of the model with a block, C channels.
        after: Of the model without it, C' channels.
        source: Which of the C' channels stands for each of the C.

    Returns:
        The moments, C' + C channels; None when the task does not feel the layer.
    """
    if len(before.inputs) != len(after.inputs):
        return None
    total = _Accumulator()
    for old, new, squared in zip(before.inputs, after.inputs, before.weights, strict=True):
        total.add(torch.cat([new, old - new[:, source]], 1), squared)
    return total.finish()


def _sample(x: Tensor, out: Tensor, spatial: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose positions of the input, shape (B, P), and the output positions over them."""
    if not spatial:
        size = out.numel() // out.shape[-1]
        chosen = torch.randperm(size, generator=generator)[: _PIXELS * len(out)]
        return chosen[None], chosen[None]
    sizes, outs = x.shape[2:], out.shape[2:]
    total = int(np.prod(sizes))
    count = min(total, _PIXELS)
    chosen = torch.stack([torch.randperm(total, generator=generator)[:count] for _ in range(len(x))])
    target, rest = torch.zeros_like(chosen), chosen
    for axis in reversed(range(len(sizes))):
        position, rest = rest % sizes[axis], rest // sizes[axis]
        step = int(np.prod(outs[axis + 1 :]))
        target += ((position * 2 + 1) * outs[axis] // (2 * sizes[axis])) * step
    return chosen, target


def _take(x: Tensor, positions: Tensor, spatial: bool) -> Tensor:
    """Gather positions as rows of channels, shape (positions, C)."""
    if not spatial:
        return x.reshape(-1, x.shape[-1])[positions[0].to(x.device)]
    pixels = x.flatten(2).transpose(1, 2)
    images = torch.arange(len(x), device=x.device)[:, None]
    return pixels[images, positions.to(x.device)].reshape(-1, x.shape[1])
