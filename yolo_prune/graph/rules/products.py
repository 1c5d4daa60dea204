"""Products of two activations, attention among them: what is summed over, and heads that go as a whole."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from yolo_prune.graph.atoms import IntArray
from yolo_prune.graph.labels import varying_dims
from yolo_prune.graph.trace import Call, Tracer

SCALED = "is scaled by the width of an attention head"
_NONE: IntArray = np.zeros(0, dtype=np.int64)


def matmul(tracer: Tracer, call: Call) -> None:
    """``bmm`` of two activations."""
    left, right = call.args[-2:]
    product(tracer, call, left, right)
    if call.name == "baddbmm" and (label := tracer.label(call.args[0])) is not None:
        tracer.freeze(label, "is added to a product")


def product(tracer: Tracer, call: Call, left: Tensor, right: Tensor) -> None:
    """Product over a contracted dimension: what is summed together is united; the free dimensions stay."""
    for tensor in (left, right):
        if tracer.label(tensor) is None and (view := tracer.parameter(tensor)) is not None:
            tracer.freeze_parameter(view, tensor, "is a weight used as an activation")
    a, b = (_label_or_none(tracer, tensor) for tensor in (left, right))
    atoms = _unite_product(tracer, call, a, b)
    tracer.use("matmul", "", float(call.outputs[0].numel() * left.shape[-1]), None, None, atoms[atoms > 0])


def _label_or_none(tracer: Tracer, tensor: Tensor) -> Tensor:
    label = tracer.label(tensor)
    return torch.zeros((), dtype=torch.int64).expand(tensor.shape) if label is None else label


def _unite_product(tracer: Tracer, call: Call, a: Tensor, b: Tensor) -> IntArray:
    """Unite what a product sums over, label its result, and return the atoms that its cost is proportional to."""
    out = call.outputs[0]
    if (heads := whole_heads(tracer, a, b)) is not None:
        tracer.set_label(out, heads.expand(out.shape))
        return np.asarray(heads.reshape(-1).numpy())
    varying = varying_dims(a), varying_dims(b)
    inner = a.dim() - 1 in varying[0] or b.dim() - 2 in varying[1]
    rows, columns = a.dim() - 2 in varying[0], b.dim() - 1 in varying[1]
    if (inner and (rows or columns)) or (rows and columns):
        tracer.freeze_call(call, "is multiplied in two channel dimensions")
    elif inner:
        return _contract(tracer, a, b.transpose(-1, -2))
    elif rows or columns:
        label = (a[..., :, :1] if rows else b[..., :1, :]).expand(out.shape)
        tracer.set_label(out, label)
        return np.asarray(label.select(-1 if rows else -2, 0).reshape(-1).numpy())
    elif varying[0] or varying[1]:
        return _unite_batches(tracer, call, a, b)
    elif bool(a.any()) and bool(b.any()):
        tracer.freeze_call(call, "is multiplied with another channel")
    return _NONE


def _contract(tracer: Tracer, queries: Tensor, keys: Tensor) -> IntArray:
    """Unite the last dimensions of queries and keys, over which a product sums, and return their atoms."""
    summed = queries[..., 0, :]
    tracer.unite(summed, keys[..., 0, :])
    tracer.found.contracted.append(np.unique(summed.numpy()))
    return np.asarray(summed.reshape(-1).numpy())


def whole_heads(tracer: Tracer, *labels: Tensor) -> Tensor | None:
    """Unite what belongs to one head, where heads may go as a whole, and return one label of each.

    Heads may where code lets their number follow the width: see :meth:`Tracer.shorter_dims`. What all of them share
    (the keys of attention with several queries) stays as wide as it is.

    Args:
        tracer: It holds the labels.
        labels: Of what is multiplied, shape (..., positions, width) or turned.

    Returns:
        Shape (..., 1, 1); None where no heads may go, and then nothing has happened.
    """
    whole = [label for label in labels if any(dim < label.dim() - 2 for dim in tracer.shorter_dims(label))]
    if not whole:
        return None
    heads = whole[0][..., :1, :1]
    for label in labels:
        own = label[..., :1, :1]
        if varying_dims(own) or not bool(label.any()):
            tracer.unite(label, own)
            tracer.unite(own, heads)
        else:
            tracer.freeze(label, "is shared by heads that go as a whole")
    return heads


def _unite_batches(tracer: Tracer, call: Call, a: Tensor, b: Tensor) -> IntArray:
    """A product of positions for every channel: each goes its own way; a matrix of fixed width freezes its partner."""
    out = call.outputs[0]
    left, right = a[..., :1, :1], b[..., :1, :1]
    tracer.unite(left, right)
    label = torch.where(left == 0, right, left)
    tracer.set_label(out, label.expand(out.shape))
    return np.asarray(label.reshape(-1).numpy())


def attention(tracer: Tracer, call: Call) -> None:
    """Fused attention: two products with softmax between them; scaled by their width, heads go as a whole or not."""
    operands = call.args[:3]
    query, key, value = operands
    masks = [tensor for tensor in call.tensors if not any(tensor is one for one in operands)]
    macs = float(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    labels = [_label_or_none(tracer, tensor) for tensor in operands]
    by_position = any(label.dim() - 2 in varying_dims(label) for label in labels)
    by_head = any(tensor.dim() > 2 and tensor.shape[-3] > 1 for tensor in masks)
    unequal = any(tensor.dim() < 3 or tensor.shape[-3] not in (1, query.shape[-3]) for tensor in operands)
    understood = not (by_position or by_head or unequal or any(map(tracer.known, masks)))
    out, passed = call.outputs[0], labels[2][..., :1, :]
    if understood and (heads := whole_heads(tracer, *labels)) is not None:
        tracer.use("matmul", "", macs, None, None, np.asarray(heads.reshape(-1).numpy()))
        tracer.set_label(out, heads.expand(out.shape))
    elif understood:
        for label in labels[:2] if call.kwargs.get("scale") is None else ():
            tracer.freeze(label, SCALED)
        widths = np.concatenate([_contract(tracer, *labels[:2]), passed.reshape(-1).numpy()])
        tracer.use("matmul", "", macs, None, None, widths if widths.all() else _NONE)
        tracer.set_label(out, passed.expand(out.shape))
    else:
        tracer.freeze_call(call, "goes into attention with a mask or shared keys that no rule follows")
        tracer.use("matmul", "", macs, None, None, _NONE)
