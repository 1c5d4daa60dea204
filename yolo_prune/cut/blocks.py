"""Residual blocks that can go as a whole: found by what they compute, not by the name of their class.

A block ``x + branch(x)`` whose weights are all zero returns its input. A child of a ``Sequential`` or ``ModuleList``
that does so can be taken out of its container; a layer that reads a concatenation of its input and its output then
reads the input alone, with the weights of both added up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from yolo_prune.graph.arguments import Arguments
from yolo_prune.graph.copies import check_has_weights, copy_with
from yolo_prune.graph.dispatch import OperatorMode

_CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Repeat:
    """A layer that reads a block's output beside its input.

    Attributes:
        label: The reading dimension, ``name[dim]``.
        output: First index that reads the block's output.
        source: First index that reads the block's input.
        width: How many channels they have.
    """

    label: str
    output: int
    source: int
    width: int


@dataclass(frozen=True)
class ResidualBlock:
    """A block that can be dropped.

    Attributes:
        name: Dotted module name.
        repeats: Layers whose weights are added up when it goes.
    """

    name: str
    repeats: tuple[Repeat, ...] = ()


@dataclass
class _Seen:
    """What one run shows of a candidate: its last input and output, how often it ran, whether it is residual."""

    source: Tensor | None = None
    output: Tensor | None = None
    runs: int = 0
    residual: bool = False
    usable: bool = True
    repeats: list[Repeat] = field(default_factory=list)


def find_residual_blocks(module: nn.Module, arguments: Arguments) -> tuple[ResidualBlock, ...]:
    """Find the blocks that can be taken out of their containers.

    Args:
        module: Any module; untouched.
        arguments: What it is called with, floating tensors with random values.

    Returns:
        The blocks in execution order, outer ones after what they contain. That they can go is what the proof of a cut
        must still show: a container's owner may do anything with its children.
    """
    check_has_weights(module, "finding residual blocks")
    model = copy_with(module, lambda tensor: tensor.detach().float().cpu()).eval()
    watch = _Watch(model)
    with torch.no_grad(), watch:
        arguments.run(model)
    return tuple(
        ResidualBlock(name, tuple(seen.repeats))
        for name, seen in watch.seen.items()
        if seen.runs == 1 and seen.residual and seen.usable and watch.runs_in_order(name)
    )


class _Watch(OperatorMode):
    """Runs beside a forward pass: silences candidates, and follows their outputs into concatenations and readers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: dict[str, _Seen] = {}
        self.names = {id(tensor): name for name, tensor in model.named_parameters()}
        self.busy = False
        self.joined: dict[int, tuple[Tensor, Sequence[Tensor]]] = {}
        self.chains: dict[str, bool] = {}
        for name, child in model.named_modules():
            if isinstance(child, nn.Sequential):
                self.chains[name] = False
                child.register_forward_pre_hook(lambda _, __, name=name: self.chains.update({name: True}))
        for name, block in _candidates(model):
            block.register_forward_hook(lambda layer, x, out, name=name: self._on_block(name, layer, x, out))

    def runs_in_order(self, name: str) -> bool:
        """Tell whether a block's container is a plain list, or a chain that was called as one.

        A chain whose children are run one by one, such as a host's list of layers, counts on their places.
        """
        return self.chains.get(name.rpartition(".")[0], True)

    def _on_block(self, name: str, block: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        if self.busy:
            return
        seen = self.seen.pop(name, _Seen())
        self.seen[name] = seen
        seen.runs += 1
        if len(inputs) != 1 or not isinstance(out, Tensor) or not isinstance(inputs[0], Tensor):
            return
        x = inputs[0]
        if x.shape != out.shape or not x.any():
            return
        zeros = {key: torch.zeros_like(tensor) for key, tensor in _tensors(block)}
        self.busy = True
        try:
            silent = functional_call(block, zeros, (x.clone(),))
        finally:
            self.busy = False
        seen.residual = isinstance(silent, Tensor) and torch.equal(silent, x)
        seen.source, seen.output = x, out

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.busy:
            return out
        operator = func.overloadpacket.__name__
        if operator == "cat" and (args[1] if len(args) > 1 else 0) in (1, 1 - out.dim()):
            self.joined[id(out)] = (out, args[0])
        elif operator == "convolution" and id(args[0]) in self.joined:
            self._on_reader(self.joined[id(args[0])][1], self.names.get(id(args[1])), groups=args[8])
        return out

    def _on_reader(self, parts: Sequence[Tensor], weight: str | None, groups: int) -> None:
        """Note where a convolution reads a block's output beside its input."""
        starts, total = [], 0
        for part in parts:
            starts.append(total)
            total += part.shape[1]
        for name, seen in self.seen.items():
            if name.rpartition(".")[0] in self.chains:
                continue  # without the block, its chain still hands on a map of its own
            at = [start for part, start in zip(parts, starts, strict=True) if part is seen.output]
            of = [start for part, start in zip(parts, starts, strict=True) if part is seen.source]
            if not seen.residual or not at or not of:
                continue
            seen.usable = seen.usable and groups == 1 and len(at) == 1 and weight is not None
            if seen.output is not None:
                seen.repeats.append(Repeat(f"{weight}[1]", at[0], of[0], seen.output.shape[1]))


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of containers that have weights, stand in one place only, and whose removal renames predictably."""
    places: dict[int, int] = defaultdict(int)
    for _, child in model.named_modules(remove_duplicate=False):
        places[id(child)] += 1
    for path, container in model.named_modules():
        if not isinstance(container, _CONTAINERS):
            continue
        keys = list(container._modules)
        numbered = keys == [str(index) for index in range(len(keys))]
        for key, block in container.named_children():
            renames = numbered or not key.isdigit()
            if places[id(block)] == 1 and renames and any(True for _ in block.parameters()):
                yield f"{path}.{key}" if path else key, block


def _tensors(block: nn.Module) -> list[tuple[str, Tensor]]:
    return [*block.named_parameters(), *block.named_buffers()]


def silence_(module: nn.Module, names: Iterable[str]) -> nn.Module:
    """Zero, in place, all weights and buffers of the named blocks: what a model without them must compute."""
    for name in names:
        for _, tensor in _tensors(module.get_submodule(name)):
            tensor.detach().zero_()
    return module


def remove_blocks_(module: nn.Module, names: Iterable[str]) -> nn.Module:
    """Take the named blocks out of their containers, in place; the later children of a container move up."""
    by_container: dict[str, list[str]] = defaultdict(list)
    for name in names:
        path, _, key = name.rpartition(".")
        by_container[path].append(key)
    containers = [(module.get_submodule(path), keys) for path, keys in by_container.items()]
    for container, gone in containers:
        left = {key: child for key, child in container._modules.items() if key not in gone}
        numbered = all(key.isdigit() for key in container._modules)
        container._modules.clear()
        for index, (key, child) in enumerate(left.items()):
            container._modules[str(index) if numbered else key] = child
    return module


def original_name(name: str, removed: Iterable[str]) -> str:
    """Return the name before ``removed`` blocks (names of then) were taken out of what is called ``name`` now.

    Example:
        >>> original_name("model.4.m.0.cv1.weight", ["model.4.m.0", "model.4.m.1"])
        'model.4.m.2.cv1.weight'
    """
    gone: Mapping[str, list[int]] = _numbers_by_container(removed)
    path = ""
    for part in name.split("."):
        index = part
        if part.isdigit():
            number = int(part)
            for lower in gone.get(path, ()):
                number += lower <= number
            index = str(number)
        path = f"{path}.{index}" if path else index
    return path


def _numbers_by_container(removed: Iterable[str]) -> dict[str, list[int]]:
    gone: dict[str, list[int]] = defaultdict(list)
    for name in removed:
        container, _, key = name.rpartition(".")
        if key.isdigit():
            gone[container].append(int(key))
    return {container: sorted(numbers) for container, numbers in gone.items()}
