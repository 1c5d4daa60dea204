"""Cut a module and prove that the cut is exact: channels by a choice, or one residual block as a whole."""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from yolo_prune.cost import CostModel, cost_model, with_macs_at
from yolo_prune.cut.blame import blame, find_inexact
from yolo_prune.cut.blocks import ResidualBlock, find_residual_blocks
from yolo_prune.cut.plan import Budget, make_plan, plan_drop
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import Equivalence, copy_as, cut_, prove_equivalence, random_arguments
from yolo_prune.errors import ConfigError, EquivalenceError
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.groups import ChannelGraph, Group, trace_groups
from yolo_prune.graph.rules import Operator
from yolo_prune.graph.trace import ModuleRules, OutputSelector


@dataclass(frozen=True)
class Anatomy:
    """How to run a module and what it is made of: everything that planning needs to know besides the weights.

    Attributes:
        trace_input: Small input for tracing and for the proof.
        cost_input: Input whose MACs count; None: the trace input.
        rules: Module classes with baked widths.
        select_outputs: Picks the outputs of fixed width.
        freeze: Module names or patterns whose own channels stay by choice.
        operators: Rules for operators that have none of their own.
        inexact: Modules whose channels stay because a cut of them was found not to be exact.
        undroppable: Residual blocks that stay because their removal was found not to be exact.
    """

    trace_input: Any
    cost_input: Any = None
    rules: ModuleRules | None = None
    select_outputs: OutputSelector | None = None
    freeze: tuple[str, ...] = ()
    operators: Mapping[str, Operator] | None = None
    inexact: tuple[str, ...] = ()
    undroppable: tuple[str, ...] = ()

    def cost_of(self, module: nn.Module) -> CostModel:
        """Trace a module and return its cost model, with the frozen patterns applied.

        Raises:
            ConfigError: A pattern of ``freeze`` matches no module.
        """
        check_patterns(module, self.freeze)
        graph = trace_groups(
            module,
            self.trace_input,
            rules=self.rules,
            operators=self.operators,
            select_outputs=self.select_outputs,
        )
        if self.cost_input is not None:
            graph = with_macs_at(graph, module, self.cost_input)
        graph = freeze_modules(graph, self.inexact, "cannot be cut exactly")
        return cost_model(freeze_modules(graph, self.freeze), module)


def check_patterns(module: nn.Module, patterns: Iterable[str]) -> None:
    """Refuse patterns that match no module.

    Raises:
        ConfigError: One matches none; the text suggests the nearest name.
    """
    names = [name for name, _ in module.named_modules() if name]
    for pattern in patterns:
        if pattern and not any(_matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"freeze='{pattern}' matches no module of this model.{hint}")


def freeze_modules(
    graph: ChannelGraph, patterns: Iterable[str], reason: str = "frozen by choice"
) -> ChannelGraph:
    """Keep all channels that modules matching a pattern make.

    Args:
        graph: The channels.
        patterns: Module names (their children included) or shell patterns such as ``model.2*``.
        reason: What `inspect` says of them.

    Returns:
        The graph with those channels frozen.
    """
    patterns = [pattern for pattern in patterns if pattern]
    if not patterns:
        return graph
    frozen, reasons = graph.frozen.copy(), dict(graph.reasons)
    for axis in graph.axes:
        owner = axis.name.rpartition(".")[0]
        if axis.role in ("in", "grouped") or not any(_matches(owner, pattern) for pattern in patterns):
            continue
        for channel in graph.axis_channels(axis).tolist():
            frozen[channel] = True
            reasons.setdefault(channel, reason)
    groups = tuple(replace(group, frozen=_reasons_of(group, frozen, reasons)) for group in graph.groups)
    return replace(graph, frozen=frozen, reasons=reasons, groups=groups)


def _reasons_of(group: Group, frozen: BoolArray, reasons: dict[int, str]) -> tuple[str, ...]:
    held = group.channels[frozen[group.channels]]
    return tuple(dict.fromkeys(reasons.get(int(channel), "") for channel in held))


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def cut_proven_(
    module: nn.Module, cost: CostModel, keep: BoolArray, anatomy: Anatomy, *, budget: Budget | None = None
) -> tuple[PrunePlan, Equivalence]:
    """Cut ``module`` in place to the channels ``keep``, and prove it; the module is untouched when the proof fails.

    Raises:
        EquivalenceError: The cut would be wrong; the text names the module.
    """
    plan = make_plan(cost, keep, budget=budget)
    proof, problem = _try_cut(module, cost.graph, plan, keep, anatomy)
    if proof is None:
        trial = cut_(copy.deepcopy(module), plan, rules=anatomy.rules)
        where = blame(module, trial, cost.graph, keep, anatomy.trace_input)

        def is_exact(other: BoolArray) -> bool:
            return _try_cut(module, cost.graph, make_plan(cost, other), other, anatomy)[0] is not None

        raise EquivalenceError(
            f"the cut is not exact: {problem} (first seen in '{where}').",
            freeze=find_inexact(cost.graph, keep, is_exact),
        )
    cut_(module, plan, rules=anatomy.rules)
    return replace(plan, equivalence=proof.to_dict()), proof


def _try_cut(
    module: nn.Module, graph: ChannelGraph, plan: PrunePlan, keep: BoolArray, anatomy: Anatomy
) -> tuple[Equivalence | None, str]:
    """Cut a copy and compare it: the proof, or None and what is wrong.

    The copy is cut in the proof's precision, because a rule may rescale weights, and that should not cost exactness.
    """

    def cut(dtype: torch.dtype) -> nn.Module:
        return cut_(copy_as(module, dtype), plan, rules=anatomy.rules)

    try:
        proof = prove_equivalence(
            module,
            cut,
            graph,
            keep,
            anatomy.trace_input,
            select_outputs=anatomy.select_outputs,
            dropped=plan.dropped,
        )
    except EquivalenceError as error:
        return None, str(error)
    if not proof.exact:
        return None, f"differs by {proof.max_difference:.3g} on outputs of scale {proof.scale:.3g}"
    return proof, ""


def offered_blocks(module: nn.Module, anatomy: Anatomy) -> tuple[ResidualBlock, ...]:
    """Return the residual blocks that may go: none in a container of which something stays by name.

    A block's removal renames its later siblings, so that a name given by the user would mean another block.
    """
    patterns = [p for p in (*anatomy.freeze, *anatomy.inexact, *anatomy.undroppable) if p]
    held = [name for name, _ in module.named_modules() if any(_matches(name, p) for p in patterns)]
    blocks = find_residual_blocks(module, random_arguments(anatomy.trace_input, torch.float32))
    containers = [block.name.rpartition(".")[0] for block in blocks]
    return tuple(
        block
        for block, container in zip(blocks, containers, strict=True)
        if not any(name.startswith(f"{container}." if container else "") for name in held)
    )


def drop_proven_(
    module: nn.Module, cost: CostModel, block: ResidualBlock, anatomy: Anatomy
) -> tuple[PrunePlan, Equivalence]:
    """Take a residual block out of ``module`` in place, and prove it; untouched when the proof fails.

    Raises:
        EquivalenceError: The model without the block does not compute what it computes with the block's weights zero.
    """
    plan = plan_drop(cost, block)
    everything = np.ones(cost.graph.channel_count, dtype=bool)
    proof, problem = _try_cut(module, cost.graph, plan, everything, anatomy)
    if proof is None:
        raise EquivalenceError(f"'{block.name}' cannot be dropped exactly: {problem}.")
    cut_(module, plan, rules=anatomy.rules)
    return replace(plan, equivalence=proof.to_dict()), proof
