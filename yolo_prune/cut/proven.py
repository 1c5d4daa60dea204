"""Cut a module and prove that the cut is exact: channels by a choice, or one residual block as a whole."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from yolo_prune.cost import CostModel, cost_model, with_macs_at
from yolo_prune.cost.latency import Latency
from yolo_prune.cut.blame import blame, find_inexact
from yolo_prune.cut.blocks import ResidualBlock, find_residual_blocks
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import make_plan, plan_drop
from yolo_prune.cut.proof import Equivalence, prove_equivalence
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.errors import ConfigError, EquivalenceError
from yolo_prune.graph.arguments import Arguments
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.copies import copy_as, copy_with
from yolo_prune.graph.decisions import Positions
from yolo_prune.graph.groups import ChannelGraph, Group, trace_groups
from yolo_prune.graph.held import hold_
from yolo_prune.graph.module_rules import ModuleRules
from yolo_prune.graph.rules import Operator
from yolo_prune.graph.trace import OutputSelector
from yolo_prune.progress import LOGGER

_Value = TypeVar("_Value")
_ATTEMPTS = 8


@dataclass(frozen=True)
class Anatomy:
    """How to run a module and what it is made of: everything that planning needs to know besides the weights.

    Attributes:
        trace_input: Small input for tracing and for the proof.
        cost_input: Input whose MACs count; None: the trace input.
        rules: Module classes with baked widths.
        select_outputs: Picks the outputs of fixed width.
        keep_layers: Module names or patterns whose own channels stay by choice.
        operators: Rules for operators that have none of their own.
        inexact: Modules whose channels stay because a cut of them was found not to be exact.
        undroppable: Residual blocks that stay because their removal was found not to be exact.
        unseen: Modules that are not cut because nothing that depends on them could be compared.
        positions: Where the parent's decisions fell; every model is traced and counted there.
        latency: What its layers take on a runtime, where a budget is one of time.
    """

    trace_input: Any
    cost_input: Any = None
    rules: ModuleRules | None = None
    select_outputs: OutputSelector | None = None
    keep_layers: tuple[str, ...] = ()
    operators: Mapping[str, Operator] | None = None
    inexact: tuple[str, ...] = ()
    undroppable: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    positions: Positions | None = None
    latency: Latency | None = None

    @property
    def held(self) -> tuple[str, ...]:
        """Modules that stay because of a proof."""
        return (*self.inexact, *self.unseen)

    def without(self, error: EquivalenceError) -> Anatomy:
        """Return the same with the layers frozen that a failed proof names.

        Raises:
            EquivalenceError: It names none that are still free.
        """
        held = self.unseen if error.unseen else self.inexact
        fresh = tuple(name for name in error.freeze if name not in held)
        if not fresh:
            raise error
        if error.unseen:
            return replace(self, unseen=(*held, *fresh))
        return replace(self, inexact=(*held, *fresh))

    def cost_of(self, module: nn.Module) -> CostModel:
        """Trace a module and return its cost model, with the frozen patterns applied.

        Raises:
            ConfigError: A pattern of ``keep_layers`` matches no module.
        """
        check_patterns(module, self.keep_layers)
        graph = trace_groups(
            module,
            self.trace_input,
            rules=self.rules,
            operators=self.operators,
            select_outputs=self.select_outputs,
            positions=self.positions,
        )
        if self.cost_input is not None or self.latency is not None:
            image = self.trace_input if self.cost_input is None else self.cost_input
            graph = with_macs_at(graph, module, image, self.positions)
        graph = freeze_modules(graph, self.inexact, "cannot be cut exactly")
        graph = freeze_modules(graph, self.unseen, "shows in nothing that a proof could compare", reads=True)
        cost = cost_model(freeze_modules(graph, self.keep_layers), module)
        return replace(cost, latency=self.latency)


@dataclass(frozen=True)
class Traced:
    """A module as it was traced once: whoever changes it, or freezes more of it, traces again.

    Attributes:
        module: The module.
        anatomy: How it was run, and what stays.
        cost: Its channels and what they cost.
    """

    module: nn.Module
    anatomy: Anatomy
    cost: CostModel

    @staticmethod
    def of(module: nn.Module, anatomy: Anatomy) -> Traced:
        """Trace a module."""
        return Traced(module, anatomy, anatomy.cost_of(module))

    def under(self, anatomy: Anatomy) -> Traced:
        """Return the module as another anatomy has it: itself where that is the same one."""
        return self if anatomy is self.anatomy else Traced.of(self.module, anatomy)

    def amount(self, budget: Budget) -> float:
        """Return what the module costs in the unit of a budget."""
        return budget.measure(self.cost, self.cost.everything)


def until_exact(traced: Traced, attempt: Callable[[Traced], _Value]) -> tuple[_Value, Anatomy]:
    """Call ``attempt``; where a proof fails, freeze the layers that it names, trace, and call it again.

    Args:
        traced: What is to be cut; ``attempt`` must leave it alone when it raises.
        attempt: Chooses channels, cuts and proves.

    Returns:
        What ``attempt`` returned, and the anatomy with everything that was found to stay.

    Raises:
        EquivalenceError: No exact cut was found.
    """
    anatomy = traced.anatomy
    for _ in range(_ATTEMPTS):
        traced = traced.under(anatomy)
        try:
            return attempt(traced), anatomy
        except EquivalenceError as error:
            anatomy = anatomy.without(error)
            LOGGER.warning("%s Freezing %s and planning again.", error, ", ".join(error.freeze))
    raise EquivalenceError(f"no exact cut was found after freezing {', '.join(anatomy.held)}.")


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
            raise ConfigError(f"keep_layers='{pattern}' matches no module of this model.{hint}")


def freeze_modules(
    graph: ChannelGraph, patterns: Iterable[str], reason: str = "frozen by choice", *, reads: bool = False
) -> ChannelGraph:
    """Keep all channels that modules matching a pattern make.

    Args:
        graph: The channels.
        patterns: Module names (their children included) or shell patterns such as ``model.2*``.
        reason: What `inspect` says of them.
        reads: Keep what they read as well.

    Returns:
        The graph with those channels frozen.
    """
    patterns = [pattern for pattern in patterns if pattern]
    if not patterns:
        return graph
    frozen, reasons = graph.frozen.copy(), dict(graph.reasons)
    for axis in graph.axes:
        owner = axis.name.rpartition(".")[0]
        passed_by = axis.role in ("in", "grouped") and not reads
        if passed_by or not any(_matches(owner, pattern) for pattern in patterns):
            continue
        for channel in graph.axis_channels(axis).tolist():
            frozen[channel] = True
            reasons.setdefault(channel, reason)
    hold_([group.channels for group in graph.groups], graph.ties, frozen, reasons)
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
        EquivalenceError: The cut would be wrong, or a part of it could not be compared; the text names the module.
    """
    plan = make_plan(cost, keep, budget=budget)
    proof, problem = _try_cut(module, cost.graph, plan, keep, anatomy)
    if proof is not None and not proof.exact:
        raise _unseen(proof)
    if proof is None:
        trial = cut_(copy_with(module, Tensor.clone), plan, rules=anatomy.rules)
        where = blame(module, trial, cost.graph, keep, anatomy.trace_input)

        def is_exact(other: BoolArray) -> bool:
            return _try_cut(module, cost.graph, make_plan(cost, other), other, anatomy)[0] is not None

        raise EquivalenceError(
            f"the cut is not exact: {problem} (first seen in '{where}').",
            freeze=find_inexact(cost.graph, keep, is_exact),
        )
    cut_(module, plan, rules=anatomy.rules)
    return replace(plan, equivalence=proof.to_dict()), proof


def _unseen(proof: Equivalence) -> EquivalenceError:
    """Return the error that says what no comparison has shown."""
    names = tuple(dict.fromkeys(name.rpartition(".")[0] for name in proof.unseen))
    if not proof.compared:
        return EquivalenceError(
            "the cut cannot be proven: the model returned nothing with elements that could be compared. Give "
            "select_outputs= that picks tensors, an example with something in it, or the dense part of the model."
        )
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return EquivalenceError(
        f"the cut cannot be proven for {listed}: nothing that was compared depends on them. Give an example with "
        "something in it (a detection, a proposal), select_outputs=, or the dense part of the model.",
        freeze=names,
        unseen=True,
    )


def _try_cut(
    module: nn.Module, graph: ChannelGraph, plan: PrunePlan, keep: BoolArray, anatomy: Anatomy
) -> tuple[Equivalence | None, str]:
    """Cut a copy and compare it: the proof, or None and what is wrong.

    A proof that says nothing of some layer is returned, though it is not exact.

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
    if proof.max_difference > proof.tolerance:
        return None, f"differs by {proof.max_difference:.3g} on outputs of scale {proof.scale:.3g}"
    return proof, ""


def offered_blocks(module: nn.Module, anatomy: Anatomy) -> tuple[ResidualBlock, ...]:
    """Return the residual blocks that may go: none in a container of which something stays by name.

    A block's removal renames its later siblings, so that a name given by the user would mean another block.
    """
    patterns = [p for p in (*anatomy.keep_layers, *anatomy.inexact, *anatomy.undroppable) if p]
    held = [name for name, _ in module.named_modules() if any(_matches(name, p) for p in patterns)]
    arguments = Arguments.of(module, anatomy.trace_input).random(torch.float32)
    blocks = find_residual_blocks(module, arguments)
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
    everything = cost.everything
    proof, problem = _try_cut(module, cost.graph, plan, everything, anatomy)
    if proof is None or not proof.exact:
        problem = problem or "nothing could be compared"
        raise EquivalenceError(f"'{block.name}' cannot be dropped exactly: {problem}.")
    cut_(module, plan, rules=anatomy.rules)
    return replace(plan, equivalence=proof.to_dict()), proof
