"""What channels cost: multiply-accumulates (MACs) and parameters, for any choice of kept channels."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from yolo_prune.errors import PlanError
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.groups import ChannelGraph

FloatArray = npt.NDArray[np.float64]


class _MacCounter(TorchDispatchMode):
    """Adds up multiply-accumulates of convolutions and matrix products, one entry an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.macs: list[float] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Opt out of a wrapper around the method below whose first call imports the whole compiler (3 s)."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            positions = (x.numel() // x.shape[1]) if transposed else (out.numel() // out.shape[1])
            self.macs.append(float(positions * weight.numel()))
        elif name in {"mm", "addmm", "bmm", "baddbmm"}:
            self.macs.append(float(out.numel() * args[-2].shape[-1]))
        return out


def count_macs_per_operation(module: nn.Module, example_input: Any) -> list[float]:
    """Count the multiply-accumulates of each convolution and matrix product of one forward pass.

    The pass runs on shapes alone (the meta device) where the model allows it, else for real; the count is the same.

    Args:
        module: Any module; a copy of it runs, in evaluation mode.
        example_input: Tensor or tuple of positional arguments, batch size 1.

    Returns:
        One count per operation, in execution order.
    """
    try:
        return _run_counter(
            copy.deepcopy(module).to("meta"), pytree.tree_map_only(Tensor, _to_meta, example_input)
        )
    except (
        RuntimeError,
        NotImplementedError,
    ):  # values decide the control flow, or an operator has no shape rule
        return _run_counter(copy.deepcopy(module).cpu(), example_input)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _run_counter(module: nn.Module, example_input: Any) -> list[float]:
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    counter = _MacCounter()
    with torch.no_grad(), counter:
        module.eval()(*args)
    return counter.macs


def count_macs(module: nn.Module, example_input: Any) -> float:
    """Return the multiply-accumulates of one forward pass (not FLOPs: those are about twice as many)."""
    return sum(count_macs_per_operation(module, example_input))


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, frozen ones included, buffers left out."""
    return sum(parameter.numel() for parameter in module.parameters())


def with_macs_at(graph: ChannelGraph, module: nn.Module, example_input: Any) -> ChannelGraph:
    """Recount a graph's operations at another input, usually the real image size.

    Args:
        graph: Traced from ``module`` at any size.
        module: The traced module.
        example_input: Input whose costs count, batch size 1.

    Returns:
        The graph with new costs.

    Raises:
        PlanError: The model runs other operations at this input than in the trace.
    """
    macs = count_macs_per_operation(module, example_input)
    known = graph.uses
    if len(macs) != len(known):
        raise PlanError(
            f"the model ran {len(known)} convolutions and products in the trace, but {len(macs)} at the size that costs "
            "are counted for. Trace it at that size."
        )
    return replace(
        graph, uses=tuple(replace(use, macs=value) for use, value in zip(known, macs, strict=True))
    )


@dataclass(frozen=True)
class CostModel:
    """MACs and parameters as a function of which channels stay.

    Attributes:
        graph: The channels.
        shapes: Shape per parameter name.
        other_parameters: Parameters that the trace never met.
    """

    graph: ChannelGraph
    shapes: dict[str, tuple[int, ...]]
    other_parameters: int

    def axis_counts(self, keep: BoolArray) -> FloatArray:
        """Return how many indices of each axis stay, shape (axes,)."""
        atoms = keep[self.graph.channel_of].astype(np.int64)
        total = np.concatenate([[0], np.cumsum(atoms)])
        return np.array([total[a.base + a.size] - total[a.base] for a in self.graph.axes], dtype=np.float64)

    def macs(self, keep: BoolArray) -> float:
        """Return the multiply-accumulates left when the channels ``keep`` (shape (channels,)) stay."""
        counts, sizes = (
            self.axis_counts(keep),
            np.array([axis.size for axis in self.graph.axes], dtype=np.float64),
        )
        share = np.append(counts / sizes, 1.0)
        total = 0.0
        for use in self.graph.uses:
            factor = share[use.out_axis] * share[use.in_axis]
            if use.atoms:
                factor *= float(keep[self.graph.channel_of[list(use.atoms)]].mean())
            total += use.macs * factor
        return total

    def parameters(self, keep: BoolArray) -> int:
        """Return the number of parameters left when the channels ``keep`` stay."""
        left = {name: float(np.prod(shape)) for name, shape in self.shapes.items()}
        for axis, count in zip(self.graph.axes, self.axis_counts(keep).tolist(), strict=True):
            if axis.name in left:
                left[axis.name] *= count / axis.size
        return round(sum(left.values())) + self.other_parameters


def cost_model(graph: ChannelGraph, module: nn.Module) -> CostModel:
    """Build the cost model of a traced module."""
    named = {axis.name for axis in graph.axes}
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if name in named}
    other = sum(p.numel() for name, p in module.named_parameters() if name not in named)
    return CostModel(graph, shapes, other)


def channel_gradient(cost: CostModel, keep: BoolArray, of: str) -> FloatArray:
    """Return what one channel's removal saves, to first order in the widths, shape (channels,).

    Args:
        cost: The cost model.
        keep: Channels that are still there.
        of: ``macs`` or ``params``.
    """
    graph = cost.graph
    counts = np.maximum(cost.axis_counts(keep), 1.0)
    sizes = np.array([axis.size for axis in graph.axes], dtype=np.float64)
    per_axis = np.zeros(len(graph.axes))
    saved = np.zeros(graph.channel_count)
    if of == "params":
        by_name: dict[str, list[int]] = {}
        for index, axis in enumerate(graph.axes):
            by_name.setdefault(axis.name, []).append(index)
        for name, indices in by_name.items():
            shape = cost.shapes.get(name)
            if shape is not None:
                total = float(np.prod(shape)) * float(np.prod(counts[indices] / sizes[indices]))
                per_axis[indices] += total / counts[indices]
    else:
        share = np.append(counts / sizes, 1.0)
        for use in graph.uses:
            total = use.macs * share[use.out_axis] * share[use.in_axis]
            for index in {use.out_axis, use.in_axis} - {-1}:
                per_axis[index] += total / counts[index]
            if use.atoms:
                np.add.at(saved, graph.channel_of[list(use.atoms)], total / len(use.atoms))
    for index, axis in enumerate(graph.axes):
        np.add.at(saved, graph.axis_channels(axis), per_axis[index])
    saved[0] = 0.0
    return saved
