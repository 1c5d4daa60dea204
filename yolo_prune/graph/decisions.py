"""Decisions: where floating values choose positions (thresholds, top-k, sorting, non-maximum suppression).

Two models that compute the same up to rounding, or a model and its smaller cut, decide differently: ties fall the other
way, other proposals pass. What comes after cannot be compared then, and costs another number of operations. So one run
records what it decided, and another one is made to decide the same: all that follows is computed at the same positions.
What went *into* a decision is a continuous function of the model, and that is what a proof compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from yolo_prune.graph.constants import Constants, storage_of
from yolo_prune.graph.dispatch import OperatorMode

# Read no values, however they are called.
_SHAPES = frozenset(
    {"size", "sym_size", "stride", "sym_stride", "numel", "sym_numel", "is_same_size", "empty"}
)
# Floating results that jump: a rounding difference before becomes a step behind.
_STEPS = frozenset(
    {
        "floor",
        "ceil",
        "round",
        "trunc",
        "frac",
        "sign",
        "sgn",
        "heaviside",
        "remainder",
        "fmod",
        "floor_divide",
    }
)


def reads_values(operator: str) -> bool:
    """Tell whether an operator looks at the values of its tensors, not at their shapes alone."""
    return operator not in _SHAPES and not operator.startswith("new_") and not operator.endswith("_like")


@dataclass(frozen=True)
class Decision:
    """One operator that turned floating values into positions.

    Attributes:
        name: The operator.
        shapes: Shapes of its tensors.
        inputs: Copies of its floating tensors; empty where they were not asked for.
        results: Copies of what it decided, in the order of its results; None where a result is no decision.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[Tensor, ...]
    results: tuple[Any, ...]


class Decisions(OperatorMode):
    """Records the decisions of a forward pass, or repeats those of an earlier one.

    Args:
        earlier: Decisions of another run, to be repeated wherever the tensors have the same shapes; None: only record.
        keep_inputs: Keep copies of what goes in.

    Attributes:
        made: The decisions of this run.
        repeated: Tensors of the latest operator's result that were taken from the earlier run.
        diverged: What this run did where the earlier one did something else; empty when both took the same path.
        used: Which decisions something depended on; a maximum's index, say, is often thrown away.
    """

    def __init__(self, earlier: Sequence[Decision] | None = None, *, keep_inputs: bool = False) -> None:
        super().__init__()
        self.made: list[Decision] = []
        self.repeated: list[Tensor] = []
        self.diverged = ""
        self.used: set[int] = set()
        self._decided: dict[int, tuple[Tensor, int]] = {}
        self._constants = Constants()
        self._earlier = earlier
        self._keep_inputs = keep_inputs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.repeated = []
        name = str(func.overloadpacket.__name__)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not reads_values(name):
            out = func(*args, **kwargs)
            self._constants.follow(func, (), pytree.tree_leaves(out))
            return out
        self.use(tensors)
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        if not floats:
            out = func(*args, **kwargs)
            self._constants.follow(func, tensors, pytree.tree_leaves(out))
            return out
        steps = name.rstrip("_") in _STEPS or kwargs.get("rounding_mode") is not None
        writes = bool(func._schema.is_mutable)
        before = tuple(tensor.clone() for tensor in floats) if steps and writes else tuple(floats)
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        leaves, spec = pytree.tree_flatten(func(*args, **kwargs))
        chosen = [_is_decided(leaf, steps) for leaf in leaves]
        constant = self._constants.follow(func, tensors, leaves)
        if any(chosen) and not constant:  # what numbers decide is the same in every model, and may be cached
            leaves = self._repeat(name, shapes, leaves, chosen, writes)
            self._note([leaf for leaf, picked in zip(leaves, chosen, strict=True) if picked])
            results = tuple(
                _copy(leaf) if picked else None for leaf, picked in zip(leaves, chosen, strict=True)
            )
            inputs = tuple(tensor.clone() for tensor in before) if self._keep_inputs else ()
            self.made.append(Decision(name, shapes, inputs, results))
        return pytree.tree_unflatten(leaves, spec)

    def use(self, tensors: Iterable[Tensor]) -> None:
        """Note that something depends on these tensors."""
        for tensor in tensors:
            if tensor.layout is torch.strided and (key := storage_of(tensor)) in self._decided:
                self.used.add(self._decided[key][1])

    def _note(self, results: Iterable[Any]) -> None:
        """Hold what the decision that is being made returns, to see whether something depends on it."""
        for result in results:
            if not isinstance(result, Tensor):
                self.used.add(len(self.made))  # a number of Python's goes where it likes
            elif result.layout is torch.strided:
                self._decided[storage_of(result)] = (result, len(self.made))

    def _repeat(
        self,
        name: str,
        shapes: tuple[tuple[int, ...], ...],
        leaves: list[Any],
        chosen: list[bool],
        writes: bool,
    ) -> list[Any]:
        """Put what the earlier run decided in the place of what this one did."""
        if self._earlier is None or self.diverged:
            return leaves
        index = len(self.made)
        past = self._earlier[index] if index < len(self._earlier) else None
        if past is None or past.name != name:
            self.diverged = f"'{name}' where it was '{past.name if past else 'the end'}'"
            return leaves
        if past.shapes != shapes:  # of channels, of which some are gone
            return leaves
        fresh = []
        for leaf, picked, result in zip(leaves, chosen, past.results, strict=True):
            if not picked:
                fresh.append(leaf)
                continue
            fresh.append(leaf.copy_(result) if writes and isinstance(leaf, Tensor) else _copy(result))
            if isinstance(fresh[-1], Tensor):
                self.repeated.append(fresh[-1])
        return fresh


def _is_decided(leaf: Any, steps: bool) -> bool:
    """Tell whether a result is a decision: no number that follows its operands without jumps."""
    if isinstance(leaf, Tensor):
        return steps or not (leaf.is_floating_point() or leaf.is_complex())
    return isinstance(leaf, (bool, int, float))


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


class Positions:
    """Where decisions fell in the first run of each name: later models run at the same positions."""

    def __init__(self) -> None:
        self._first: dict[str, list[Decision]] = {}

    @contextmanager
    def of(self, run: str) -> Iterator[None]:
        """Record the first run of that name that comes to its end, and repeat it in every later one."""
        decisions = Decisions(self._first.get(run))
        with decisions:
            yield
        self._first.setdefault(run, decisions.made)

    def state_dict(self) -> dict[str, list[list[Any]]]:
        """Return what was decided, as plain values and tensors: for a process that goes on."""
        return {
            run: [[one.name, list(one.shapes), list(one.results)] for one in made]
            for run, made in self._first.items()
        }

    def load_state_dict(self, state: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Repeat what :meth:`state_dict` returned."""
        self._first = {
            run: [Decision(name, tuple(shapes), (), tuple(results)) for name, shapes, results in made]
            for run, made in state.items()
        }
