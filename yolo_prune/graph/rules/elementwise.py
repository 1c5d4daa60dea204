"""Operators that work element by element, over positions, or on one channel at a time."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor

from yolo_prune.graph.labels import compact, varying_dims
from yolo_prune.graph.trace import Call, Tracer

_SPATIAL = re.compile(r"(\d)d")


def pointwise(tracer: Tracer, call: Call) -> None:
    """Elementwise maths: unite the channels of the operands; a constant of the same width freezes them."""
    if not call.outputs:
        return
    shape = call.outputs[0].shape
    labels, constants = [], []
    for tensor in call.tensors:
        label = tracer.label(tensor)
        if label is not None:
            labels.append(label)
        elif tensor.numel() > 1:
            constants.append(tensor)
    merged: Tensor | None = None
    for label in labels:
        if len(labels) > 1 and _is_gate(label, labels):
            tracer.freeze(label, "is one channel that scales many")
        else:
            merged = label if merged is None else _merge(tracer, merged, label)
    for constant in constants:
        view = tracer.parameter(constant)
        if view is not None:
            tracer.freeze_parameter(view, constant, "is a parameter of several dimensions used elementwise")
        if merged is not None:
            _freeze_against_constant(tracer, merged, constant)
    if merged is not None:
        store(tracer, call, merged.expand(shape))


def _merge(tracer: Tracer, left: Tensor, right: Tensor) -> Tensor:
    tracer.unite(left, right)
    shape = np.broadcast_shapes(left.shape, right.shape)  # torch's own imports its compiler
    left, right = compact(left), compact(right)
    return torch.where(left == 0, right, left).expand(shape)


def _is_gate(label: Tensor, labels: list[Tensor]) -> bool:
    """Tell whether an operand is broadcast along a dimension in which another operand's channels vary."""
    for other in labels:
        offset = other.dim() - label.dim()
        for dim in varying_dims(other) if other is not label else ():
            if dim < offset or label.shape[dim - offset] == 1:
                return True
    return False


def _freeze_against_constant(tracer: Tracer, label: Tensor, constant: Tensor) -> None:
    """Freeze channels that vary along a dimension in which the constant has a width too."""
    offset = label.dim() - constant.dim()
    if any(dim >= offset and constant.shape[dim - offset] > 1 for dim in varying_dims(label)):
        tracer.freeze(label, "meets a constant of the same width")


def store(tracer: Tracer, call: Call, label: Tensor) -> None:
    """Attach ``label`` to the result; a result written in place must agree with what was there."""
    out = call.outputs[0]
    if not call.in_place:
        tracer.set_label(out, label)
        return
    own = tracer.label(call.args[0])
    if own is not None:
        tracer.unite(own, label)
    elif (
        tracer.parameter(out) is not None or out.untyped_storage().nbytes() > out.numel() * out.element_size()
    ):
        tracer.freeze(label, "is written into a part of another tensor")
    else:
        tracer.set_label(out, label)


def copy(tracer: Tracer, call: Call) -> None:
    """``copy_``: the target takes the source's channels."""
    source = tracer.label(call.args[1])
    target = tracer.label(call.args[0])
    if source is not None:
        store(tracer, call, source.expand(call.args[0].shape))
    elif target is not None:
        tracer.freeze(target, "is overwritten by a constant")
    if source is None and (view := tracer.parameter(call.args[1])) is not None:
        tracer.freeze_parameter(view, call.args[1], "is copied as an activation")


def first_operand(tracer: Tracer, call: Call) -> None:
    """An activation with tensors of its own beside its input (random slopes, a buffer for the backward pass)."""
    label = tracer.label(call.args[0])
    if label is not None:
        store(tracer, call, label)


def gated_half(tracer: Tracer, call: Call) -> None:
    """``glu``: the first half times the sigmoid of the second, so that both lose the same channels."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call, "is used as an activation")
        return
    first, second = label.chunk(2, int(call.args[1]) if len(call.args) > 1 else -1)
    tracer.unite(first, second)
    tracer.set_label(call.outputs[0], first)


def channelwise(tracer: Tracer, call: Call) -> None:
    """Pooling and resizing: every output channel comes from the input channel of the same index."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call, "is used as an activation")
        return
    spatial = int(_SPATIAL.findall(call.name)[0])
    leading = label.shape[: label.dim() - spatial]
    varying = varying_dims(label)
    if varying and min(varying) >= len(leading):
        tracer.freeze(label, f"has its channels mixed like positions by '{call.name}'")
        return
    small = compact(label)
    rows = small.expand(*leading, *small.shape[len(leading) :]).reshape(math.prod(leading), -1)
    first = tracer.one_per_row(rows)
    for out in call.outputs:
        tracer.set_label(out, first.reshape(*leading, *[1] * (out.dim() - len(leading))).expand(out.shape))


def sampled(tracer: Tracer, call: Call) -> None:
    """``grid_sampler``: the first operand's channels pass, the coordinates stay."""
    grid = tracer.label(call.args[1])
    if grid is not None:
        tracer.freeze(grid, "is a sampling position")
    channelwise(tracer, call)


def named_dims(call: Call, label: Tensor, position: int, default: list[int] | None = None) -> list[int]:
    """Return the dimensions that a call names in its argument at ``position``; the default: all of them."""
    dims = call.args[position] if len(call.args) > position else call.kwargs.get("dim")
    if dims is None or dims == []:
        dims = list(range(label.dim())) if default is None else default
    named = dims if isinstance(dims, (list, tuple)) else [dims]
    return [int(dim) % max(label.dim(), 1) for dim in named]


def reduce(tracer: Tracer, call: Call, position: int = 1) -> None:
    """Mean, sum, max: keep the channel over positions, unite channels over stacked maps, freeze over channels."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call, "is used as an activation")
        return
    dims = named_dims(call, label, position)
    varying = set(varying_dims(label))
    if varying & set(dims):
        if not varying - set(dims):
            tracer.freeze(label, f"is summed over by '{call.name}'")
            return
        for dim in sorted(varying & set(dims)):  # e.g. a sum of stacked maps
            label = fold(tracer, label, dim)
    keep = call.outputs[0].dim() == label.dim()
    reduced = label
    for dim in sorted(dims, reverse=True):
        reduced = reduced.narrow(dim, 0, 1) if keep else reduced.select(dim, 0)
    for out in call.outputs:
        if out.shape == reduced.shape:
            tracer.set_label(out, reduced)
        else:
            tracer.freeze(label, f"is summed over by '{call.name}'")


def fold(tracer: Tracer, label: Tensor, dim: int) -> Tensor:
    """Unite what stands in the same place along ``dim``, and return the label of the first everywhere."""
    first = label.narrow(dim, 0, 1)
    tracer.unite(label, first)
    return first.expand(label.shape)


def maximum(tracer: Tracer, call: Call) -> None:
    """``max``/``min``: of two tensors or over dimensions."""
    two = len(call.args) > 1 and isinstance(call.args[1], Tensor)
    (pointwise if two else reduce)(tracer, call)


def ignore(tracer: Tracer, call: Call) -> None:
    """Operators that read only shapes or make fresh tensors."""
