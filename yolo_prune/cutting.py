"""Structure alone: trace, rank, plan, cut and prove, for any module, without data and without a host."""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from yolo_prune.blame import blame, find_inexact
from yolo_prune.cost import CostModel, FloatArray, cost_model, with_macs_at
from yolo_prune.errors import BudgetError, ConfigError, EquivalenceError
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.groups import ChannelGraph, Group, trace_groups
from yolo_prune.graph.rules import Operator
from yolo_prune.graph.trace import ModuleRules, OutputSelector
from yolo_prune.plan import Budget, PrunePlan, Widths, choose_channels, make_plan
from yolo_prune.progress import LOGGER
from yolo_prune.score import find_criterion
from yolo_prune.surgery import Equivalence, copy_as, cut_, prove_equivalence

_ATTEMPTS = 8


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
    """

    trace_input: Any
    cost_input: Any = None
    rules: ModuleRules | None = None
    select_outputs: OutputSelector | None = None
    freeze: tuple[str, ...] = ()
    operators: Mapping[str, Operator] | None = None
    inexact: tuple[str, ...] = ()

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
    proof, problem = _try_cut(module, cost, plan, keep, anatomy)
    if proof is None:
        trial = cut_(copy.deepcopy(module), plan, rules=anatomy.rules)
        where = blame(module, trial, cost.graph, keep, anatomy.trace_input)

        def is_exact(other: BoolArray) -> bool:
            return _try_cut(module, cost, make_plan(cost, other), other, anatomy)[0] is not None

        raise EquivalenceError(
            f"the cut is not exact: {problem} (first seen in '{where}').",
            freeze=find_inexact(cost.graph, keep, is_exact),
        )
    cut_(module, plan, rules=anatomy.rules)
    return replace(plan, equivalence=proof.to_dict()), proof


def _try_cut(
    module: nn.Module, cost: CostModel, plan: PrunePlan, keep: BoolArray, anatomy: Anatomy
) -> tuple[Equivalence | None, str]:
    """Cut a copy and compare it: the proof, or None and what is wrong.

    The copy is cut in the proof's precision, because a rule may rescale weights, and that should not cost exactness.
    """

    def cut(dtype: torch.dtype) -> nn.Module:
        return cut_(copy_as(module, dtype), plan, rules=anatomy.rules)

    try:
        proof = prove_equivalence(
            module, cut, cost.graph, keep, anatomy.trace_input, select_outputs=anatomy.select_outputs
        )
    except EquivalenceError as error:
        return None, str(error)
    if not proof.exact:
        return None, f"differs by {proof.max_difference:.3g} on outputs of scale {proof.scale:.3g}"
    return proof, ""


def prune_module(
    module: nn.Module,
    example_input: Any,
    *,
    keep_macs: float | None = None,
    gmacs: float | None = None,
    keep_params: float | None = None,
    criterion: str = "bn_scale",
    freeze: Sequence[str] = (),
    round_to: int = 8,
    min_width: int = 8,
    seed: int = 0,
    cost_input: Any = None,
    rules: ModuleRules | None = None,
    operators: Mapping[str, Operator] | None = None,
    select_outputs: OutputSelector | None = None,
) -> PrunePlan:
    """Prune any module, in place, without data: trace, rank, plan, cut, and prove that the cut is exact.

    Args:
        module: Any module; its parameters are replaced by smaller ones.
        example_input: Tensor or tuple of positional arguments, batch size 1; small sizes trace faster.
        keep_macs: Fraction of the MACs that stays; give exactly one budget.
        gmacs: Absolute budget in 1e9 MACs.
        keep_params: Fraction of the parameters that stays.
        criterion: Key of :data:`yolo_prune.score.CRITERIA`.
        freeze: Module names or patterns whose channels stay.
        round_to: Widths become multiples of this.
        min_width: Smallest width of a group.
        seed: For ``criterion="random"``.
        cost_input: Input whose MACs count, when it is not the example.
        rules: Module classes that bake widths into attributes or split channels, see
            :class:`yolo_prune.graph.ModuleRule`.
        operators: Rules for operators that have none, see :mod:`yolo_prune.graph.rules`.
        select_outputs: Picks the outputs of fixed width; default: all tensors.

    Returns:
        The plan: what stayed, ``kept_macs``, the proof in ``equivalence``, and what was frozen and why.

    Raises:
        BudgetError: The budget cannot be met, or not exactly one was given.
        EquivalenceError: No exact cut was found; the module is untouched.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
        >>> plan = prune_module(net, torch.rand(1, 3, 16, 16), keep_macs=0.5)
        >>> net[0].out_channels, plan.equivalence["exact"]
        (16, True)
    """
    budget = one_budget(keep_macs=keep_macs, gmacs=gmacs, keep_params=keep_params)
    score = find_criterion(criterion)
    anatomy = Anatomy(example_input, cost_input, rules, select_outputs, tuple(freeze), operators)
    for _ in range(_ATTEMPTS):
        cost = anatomy.cost_of(module)
        scores: FloatArray = score(module, cost.graph, seed)
        keep = choose_channels(cost, scores, budget, widths=Widths(round_to, min_width))
        try:
            plan, _ = cut_proven_(module, cost, keep, anatomy, budget=budget)
            return replace(plan, settings={"criterion": criterion, "round_to": round_to, "seed": seed})
        except EquivalenceError as error:
            if not error.freeze or set(error.freeze) <= set(anatomy.inexact):
                raise
            LOGGER.warning("%s Freezing %s and planning again.", error, ", ".join(error.freeze))
            anatomy = replace(anatomy, inexact=(*anatomy.inexact, *error.freeze))
    raise EquivalenceError(f"no exact cut was found after freezing {', '.join(anatomy.inexact)}.")


def one_budget(**budgets: float | None) -> Budget:
    """Return the single budget given.

    Raises:
        BudgetError: None or several were given, or a fraction lies outside (0, 1].
    """
    given = {kind: value for kind, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise BudgetError(f"give exactly one of {', '.join(budgets)}; got {', '.join(given) or 'none'}.")
    ((kind, value),) = given.items()
    if value <= 0 or (kind != "gmacs" and value > 1):
        raise BudgetError(
            f"{kind}={value} is outside its range: {'above 0' if kind == 'gmacs' else '(0, 1]'}."
        )
    return Budget(kind, float(np.float64(value)))
