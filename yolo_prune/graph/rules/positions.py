"""Operators along some dimensions: where those are positions every channel goes its own way, else they freeze."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from yolo_prune.graph.labels import per_channel, rows_along, varying_dims
from yolo_prune.graph.rules import elementwise
from yolo_prune.graph.rules.elementwise import named_dims
from yolo_prune.graph.trace import Call, Tracer


def along_dim(tracer: Tracer, call: Call, position: int = 1) -> None:
    """Softmax, cumulative sums, sorting, Fourier transforms: over positions they keep the channel."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call, "is used as an activation")
        return
    dims = named_dims(call, label, position, default=[-1])
    varying = set(varying_dims(label))
    over = varying & set(dims)
    if over and (over == varying or not tracer.shorter_dims(label)):
        tracer.freeze(label, f"is normalised over by '{call.name}'")
        return
    for dim in over:  # e.g. over stacked maps: what lies above each other goes together
        label = elementwise.fold(tracer, label, dim)
    for dim in dims:
        label = label.narrow(dim, 0, 1)
    for out in call.outputs:
        tracer.set_label(out, label.expand(out.shape))


def rolled(tracer: Tracer, call: Call) -> None:
    """``roll``: moves positions; rolled channels would change places with those that are left."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call, "is used as an activation")
        return
    dims = named_dims(call, label, 2, default=list(range(label.dim())))
    if set(dims) & set(varying_dims(label)):
        tracer.freeze(label, "is rolled along its channels")
    tracer.set_label(call.outputs[0], call.func(label, *call.args[1:], **call.kwargs))


def indexed(tracer: Tracer, call: Call) -> None:
    """Indexing by tensors: a choice of positions keeps the channel, a choice of channels fixes them in code."""
    label = tracer.label(call.args[0])
    single = call.name == "index_select"
    chosen: list[Any] = [None] * int(call.args[1]) + [call.args[2]] if single else list(call.args[1])
    for index in chosen:
        if isinstance(index, Tensor) and (own := tracer.label(index)) is not None:
            tracer.freeze(own, "is used as an index")
    if label is None:
        tracer.freeze_call(call, "is used as an activation")
        return
    dims, dim = set(), 0
    for index in chosen:
        width = index.dim() if isinstance(index, Tensor) and index.dtype is torch.bool else 1
        dims |= set(range(dim, dim + width)) if index is not None else set()
        dim += width
    if dims & set(varying_dims(label)):
        tracer.freeze(label, f"is picked by index ('{call.name}')")
    tracer.set_label(call.outputs[0], call.func(label, *call.args[1:], **call.kwargs))


def written_at(tracer: Tracer, call: Call) -> None:
    """``x[positions] = values``: rows that are put in their places, as regions of several maps are."""
    target, chosen, values = call.args[:3]
    label, own = tracer.label(values), tracer.label(target)
    indexed = sum(index.dim() if index.dtype is torch.bool else 1 for index in chosen if index is not None)
    rows = values.dim() - (target.dim() - indexed)  # dimensions of the values that count the chosen places
    if label is None or any(index is None for index in chosen) or rows < 0:
        tracer.freeze_call(call, "is written at chosen positions")
        return
    if values.numel():
        label = label.expand(values.shape)
    if set(varying_dims(label)) & set(range(rows)) or (
        own is not None and set(varying_dims(own)) & set(range(indexed))
    ):
        tracer.freeze_call(call, "is written at chosen channels")
        return
    elementwise.store(tracer, call, label[(0,) * rows].expand(target.shape))


def gathered(tracer: Tracer, call: Call) -> None:
    """``gather``: positions that each channel chose for itself, for example where it is largest."""
    x, dim, index = call.args[:3]
    label, own = tracer.label(x), tracer.label(index)
    dim = int(dim) % max(x.dim(), 1)
    if label is None or own is None or dim in (*varying_dims(label), *varying_dims(own)):
        tracer.freeze_call(call, "is gathered by fixed indices")
        return
    first, other = (found.narrow(dim, 0, 1).expand(call.outputs[0].shape) for found in (label, own))
    tracer.unite(first, other)
    tracer.set_label(call.outputs[0], first)


def windows(tracer: Tracer, call: Call) -> None:
    """``Tensor.unfold``: windows of positions."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call, "is used as an activation")
        return
    if int(call.args[1]) % label.dim() in varying_dims(label):
        tracer.freeze(label, "is taken in windows along its channels")
    tracer.set_label(call.outputs[0], call.func(label, *call.args[1:]))


def unfolded(tracer: Tracer, call: Call) -> None:
    """``nn.Unfold``: the pixels of a window become as many channels, which come from one."""
    label = tracer.label(call.args[0])
    if label is None or label.dim() != 4 or set(varying_dims(label)) - {1}:
        tracer.freeze_call(call, "is unfolded")
        return
    out = call.outputs[0]
    first = rows_along(label, 1)[0].repeat_interleave(math.prod(call.args[1]))
    tracer.set_label(out, first[None, :, None].expand(out.shape))


def folded(tracer: Tracer, call: Call) -> None:
    """``nn.Fold``: the channels that become the pixels of one go together."""
    label, out = tracer.label(call.args[0]), call.outputs[0]
    if label is None or label.dim() != 3 or set(varying_dims(label)) - {1}:
        tracer.freeze_call(call, "is folded")
        return
    rows = rows_along(label, 1)[0].reshape(out.shape[1], -1)
    tracer.unite_rows(rows)
    tracer.set_label(out, rows[:, 0].reshape(1, -1, 1, 1).expand(out.shape))


def unpooled(tracer: Tracer, call: Call) -> None:
    """``max_unpool``: every channel goes back to the positions that its own indices name."""
    label, own = tracer.label(call.args[0]), tracer.label(call.args[1])
    if label is None or own is None:
        tracer.freeze_call(call, "is unpooled by fixed indices")
        return
    tracer.unite(label, own)
    for dim in range(label.dim() - int(call.name[-2]), label.dim()):
        label = label.narrow(dim, 0, 1)
    tracer.set_label(call.outputs[0], label.expand(call.outputs[0].shape))


def regions(tracer: Tracer, call: Call) -> None:
    """Pooling of boxes: every output channel comes from the input channel of the same index."""
    label, boxes = tracer.label(call.args[0]), tracer.label(call.args[1])
    if boxes is not None:
        tracer.freeze(boxes, "is a sampling position")
    if label is None or set(varying_dims(label)) - {1}:
        tracer.freeze_call(call, "is pooled by boxes")
        return
    for out in call.outputs:
        shape = (
            out.shape if len(out) else torch.Size((1, *out.shape[1:]))
        )  # as of a region that might be there
        tracer.set_label(out, per_channel(rows_along(label, 1)[0], 1, shape))
