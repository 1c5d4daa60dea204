"""The proof that a cut is exact: the cut model against the parent whose removed channels nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.cut.blocks import silence_
from yolo_prune.cut.surgery import named_tensors
from yolo_prune.cut.witness import Sight, Witness, watch
from yolo_prune.device import is_out_of_memory
from yolo_prune.errors import ConfigError, EquivalenceError, YoloPruneError
from yolo_prune.graph.arguments import Arguments
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.copies import check_has_weights, copy_as
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.passes import FAILURES, as_in_training_
from yolo_prune.graph.reading import last_weights
from yolo_prune.graph.trace import OutputSelector
from yolo_prune.graph.values import tensors_in

CutModel = nn.Module | Callable[[torch.dtype], nn.Module]


@dataclass(frozen=True)
class Equivalence:
    """Outcome of the proof that a cut is exact.

    Attributes:
        max_difference: Largest absolute difference between the zeroed and the cut model, in the tensor where it is
            largest beside what is allowed there.
        scale: Largest absolute value of that tensor in the zeroed model.
        tolerance: Largest difference allowed in that tensor.
        dtype: Precision that the proof ran in.
        exact: The verdict: all is equal, something was compared, and every layer that was cut shows in it.
        compared: How many tensors with elements were compared: outputs, what goes into decisions, and what the last
            layers make.
        unseen: Parameters that were cut and on which nothing that was compared depends.
    """

    max_difference: float
    scale: float
    tolerance: float
    dtype: str
    exact: bool
    compared: int = 0
    unseen: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        keys = ("max_difference", "scale", "tolerance", "dtype", "exact", "compared")
        return {key: getattr(self, key) for key in keys}


def zero_removed_(module: nn.Module, graph: ChannelGraph, keep: BoolArray) -> nn.Module:
    """Zero, in place, every weight that reads a removed channel: what the cut model must compute, at full size.

    A channel that is summed over by a product of two activations has no weight that reads it; its producers are
    zeroed instead.

    Args:
        module: The uncut module.
        graph: Its channels.
        keep: Which channels stay, shape (channels,).
    """
    tensors = named_tensors(module)
    with torch.no_grad():
        for axis in graph.axes:
            channels = graph.axis_channels(axis)
            gone = ~keep[channels]
            if axis.role not in ("in", "grouped"):
                gone = gone & graph.contracted[channels]
                if axis.name.endswith(("running_mean", "running_var")):
                    continue
            if gone.any():
                indices = torch.from_numpy(np.flatnonzero(gone))
                tensors[axis.name].index_fill_(axis.dim, indices.to(tensors[axis.name].device), 0.0)
    return module


def prove_equivalence(
    parent: nn.Module,
    cut: CutModel,
    graph: ChannelGraph,
    keep: BoolArray,
    example_input: Any,
    *,
    select_outputs: OutputSelector | None = None,
    dropped: Sequence[str] = (),
) -> Equivalence:
    """Compare the cut model with the parent whose removed channels nobody reads and whose dropped blocks are zero.

    Runs in float64 where the model can, so that only a wrong cut makes a difference, else in float32; never in 16 bits,
    which would hide one, so autocast is off meanwhile. Both models make the same decisions (see
    :mod:`yolo_prune.graph.decisions`), and what goes into them is compared, with the outputs and the results of the
    last layers. Random inputs come first; while a layer that was cut shows in nothing that was
    compared, the branches of training follow, and then the example itself.

    Args:
        parent: The uncut module.
        cut: The cut module, *before* anything was folded or re-estimated; or what makes it in a given precision, when
            the parent's copy has been dropped again.
        graph: Channels of the parent.
        keep: Which channels stay.
        example_input: As for :meth:`yolo_prune.graph.arguments.Arguments.of`.
        select_outputs: As in :func:`yolo_prune.graph.trace_groups`.
        dropped: Residual blocks that went as a whole.

    Returns:
        The outcome; ``exact`` is the verdict.

    Raises:
        EquivalenceError: The cut model does not run, takes another path, or returns other shapes.
        ConfigError: The parent has no weights, or runs neither in float64 nor in float32.
    """
    case = _Case(parent, cut, graph, keep, Arguments.of(parent, example_input), select_outputs, dropped)
    check_has_weights(parent, "the proof that a cut is exact")
    try:
        return case.prove(torch.float64)
    except EquivalenceError:
        raise
    except RuntimeError:  # a module makes float32 tensors of its own
        return _prove_in_float32(case)


def _prove_in_float32(case: _Case) -> Equivalence:
    try:
        return case.prove(torch.float32)
    except RuntimeError as error:
        if isinstance(error, EquivalenceError) or is_out_of_memory(error):
            raise
        raise ConfigError(
            f"a cut is proven in float64 or float32, and the model runs in neither: {error}. If its forward casts to "
            "16 bits by name, let it cast to the type of its weights."
        ) from error


@dataclass(frozen=True)
class _Case:
    """What is to be proven."""

    parent: nn.Module
    cut: CutModel
    graph: ChannelGraph
    keep: BoolArray
    arguments: Arguments
    select: OutputSelector | None
    dropped: Sequence[str]

    def prove(self, dtype: torch.dtype) -> Equivalence:
        """Compare runs until every layer that was cut has shown in something."""
        found = _Findings(self._cut_names())
        for arguments, training in self._runs(dtype):
            try:
                expected = self._parent_run(arguments, dtype, training)
            except Exception as error:  # a class of its own may say that it needs targets
                if found.runs == 0 or isinstance(error, YoloPruneError):
                    raise
                continue  # then it shows nothing in training
            if found.runs == 0:
                _check_finite(expected.outputs)
            found.add(expected, self._cut_run(arguments, dtype, training, expected))
            if found.is_complete:
                break
        outcome = compare_tensors(found.expected, found.got, dtype)
        values = {**vars(outcome), "compared": found.compared, "unseen": tuple(found.missing)}
        return Equivalence(**{**values, "exact": outcome.exact and found.is_complete})

    def _runs(self, dtype: torch.dtype) -> Iterator[tuple[Arguments, bool]]:
        """Yield what to run with, and whether as in training."""
        yield self.arguments.random(dtype), False
        yield self.arguments.random(dtype), True
        yield self.arguments.as_given(dtype), False

    def _cut_names(self) -> list[str]:
        cut = (axis for axis in self.graph.axes if not self.keep[self.graph.axis_channels(axis)].all())
        return list(dict.fromkeys(axis.name for axis in cut))

    def _last(self) -> frozenset[str]:
        """Return the last layers that are whole: their results must agree; names say nothing after a dropped block."""
        graph = self.graph
        last = last_weights(graph.axes, graph.channel_of, graph.contracted)
        gone = {a.name for a in graph.axes if a.role == "out" and not self.keep[graph.axis_channels(a)].all()}
        return frozenset() if self.dropped else last - gone

    def _parent_run(self, arguments: Arguments, dtype: torch.dtype, training: bool) -> Witness:
        zeroed = zero_removed_(copy_as(self.parent, dtype), self.graph, self.keep)
        silence_(zeroed, self.dropped)
        if training:
            as_in_training_(zeroed)
        return watch(zeroed, arguments.changed(Tensor.clone), self.select, self._last())

    def _cut_run(
        self, arguments: Arguments, dtype: torch.dtype, training: bool, expected: Witness
    ) -> Witness:
        try:
            cut = self.cut
            smaller = copy_as(cut, dtype, own=False) if isinstance(cut, nn.Module) else cut(dtype)
            if training:
                as_in_training_(smaller)
            got = watch(
                smaller, arguments.changed(Tensor.clone), self.select, self._last(), expected.decisions
            )
        except FAILURES as error:
            raise EquivalenceError(f"the cut model does not run: {error}") from error
        if got.diverged:
            raise EquivalenceError(f"the cut model takes another path than the parent: {got.diverged}.")
        for what, left, right in (
            ("returns", expected.outputs, got.outputs),
            ("makes in its last layers", expected.ends, got.ends),
        ):
            shapes = [[tuple(sight.tensor.shape) for sight in sights] for sights in (left, right)]
            if shapes[0] != shapes[1]:
                raise EquivalenceError(f"the cut model {what} shapes {shapes[1]}, the parent {shapes[0]}.")
        return got


@dataclass
class _Findings:
    """Pairs of tensors to compare, and which of the cut parameters show in them."""

    missing: list[str]
    expected: list[Tensor] = field(default_factory=list)
    got: list[Tensor] = field(default_factory=list)
    compared: int = 0
    runs: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether something was compared, and everything that was cut shows in it."""
        return self.compared > 0 and not self.missing

    def add(self, expected: Witness, got: Witness) -> None:
        """Take over the pairs of one run."""
        self.runs += 1
        reach = 0
        for a, b, must in _pairs(expected, got):
            finite = _is_finite(a.tensor) and _is_finite(b.tensor)
            tells = finite and b.reach > 0  # a constant says nothing of the model
            if tells or (must and a.tensor.numel()):
                self.expected.append(a.tensor)
                self.got.append(b.tensor)
            if tells:
                self.compared += 1
                reach |= b.reach
        seen = {name for bit, name in enumerate(got.names) if reach >> bit & 1}
        self.missing = [name for name in self.missing if name not in seen]


def _check_finite(outputs: Sequence[Sight]) -> None:
    """Refuse a model that makes nothing finite: its cut cannot be told from any other."""
    tensors = [sight.tensor for sight in outputs if sight.tensor.numel()]
    if tensors and not any(map(_is_finite, tensors)):
        raise ConfigError(
            "the model makes NaN or infinity alone in every tensor that it returns for random input, so "
            "no cut can be proven: check its weights and BatchNorm statistics."
        )


def _pairs(expected: Witness, got: Witness) -> Iterator[tuple[Sight, Sight, bool]]:
    """Yield what to compare, and whether it must hold finite values."""
    rows = zip(expected.decisions, got.decisions, expected.inputs, got.inputs, strict=True)
    for before, after, left, right in rows:
        if before.shapes == after.shapes:  # else of channels, of which some are gone
            yield from ((a, b, False) for a, b in zip(left, right, strict=False))  # none where it is not used
    for a, b in zip(expected.ends, got.ends, strict=True):
        yield a, b, False
    yield from ((a, b, True) for a, b in zip(expected.outputs, got.outputs, strict=True))


def _is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has a finite element."""
    return bool(tensor.numel()) and bool(tensor.isfinite().any())


def compare_tensors(expected: list[Tensor], got: list[Tensor], dtype: torch.dtype) -> Equivalence:
    """Compare two lists of tensors of equal shapes, each at its own scale.

    Infinities and NaN must stand in the same places; a tensor without any finite value proves nothing and fails. A
    tensor without elements counts as nothing, and nothing at all is not exact.
    """
    relative = 1e-11 if dtype is torch.float64 else 1e-4
    rows = []
    for a, b in ((a.double(), b.double()) for a, b in zip(expected, got, strict=True) if a.numel()):
        finite = a.isfinite() & b.isfinite()
        same = _same_gaps(a, b) and bool(finite.any())
        difference = float((a - b)[finite].abs().max()) if same else float("inf")
        rows.append((difference, float(a[finite].abs().max()) if same else 0.0))
    largest = max((scale for _, scale in rows), default=0.0)
    graded = [(d, s, relative * max(s, 1e-4 * largest, 1e-6)) for d, s in rows]
    worst = max(graded, key=lambda row: (row[0] / row[2], row[1]), default=(0.0, 0.0, relative))
    exact = bool(rows) and worst[0] <= worst[2]
    return Equivalence(*worst, str(dtype).removeprefix("torch."), exact, len(rows))


def _same_gaps(a: Tensor, b: Tensor) -> bool:
    """Whether NaN and both infinities stand in the same places."""
    return all(torch.equal(kind(a), kind(b)) for kind in (torch.isnan, torch.isposinf, torch.isneginf))


def selected_outputs(outputs: Any, select: OutputSelector | None) -> list[Tensor]:
    """Return the tensors of fixed width in what a model returned."""
    return tensors_in(select(outputs) if select else outputs)
