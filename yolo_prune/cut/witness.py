"""What one run shows to a proof: what goes into its decisions, what its last layers make, what it returns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from yolo_prune.graph.arguments import Arguments
from yolo_prune.graph.decisions import Decision, Decisions
from yolo_prune.graph.dispatch import OperatorMode
from yolo_prune.graph.modes import WithoutAutocast
from yolo_prune.graph.trace import OutputSelector
from yolo_prune.graph.values import tensors_in

_LAYERS = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm"})


@dataclass(frozen=True)
class Sight:
    """A tensor to compare, and the parameters and buffers that it depends on, one bit each."""

    tensor: Tensor
    reach: int


@dataclass(frozen=True)
class Witness:
    """Everything that one run shows.

    Attributes:
        decisions: Its decisions, in order.
        inputs: For each decision what went into it; empty where nothing depends on what it decided.
        ends: What the last layers made, in order.
        outputs: What the model returned, as far as it is selected.
        names: Parameters and buffers by their bit.
        diverged: As of :class:`yolo_prune.graph.decisions.Decisions`, and where the run ended early.
    """

    decisions: tuple[Decision, ...]
    inputs: tuple[tuple[Sight, ...], ...]
    ends: tuple[Sight, ...]
    outputs: tuple[Sight, ...]
    names: tuple[str, ...]
    diverged: str


def watch(
    model: nn.Module,
    arguments: Arguments,
    select: OutputSelector | None,
    last: Collection[str],
    earlier: Sequence[Decision] | None = None,
) -> Witness:
    """Run a model and keep what a proof compares.

    Args:
        model: Any module; it runs as it is.
        arguments: What it is called with.
        select: Picks the outputs to compare.
        last: Names of the weights whose results are compared as well.
        earlier: Decisions to repeat.
    """
    decisions = Decisions(earlier, keep_inputs=True)
    flow = _Flow(model, last, decisions)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # a branch that draws numbers draws the same in both models
        with WithoutAutocast(), decisions, flow:
            outputs = arguments.run(model)
        outputs = select(outputs) if select else outputs
    decisions.use(tensors_in(outputs))
    inputs = tuple(sights if index in decisions.used else () for index, sights in enumerate(flow.inputs))
    shown = tuple(Sight(tensor, flow.reach(tensor)) for tensor in tensors_in(outputs))
    short = earlier is not None and len(decisions.made) < len(earlier)
    diverged = decisions.diverged or ("the end where decisions followed" if short else "")
    return Witness(tuple(decisions.made), inputs, tuple(flow.ends), shown, flow.names, diverged)


class _Flow(OperatorMode):
    """Follows which parameters each tensor depends on; a decision taken from another run depends on none.

    Dependence is kept by storage, because views share what is written into them.
    """

    def __init__(self, model: nn.Module, last: Collection[str], decisions: Decisions) -> None:
        super().__init__()
        self.ends: list[Sight] = []
        self.inputs: list[tuple[Sight, ...]] = []
        self._decisions = decisions
        self._reach: dict[int, tuple[StorageWeakRef, int]] = {}
        self._last: set[int] = set()
        named = [*model.named_parameters(), *model.named_buffers()]
        self.names = tuple(name for name, _ in named)
        for index, (name, tensor) in enumerate(named):
            self._set(tensor, self.reach(tensor) | 1 << index)
            if name in last:
                self._last.add(_storage(tensor))

    def reach(self, tensor: Tensor) -> int:
        """Return the bits of the parameters and buffers that a tensor depends on."""
        return self._reach.get(_storage(tensor), (None, 0))[1]

    def _set(self, tensor: Tensor, reach: int) -> None:
        if tensor.layout is torch.strided:
            alive = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._reach[_storage(tensor)] = (alive, reach)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        reach = 0
        for tensor in tensors:
            reach |= self.reach(tensor)
        before = len(self._decisions.made)
        out = func(*args, **kwargs)
        for decision in self._decisions.made[before:]:
            self.inputs.append(tuple(Sight(tensor, reach) for tensor in decision.inputs))
        for tensor in _tensors(out):
            self._set(tensor, reach)
        for tensor in self._decisions.repeated:
            self._set(tensor, 0)
        if func.overloadpacket.__name__ in _LAYERS and any(_storage(t) in self._last for t in tensors):
            self.ends.append(Sight(out.clone(), reach))
        return out


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0
