"""When a cut is not exact: where it shows first, and which channels are to blame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.cut.proof import zero_removed_
from yolo_prune.graph.arguments import Arguments
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.copies import copy_as
from yolo_prune.graph.decisions import Decisions
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.modes import WithoutAutocast
from yolo_prune.graph.passes import FAILURES


def blame(parent: nn.Module, cut: nn.Module, graph: ChannelGraph, keep: BoolArray, example_input: Any) -> str:
    """Return the first module, in execution order, that fails in the cut model or makes it differ.

    Args:
        parent: The uncut module.
        cut: The cut module.
        graph: Channels of the parent.
        keep: Which channels stay.
        example_input: As for the proof.

    Returns:
        Dotted module name; empty when it is the model itself.
    """
    arguments = Arguments.of(parent, example_input).random(torch.float32)
    decided = Decisions()
    with decided:
        expected, _ = _record(zero_removed_(copy_as(parent, torch.float32), graph, keep), arguments)
    with Decisions(decided.made):
        got, running = _record(copy_as(cut, torch.float32), arguments)
    for (name, before), (other, after) in zip(expected, got, strict=False):
        if other != name:
            return name
        if before.shape == after.shape and not _agree(before, after):
            return name
    return running


def _agree(before: Tensor, after: Tensor) -> bool:
    """Tell whether two results are the same but for rounding, with NaN and infinities in the same places."""
    finite = before[before.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(before, after, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)


def _record(model: nn.Module, arguments: Arguments) -> tuple[list[tuple[str, Tensor]], str]:
    """Run a model until it fails: every module's tensor result, and the innermost module that was running then."""
    found: list[tuple[str, Tensor]] = []
    running: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue

        def enter(_: nn.Module, __: Any, name: str = name) -> None:
            running.append(name)

        def leave(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
            running.pop()
            if isinstance(out, Tensor) and out.is_floating_point():
                found.append((name, out.clone()))

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with torch.no_grad(), WithoutAutocast():
        try:
            arguments.changed(Tensor.clone).run(model)
        except FAILURES:
            return found, running[-1] if running else ""
    return found, ""


def find_inexact(
    graph: ChannelGraph, keep: BoolArray, is_exact: Callable[[BoolArray], bool]
) -> tuple[str, ...]:
    """Find the layers whose channels cannot be cut exactly, by cutting halves of the choice.

    Args:
        graph: The channels.
        keep: A choice whose cut is not exact.
        is_exact: Tells whether another choice can be cut exactly.

    Returns:
        Names of the modules that make those channels; freezing them leaves an exact choice.
    """
    ties = [tie for tie in graph.ties if not keep[_channels(graph, [tie])].all()]

    def exact(chosen: Sequence[tuple[int, ...]]) -> bool:
        trial = np.ones_like(keep)
        channels = _channels(graph, chosen)
        trial[channels] = keep[channels]
        return is_exact(trial)

    culprits: list[tuple[int, ...]] = []
    pending: list[Sequence[tuple[int, ...]]] = [ties]
    while pending:
        chosen = pending.pop()
        if len(chosen) == 1:
            culprits += chosen
            continue
        halves = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
        wrong = [half for half in halves if half and not exact(half)]
        pending += wrong or [half[:1] for half in halves if half]  # wrong only together: give up one of each
    names = [label for tie in culprits for index in tie for label in graph.groups[index].producers]
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _channels(graph: ChannelGraph, ties: Sequence[tuple[int, ...]]) -> list[int]:
    return [int(channel) for tie in ties for index in tie for channel in graph.groups[index].channels]
