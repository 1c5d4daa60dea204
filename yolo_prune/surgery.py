"""The only file that resizes a Parameter: cut a model by a plan, and prove that the cut is exact."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from yolo_prune.errors import EquivalenceError, PlanError
from yolo_prune.graph.atoms import BoolArray
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import ModuleRules, OutputSelector, rule_for
from yolo_prune.plan import PrunePlan

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass(frozen=True)
class Equivalence:
    """Outcome of the proof that a cut is exact.

    Attributes:
        max_difference: Largest absolute difference between the outputs of the zeroed and of the cut model.
        scale: Largest absolute output of the zeroed model.
        tolerance: Largest difference allowed, in the outputs' unit.
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
    cuts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
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
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    owners[id(tensor)].append((owner, key))
    touched = set()
    for name, by_dim in cuts.items():
        fresh = _sliced(tensors[name], by_dim)
        for owner, key in owners[id(tensors[name])]:
            (owner._parameters if isinstance(fresh, nn.Parameter) else owner._buffers)[key] = fresh
            touched.add(owner)
    for owner in touched:
        _sync_widths(owner)
    for owner in module.modules():
        if (rule := rule_for(rules or {}, owner)) is not None:
            rule.sync(owner)
    return module


def _sliced(tensor: Tensor, by_dim: dict[int, Tensor]) -> Tensor:
    """Return a smaller copy, a Parameter when the source is one."""
    data = tensor.detach()
    for dim, indices in by_dim.items():
        data = data.index_select(dim, indices.to(data.device))
    data = data.contiguous()
    return (
        nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    )


def _sync_widths(owner: nn.Module) -> None:
    """Set the width attributes of PyTorch's own layers from their tensors."""
    weight = getattr(owner, "weight", None)
    if isinstance(owner, _CONVOLUTIONS) and isinstance(weight, Tensor):
        makes, reads = weight.shape[:2] if not isinstance(owner, _TRANSPOSED) else weight.shape[1::-1]
        if owner.groups > 1:
            per_group = owner.out_channels // owner.groups
            owner.groups = weight.shape[0] // (1 if isinstance(owner, _TRANSPOSED) else per_group)
            makes, reads = owner.groups * per_group, owner.groups
        owner.in_channels, owner.out_channels = int(reads), int(makes)
    elif isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = (int(size) for size in owner.weight.shape)
    elif hasattr(owner, "num_features"):
        vector = weight if isinstance(weight, Tensor) else owner.running_mean
        owner.num_features = int(vector.shape[0])


def zero_removed_(module: nn.Module, graph: ChannelGraph, keep: BoolArray) -> nn.Module:
    """Zero, in place, every weight that reads a removed channel: what the cut model must compute, at full size.

    A channel that is summed over by a product of two activations has no weight that reads it; its producers are
    zeroed instead.

    Args:
        module: The uncut module.
        graph: Its channels.
        keep: Which channels stay, shape (channels,).
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for axis in graph.axes:
            channels = graph.axis_channels(axis)
            gone = ~keep[channels]
            if axis.role != "in":
                gone = gone & graph.contracted[channels]
                if axis.name.endswith(("running_mean", "running_var")):
                    continue
            if gone.any():
                indices = torch.from_numpy(np.flatnonzero(gone))
                tensors[axis.name].index_fill_(axis.dim, indices.to(tensors[axis.name].device), 0.0)
    return module


def prove_equivalence(
    parent: nn.Module,
    cut: nn.Module,
    graph: ChannelGraph,
    keep: BoolArray,
    example_input: Any,
    *,
    select_outputs: OutputSelector | None = None,
) -> Equivalence:
    """Compare the cut model with the parent whose removed channels nobody reads.

    Runs in float64 where the model can, so that only a wrong cut makes a difference, else in float32.

    Args:
        parent: The uncut module.
        cut: The cut module, *before* anything was folded or re-estimated.
        graph: Channels of the parent.
        keep: Which channels stay.
        example_input: Tensor or tuple of positional arguments; only shapes matter, random values are used.
        select_outputs: As in :func:`yolo_prune.graph.trace_groups`.

    Returns:
        The outcome; ``exact`` is the verdict.

    Raises:
        EquivalenceError: The cut model does not run, or returns other shapes.
    """
    zeroed = zero_removed_(copy.deepcopy(parent), graph, keep)
    try:
        return _compare(zeroed, copy.deepcopy(cut), example_input, select_outputs, torch.float64)
    except EquivalenceError:
        raise
    except RuntimeError:  # a module makes float32 tensors of its own
        return _compare(zeroed, copy.deepcopy(cut), example_input, select_outputs, torch.float32)


def _compare(
    zeroed: nn.Module, cut: nn.Module, example_input: Any, select: OutputSelector | None, dtype: torch.dtype
) -> Equivalence:
    generator = torch.Generator().manual_seed(0)

    def fresh(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.cpu()
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = pytree.tree_map_only(Tensor, fresh, example_input)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        expected = _tensors(zeroed.cpu().to(dtype).eval()(*args), select)
        try:
            got = _tensors(cut.cpu().to(dtype).eval()(*args), select)
        except (RuntimeError, ValueError, IndexError) as error:
            raise EquivalenceError(f"the cut model does not run: {error}") from error
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
        raise EquivalenceError(
            f"the cut model returns shapes {[tuple(t.shape) for t in got]}, the parent {[tuple(t.shape) for t in expected]}."
        )
    pairs = [(a.double(), b.double()) for a, b in zip(expected, got, strict=True) if a.numel()]
    difference = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    scale = max((float(a.abs().max()) for a, _ in pairs), default=0.0)
    tolerance = max(scale, 1e-3) * (1e-9 if dtype is torch.float64 else 1e-4)
    return Equivalence(
        difference, scale, tolerance, str(dtype).removeprefix("torch."), difference <= tolerance
    )


def _tensors(outputs: Any, select: OutputSelector | None) -> list[Tensor]:
    chosen = select(outputs) if select else outputs
    return [leaf for leaf in pytree.tree_leaves(chosen) if isinstance(leaf, Tensor)]


def blame(
    parent: nn.Module,
    cut: nn.Module,
    graph: ChannelGraph,
    keep: BoolArray,
    example_input: Any,
) -> str:
    """Return the first module, in execution order, that fails in the cut model or makes it differ.

    Args:
        parent: The uncut module.
        cut: The cut module.
        graph: Channels of the parent.
        keep: Which channels stay.
        example_input: As for the proof.

    Returns:
        Dotted module name, empty when none can be named.
    """
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    records = [
        _record_sums(model, args)
        for model in (zero_removed_(copy.deepcopy(parent), graph, keep), copy.deepcopy(cut))
    ]
    for (name, expected), other in zip(records[0], [*records[1], *[None] * len(records[0])], strict=False):
        if other is None or other[0] != name:
            return name
        same_shape = expected.shape == other[1].shape
        if same_shape and not torch.allclose(
            expected, other[1], rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        ):
            return name
    return ""


def _record_sums(model: nn.Module, args: tuple[Any, ...]) -> list[tuple[str, Tensor]]:
    """Run a model and keep every module's tensor result until it fails."""
    found: list[tuple[str, Tensor]] = []
    for name, module in model.cpu().float().eval().named_modules():

        def keep_output(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
            if isinstance(out, Tensor) and out.is_floating_point():
                found.append((name, out.clone()))

        module.register_forward_hook(keep_output)
    with torch.no_grad():
        try:
            model(*args)
        except (RuntimeError, ValueError, IndexError):
            return found
    return found
