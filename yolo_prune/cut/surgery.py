"""The only file that resizes a Parameter: cut a model by a plan, and prove that the cut is exact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from yolo_prune.cut.blocks import remove_blocks_, silence_
from yolo_prune.cut.optimizer import note_gone, note_heir
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import EquivalenceError, PlanError
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.copies import copy_with
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.passes import FAILURES
from yolo_prune.graph.trace import ModuleRules, OutputSelector, rule_for

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass(frozen=True)
class Equivalence:
    """Outcome of the proof that a cut is exact.

    Attributes:
        max_difference: Largest absolute difference between the zeroed and the cut model, in the output tensor where it
            is largest beside what is allowed there.
        scale: Largest absolute value of that tensor in the zeroed model.
        tolerance: Largest difference allowed in that tensor.
        dtype: Precision that the proof ran in.
        exact: The verdict.
    """

    max_difference: float
    scale: float
    tolerance: float
    dtype: str
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return asdict(self)


def cut_(module: nn.Module, plan: PrunePlan, *, rules: ModuleRules | None = None) -> nn.Module:
    """Cut a module by a plan, in place.

    Args:
        module: The module that the plan was made for.
        plan: Which indices stay.
        rules: Module classes with baked widths; their attributes are set from the new shapes.

    Returns:
        The same module.

    Raises:
        PlanError: The plan names a parameter that the module lacks or that has another width; nothing was cut then.
    """
    tensors = _named_tensors(module)
    cuts = _checked_cuts(tensors, plan)
    _check_blocks(module, plan)
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    owners[id(tensor)].append((owner, key))
    touched = {}
    for name, by_dim in cuts.items():
        whole = tensors.pop(name)  # nothing holds what was cut any longer than needed
        fresh = _sliced(whole, name, by_dim, plan.added)
        if isinstance(whole, nn.Parameter) and isinstance(fresh, nn.Parameter):
            note_heir(whole, fresh, by_dim)
        for owner, key in owners.pop(id(whole)):
            if isinstance(fresh, nn.Parameter):
                owner._parameters[key] = fresh
            else:
                owner._buffers[key] = fresh
            touched[owner] = True
    for owner in touched:
        _sync_widths(owner)
    for path, owner in module.named_modules():
        if (rule := rule_for(rules or {}, owner)) is not None:
            rule.sync(owner)
            if rule.follow is not None:
                rule.follow(owner, _kept_below(plan, path))
    dropped = [p for block in plan.dropped for p in module.get_submodule(block).parameters()]
    remove_blocks_(module, plan.dropped)
    left = {id(parameter) for parameter in module.parameters()}
    note_gone(parameter for parameter in dropped if id(parameter) not in left)
    return module


def _kept_below(plan: PrunePlan, path: str) -> dict[str, list[int]]:
    prefix = f"{path}." if path else ""
    return {label.removeprefix(prefix): kept for label, kept in plan.keep.items() if label.startswith(prefix)}


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _checked_cuts(tensors: dict[str, Tensor], plan: PrunePlan) -> dict[str, dict[int, Tensor]]:
    """Return what stays by parameter and dimension, after checking that the plan fits."""
    cuts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for label, indices in plan.keep.items():
        name, _, dim = label[:-1].rpartition("[")
        if name not in tensors:
            raise PlanError(
                f"the plan cuts '{name}', which this model does not have. It was made for another model."
            )
        width = tensors[name].shape[int(dim)]
        if width != plan.widths[label]:
            raise PlanError(
                f"the plan expects width {plan.widths[label]} at '{label}', the model has {width}."
            )
        cuts[name][int(dim)] = torch.tensor(indices, dtype=torch.int64)
    return cuts


def _check_blocks(module: nn.Module, plan: PrunePlan) -> None:
    names = dict(module.named_modules())
    for block in plan.dropped:
        if block not in names:
            raise PlanError(
                f"the plan drops '{block}', which this model does not have. It was made for another model."
            )


def _sliced(tensor: Tensor, name: str, by_dim: dict[int, Tensor], added: list[dict[str, Any]]) -> Tensor:
    """Return a smaller copy in which the indices to be added up are, a Parameter when the source is one."""
    data = tensor.detach()
    for entry in added:
        weight, _, dim = entry["axis"][:-1].rpartition("[")
        if weight == name:
            source, target = (torch.tensor(entry[side], device=data.device) for side in ("from", "to"))
            data = data.index_add(int(dim), target, data.index_select(int(dim), source))
    for dim, indices in by_dim.items():
        data = data.index_select(dim, indices.to(data.device))
    data = data.contiguous()
    return (
        nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    )


def _sync_widths(owner: nn.Module) -> None:
    """Set the width attributes of PyTorch's own layers from their tensors."""
    weight = getattr(owner, "weight", None)
    if isinstance(owner, _CONVOLUTIONS):
        _sync_convolution(owner)
    elif isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = (int(size) for size in owner.weight.shape)
    elif isinstance(owner, nn.GroupNorm) and isinstance(weight, Tensor):
        owner.num_groups = owner.num_groups * int(weight.shape[0]) // owner.num_channels
        owner.num_channels = int(weight.shape[0])
    elif hasattr(owner, "num_features"):
        vector = weight if isinstance(weight, Tensor) else getattr(owner, "running_mean", None)
        if isinstance(vector, Tensor):
            setattr(owner, "num_features", int(vector.shape[0]))  # noqa: B010 - a norm of any class


def _sync_convolution(owner: nn.Module) -> None:
    layer: Any = owner
    transposed = isinstance(owner, _TRANSPOSED)
    makes, reads = layer.weight.shape[1::-1] if transposed else layer.weight.shape[:2]
    if layer.groups == layer.in_channels > 1:  # depthwise: as many groups as channels are left
        per_group = layer.out_channels // layer.groups
        layer.groups = int(layer.weight.shape[0]) // (1 if transposed else per_group)
        makes, reads = layer.groups * per_group, layer.groups
    elif layer.groups > 1:
        makes, reads = (makes * layer.groups, reads) if transposed else (makes, reads * layer.groups)
    layer.in_channels, layer.out_channels = int(reads), int(makes)


def zero_removed_(module: nn.Module, graph: ChannelGraph, keep: BoolArray) -> nn.Module:
    """Zero, in place, every weight that reads a removed channel: what the cut model must compute, at full size.

    A channel that is summed over by a product of two activations has no weight that reads it; its producers are
    zeroed instead.

    Args:
        module: The uncut module.
        graph: Its channels.
        keep: Which channels stay, shape (channels,).
    """
    tensors = _named_tensors(module)
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
    cut: nn.Module | Callable[[torch.dtype], nn.Module],
    graph: ChannelGraph,
    keep: BoolArray,
    example_input: Any,
    *,
    select_outputs: OutputSelector | None = None,
    dropped: Sequence[str] = (),
) -> Equivalence:
    """Compare the cut model with the parent whose removed channels nobody reads and whose dropped blocks are zero.

    Runs in float64 where the model can, so that only a wrong cut makes a difference, else in float32.

    Args:
        parent: The uncut module.
        cut: The cut module, *before* anything was folded or re-estimated; or what makes it in a given precision, when
            the parent's copy has been dropped again.
        graph: Channels of the parent.
        keep: Which channels stay.
        example_input: Tensor or tuple of positional arguments; only shapes matter, random values are used.
        select_outputs: As in :func:`yolo_prune.graph.trace_groups`.
        dropped: Residual blocks that went as a whole.

    Returns:
        The outcome; ``exact`` is the verdict.

    Raises:
        EquivalenceError: The cut model does not run, or returns other shapes.
    """
    try:
        return _prove(parent, cut, graph, keep, example_input, select_outputs, dropped, torch.float64)
    except EquivalenceError:
        raise
    except RuntimeError:  # a module makes float32 tensors of its own
        return _prove(parent, cut, graph, keep, example_input, select_outputs, dropped, torch.float32)


def _prove(
    parent: nn.Module,
    cut: nn.Module | Callable[[torch.dtype], nn.Module],
    graph: ChannelGraph,
    keep: BoolArray,
    example_input: Any,
    select: OutputSelector | None,
    dropped: Sequence[str],
    dtype: torch.dtype,
) -> Equivalence:
    args = random_arguments(example_input, dtype)
    with torch.no_grad():
        zeroed = silence_(zero_removed_(copy_as(parent, dtype), graph, keep), dropped)
        expected = selected_outputs(zeroed(*args), select)
        del zeroed
        try:
            smaller = copy_as(cut, dtype, own=False) if isinstance(cut, nn.Module) else cut(dtype)
            got = selected_outputs(smaller(*args), select)
        except FAILURES as error:
            raise EquivalenceError(f"the cut model does not run: {error}") from error
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
        raise EquivalenceError(
            f"the cut model returns shapes {[tuple(t.shape) for t in got]}, "
            f"the parent {[tuple(t.shape) for t in expected]}."
        )
    return compare_tensors(expected, got, dtype)


def copy_as(module: nn.Module, dtype: torch.dtype, *, own: bool = True) -> nn.Module:
    """Return a copy on the CPU in evaluation mode whose floating tensors have ``dtype``.

    Without ``own`` it may share parameters with the module: for running it, not for writing to it.
    """

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(device="cpu", dtype=dtype if tensor.is_floating_point() else tensor.dtype, copy=own)

    return copy_with(module, convert).eval()


def random_arguments(example_input: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return random positional arguments of the example's shapes; integers stay as they are."""
    generator = torch.Generator().manual_seed(0)

    def fresh(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.cpu()
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = pytree.tree_map_only(Tensor, fresh, example_input)
    return inputs if isinstance(inputs, tuple) else (inputs,)


def compare_tensors(expected: list[Tensor], got: list[Tensor], dtype: torch.dtype) -> Equivalence:
    """Compare two lists of tensors of equal shapes, each at its own scale.

    Infinities and NaN must stand in the same places; a tensor without any finite value proves nothing and fails.
    """
    relative = 1e-11 if dtype is torch.float64 else 1e-4
    rows = []
    for a, b in ((a.double(), b.double()) for a, b in zip(expected, got, strict=True) if a.numel()):
        finite = a.isfinite() & b.isfinite()
        same = torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()) and bool(finite.any())
        difference = float((a - b)[finite].abs().max()) if same else float("inf")
        rows.append((difference, float(a[finite].abs().max()) if same else 0.0))
    largest = max((scale for _, scale in rows), default=0.0)
    graded = [(d, s, relative * max(s, 1e-4 * largest, 1e-6)) for d, s in rows]
    worst = max(graded, key=lambda row: (row[0] / row[2], row[1]), default=(0.0, 0.0, relative))
    return Equivalence(*worst, str(dtype).removeprefix("torch."), worst[0] <= worst[2])


def selected_outputs(outputs: Any, select: OutputSelector | None) -> list[Tensor]:
    """Return the tensors of fixed width in what a model returned."""
    chosen = select(outputs) if select else outputs
    return [leaf for leaf in pytree.tree_leaves(chosen) if isinstance(leaf, Tensor)]
