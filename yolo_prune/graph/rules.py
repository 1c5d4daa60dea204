"""What each operator means for channels: a dict from operator name to rule.

A rule receives the tracer and the call after the operator ran. Whatever has no rule freezes the channels that reach
it, so a missing rule costs pruning, never correctness. Add one with ``OPERATORS["name"] = rule``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from yolo_prune.graph.atoms import Axis
from yolo_prune.graph.trace import Call, ParameterView, Tracer

Operator = Callable[[Tracer, Call], None]
_NONE = np.zeros(0, dtype=np.int64)


def varying_dims(label: Tensor) -> list[int]:
    """Return the dimensions along which the channel changes."""
    return [
        dim
        for dim, size in enumerate(label.shape)
        if size > 1 and not torch.equal(label.narrow(dim, 1, size - 1), label.narrow(dim, 0, size - 1))
    ]


def _pointwise(tracer: Tracer, call: Call) -> None:
    """Elementwise maths: unite the channels of the operands; a constant of the same width freezes them."""
    out = call.outputs[0]
    shape = out.shape
    merged: Tensor | None = None
    constants, labels = [], []
    for tensor in call.tensors:
        label = tracer.label(tensor)
        if label is None:
            if tensor.numel() > 1:
                constants.append(tensor)
            continue
        labels.append(label)
    for label in labels:
        if _is_gate(label, labels):
            tracer.freeze(label, "is one channel that scales many")
            continue
        label = label.expand(shape)
        if merged is None:
            merged = label
        else:
            tracer.unite(merged, label)
            merged = torch.where(merged == 0, label, merged)
    for constant in constants:
        view = tracer.parameter(constant)
        if view is not None:
            tracer.freeze_parameter(view, constant, "is a parameter of several dimensions used elementwise")
        if merged is not None:
            _freeze_against_constant(tracer, merged, constant)
    if merged is not None:
        _store(tracer, call, merged)


def _is_gate(label: Tensor, labels: list[Tensor]) -> bool:
    """Tell whether an operand is broadcast along a dimension in which another operand's channels vary."""
    for other in labels:
        offset = other.dim() - label.dim()
        for dim in varying_dims(other) if other is not label else ():
            if other.shape[dim] > 1 and (dim < offset or label.shape[dim - offset] == 1):
                return True
    return False


def _freeze_against_constant(tracer: Tracer, label: Tensor, constant: Tensor) -> None:
    """Freeze channels that vary along a dimension in which the constant has a width too."""
    offset = label.dim() - constant.dim()
    if any(dim >= offset and constant.shape[dim - offset] > 1 for dim in varying_dims(label)):
        tracer.freeze(label, "meets a constant of the same width")


def _store(tracer: Tracer, call: Call, label: Tensor) -> None:
    """Attach ``label`` to the result, writing through views when the operator works in place."""
    out = call.outputs[0]
    if not call.in_place:
        tracer.set_label(out, label)
        return
    own = tracer.label(call.args[0])
    if own is not None:
        if not torch.equal(own, label):
            own.copy_(label)
    elif (
        tracer.parameter(out) is not None or out.untyped_storage().nbytes() > out.numel() * out.element_size()
    ):
        tracer.freeze(label, "is written into a part of another tensor")
    else:
        tracer.set_label(out, label.clone())


def _copy(tracer: Tracer, call: Call) -> None:
    """``copy_``: the target takes the source's channels."""
    source = tracer.label(call.args[1])
    target = tracer.label(call.args[0])
    if source is None:
        if target is not None:
            tracer.freeze(target, "is overwritten by a constant")
        return
    _store(tracer, call, source.expand(call.args[0].shape))


def _move(tracer: Tracer, call: Call) -> None:
    """Data movement: do the same to the labels."""
    label = tracer.label(call.args[0])
    if label is None:
        _move_parameter(tracer, call)
        return
    moved = call.func(label, *call.args[1:], **call.kwargs)
    for out, new in zip(call.outputs, [moved] if isinstance(moved, Tensor) else list(moved), strict=True):
        tracer.set_label(out, new)


def _move_parameter(tracer: Tracer, call: Call) -> None:
    """Follow transposes of a weight; any other view of it makes it unknown, which freezes its readers later."""
    view = tracer.parameter(call.args[0])
    source = call.args[0]
    if view is None:
        return
    if call.name in {"t", "transpose", "permute"}:
        marked = torch.empty(tuple(range(1, source.dim() + 1)), device="meta")
        order = [size - 1 for size in call.func(marked, *call.args[1:]).shape]
        tracer.set_parameter(call.outputs[0], ParameterView(view.name, tuple(view.dims[i] for i in order)))
    elif call.name in {"detach", "alias", "clone", "lift_fresh", "_to_copy"}:
        tracer.set_parameter(call.outputs[0], view)
    else:
        tracer.freeze_parameter(view, source, f"is taken apart by operator '{call.name}'")


def _slice(tracer: Tracer, call: Call) -> None:
    """Slices and selections along channels fix indices in code: freeze; elsewhere they are data movement."""
    label = tracer.label(call.args[0])
    if label is not None and call.outputs and call.outputs[0].shape != label.shape:
        dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
        if dim % label.dim() in varying_dims(label) and not tracer.may_split:
            tracer.freeze(label, f"is sliced by index ('{call.name}')")
    _move(tracer, call)


def _slice_scatter(tracer: Tracer, call: Call) -> None:
    tracer.freeze_call(call, f"is rearranged by '{call.name}'")


def _split(tracer: Tracer, call: Call) -> None:
    """``chunk``/``split``: the pieces are free in which channels they keep, tied in how many."""
    label = tracer.label(call.args[0])
    _move(tracer, call)
    if label is None:
        return
    dim = (call.args[2] if len(call.args) > 2 else call.kwargs.get("dim", 0)) % label.dim()
    if dim not in varying_dims(label):
        return
    if call.name == "split_with_sizes" and not tracer.may_split:
        tracer.freeze(label, "is split by fixed sizes")
        return
    by_size: dict[int, list[Tensor]] = {}
    for out in call.outputs:
        piece = tracer.label(out)
        if piece is not None:
            by_size.setdefault(piece.shape[dim], []).extend(_rows(piece, dim))
    tracer.add_pieces([parts for parts in by_size.values()])


def _rows(label: Tensor, dim: int) -> list[Tensor]:
    """Take a label tensor apart along every other dimension in which channels vary (attention heads)."""
    rows = [label]
    for other in varying_dims(label):
        if other != dim:
            rows = [piece for row in rows for piece in row.split(1, dim=other)]
    return [row.movedim(dim, 0).reshape(row.shape[dim], -1)[:, 0] for row in rows]


def _view(tracer: Tracer, call: Call) -> None:
    """Reshape: merging channels with other dimensions is data movement, splitting them needs a module rule."""
    label = tracer.label(call.args[0])
    if label is None:
        if tracer.parameter(call.args[0]) is not None and call.outputs[0].shape == call.args[0].shape:
            tracer.set_parameter(call.outputs[0], tracer.parameter(call.args[0]))  # type: ignore[arg-type]
        else:
            _move_parameter(tracer, call)
        return
    if not label.is_contiguous():
        label = label.contiguous() if call.name != "view" else label
    try:
        new = label.view(call.outputs[0].shape)
    except RuntimeError:
        new = label.reshape(call.outputs[0].shape)
    tracer.set_label(call.outputs[0], new)
    _check_reshape(tracer, label, new)


def _check_reshape(tracer: Tracer, before: Tensor, after: Tensor) -> None:
    varying = set(varying_dims(before))
    for sources, targets in _reshape_blocks(before.shape, after.shape):
        if not varying & set(sources) or len(set(varying_dims(after)) & set(targets)) <= 1:
            continue
        if len(sources) > 1 or not tracer.may_split:
            tracer.freeze(before, "has its channels split by a reshape")
            return
        rows = _rows(after, targets[-1])
        tracer.add_pieces([rows])


def _reshape_blocks(before: torch.Size, after: torch.Size) -> list[tuple[list[int], list[int]]]:
    """Match dimensions of two shapes in the smallest blocks of equal product, leaving out dimensions of size 1."""
    left = [(dim, size) for dim, size in enumerate(before) if size != 1]
    right = [(dim, size) for dim, size in enumerate(after) if size != 1]
    blocks = []
    while left and right:
        sources, targets = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(s for _, s in sources)) != (b := math.prod(s for _, s in targets)):
            (sources if a < b else targets).append((left if a < b else right).pop(0))
        blocks.append(([dim for dim, _ in sources], [dim for dim, _ in targets]))
    return blocks


def _cat(tracer: Tracer, call: Call) -> None:
    """Concatenation and stacking: a part without channels contributes fixed ones."""
    labels = [
        label if (label := tracer.label(tensor)) is not None else torch.zeros(tensor.shape, dtype=torch.int64)
        for tensor in call.args[0]
    ]
    for tensor in call.args[0]:
        if (view := tracer.parameter(tensor)) is not None and tracer.label(tensor) is None:
            tracer.freeze_parameter(view, tensor, f"goes through '{call.name}'")
    tracer.set_label(call.outputs[0], call.func(labels, *call.args[1:], **call.kwargs))


def _pad(tracer: Tracer, call: Call) -> None:
    """Padding: spatial padding belongs to its channel; padding of channels adds fixed ones."""
    label = tracer.label(call.args[0])
    if label is None:
        return
    pad = list(call.args[1])
    moved = label
    for index in range(0, len(pad), 2):
        dim = label.dim() - 1 - index // 2
        if pad[index] <= 0 and pad[index + 1] <= 0 and not (pad[index] or pad[index + 1]):
            continue
        if dim in varying_dims(label):
            tracer.freeze(label, "is padded along its channels")
        target = call.outputs[0].shape[dim]
        moved = moved.narrow(dim, 0, 1).expand(*moved.shape[:dim], target, *moved.shape[dim + 1 :])
    tracer.set_label(call.outputs[0], moved)


def _channelwise(tracer: Tracer, call: Call) -> None:
    """Pooling and resizing: every output channel comes from the input channel of the same index."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call)
        return
    batched = label.dim() >= 4 or call.name.endswith("1d")
    leading = label.shape[: 2 if batched else 1]
    first = tracer.one_per_row(label.reshape(math.prod(leading), -1))
    for out in call.outputs:
        tracer.set_label(out, first.reshape(*leading, *[1] * (out.dim() - len(leading))).expand(out.shape))


def _reduce(tracer: Tracer, call: Call) -> None:
    """Mean, sum, max: over positions they keep the channel; over channels they freeze it."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call)
        return
    dims = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if dims is None or dims == []:
        dims = list(range(label.dim()))
    dims = [int(dim) % max(label.dim(), 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]
    if set(dims) & set(varying_dims(label)):
        tracer.freeze(label, f"is summed over by '{call.name}'")
        return
    keep = bool(call.args[2]) if len(call.args) > 2 else bool(call.kwargs.get("keepdim", False))
    reduced = label
    for dim in sorted(dims, reverse=True):
        reduced = reduced.narrow(dim, 0, 1) if keep else reduced.select(dim, 0)
    for out in call.outputs:
        if out.shape == reduced.shape:
            tracer.set_label(out, reduced)


def _maximum(tracer: Tracer, call: Call) -> None:
    """``max``/``min``: of two tensors or over dimensions."""
    two = len(call.args) > 1 and isinstance(call.args[1], Tensor)
    (_pointwise if two else _reduce)(tracer, call)


def _same(tracer: Tracer, call: Call) -> None:
    """Copies and casts: a weight stays the weight, an activation keeps its channels."""
    if tracer.label(call.args[0]) is None:
        _move_parameter(tracer, call)
    else:
        _pointwise(tracer, call)


def _along_dim(tracer: Tracer, call: Call) -> None:
    """Softmax and cumulative sums: over positions they keep the channel; over channels they freeze it."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call)
        return
    if int(call.args[1]) % label.dim() in varying_dims(label):
        tracer.freeze(label, f"is normalised over by '{call.name}'")
        return
    for out in call.outputs:
        tracer.set_label(out, label)


def _convolution(tracer: Tracer, call: Call) -> None:
    """Convolution: reads the channels of its input, makes the channels of its output."""
    x, weight, bias, *_, transposed, _, groups = call.args
    view, label = tracer.parameter(weight), tracer.label(x)
    if view is None or view.dims != tuple(range(weight.dim())):
        tracer.freeze_call(call, "is convolved by a computed weight")
        return
    out = call.outputs[0]
    macs = float(out.numel() * weight[0].numel() if not transposed else x.numel() * weight[0].numel())
    reads = 0 if transposed else 1
    makes = 1 - reads
    made = tracer.axis(view.name, makes, weight.shape[makes], "out" if groups == 1 else "vector")
    inner: Axis | None = None
    new = torch.arange(made.base, made.base + made.size)
    if groups == 1:
        inner = tracer.axis(view.name, reads, weight.shape[reads], "in")
        _read(tracer, label, inner, x)
    else:
        new, inner = _grouped(tracer, label, view, weight, int(groups), bool(transposed), made)
    tracer.use("conv", view.name, macs, made if groups == 1 or not transposed else None, inner, _NONE)
    tracer.set_label(out, new.reshape(1, -1, *[1] * (out.dim() - 2)).expand(out.shape))
    tracer.made_by[id(out)] = view.name
    if bias is not None:
        _tie_vector(tracer, bias, made)


def _read(tracer: Tracer, label: Tensor | None, axis: Axis, x: Tensor) -> None:
    """Unite the channels of an input with the reading axis of a weight."""
    if label is None:
        tracer.freeze(np.arange(axis.base, axis.base + axis.size), "reads the model's input or a constant")
    else:
        tracer.tie(label, 1 if x.dim() > 2 else x.dim() - 1, axis)


def _tie_vector(tracer: Tracer, vector: Tensor, axis: Axis) -> None:
    own = tracer.label(vector)
    if own is not None:
        tracer.unite(own.reshape(-1), torch.arange(axis.base, axis.base + axis.size))


def _grouped(
    tracer: Tracer,
    label: Tensor | None,
    view: ParameterView,
    weight: Tensor,
    groups: int,
    transposed: bool,
    made: Axis,
) -> tuple[Tensor, Axis | None]:
    """Depthwise convolutions pass channels through; other grouped ones are frozen on both sides."""
    atoms = torch.arange(made.base, made.base + made.size)
    depthwise = not transposed and weight.shape[1] == 1 and label is not None
    if transposed and label is not None and weight.shape[0] == groups and weight.shape[1] == 1:
        axis = tracer.axis(view.name, 0, weight.shape[0], "vector")
        tracer.tie(label, 1, axis)
        return torch.arange(axis.base, axis.base + axis.size), None
    if depthwise and label is not None:
        per_input = weight.shape[0] // groups
        rows = label.movedim(1, 0).reshape(groups, -1)
        tracer.unite(tracer.one_per_row(rows).repeat_interleave(per_input), atoms)
        return atoms, None
    if label is not None:
        tracer.freeze(label, "is read by a grouped convolution")
    tracer.freeze_parameter(view, weight, "belongs to a grouped convolution")
    return torch.zeros(made.size * (groups if transposed else 1), dtype=torch.int64), None


def _batch_norm(tracer: Tracer, call: Call) -> None:
    """BatchNorm: its vectors follow the channels of its input."""
    x = call.args[0]
    vectors = [tensor for tensor in call.args[1:5] if isinstance(tensor, Tensor)]
    label = tracer.label(x)
    names = [view.name for tensor in vectors if (view := tracer.parameter(tensor)) is not None]
    if id(x) in tracer.made_by and names:
        tracer.found.norm_of[tracer.made_by[id(x)]] = names[0].rpartition(".")[0]
    if label is None:
        tracer.freeze_call(call, "normalises a constant")
        return
    for tensor in vectors:
        view = tracer.parameter(tensor)
        if view is not None:
            tracer.tie(label, 1, tracer.axis(view.name, 0, tensor.shape[0], "vector"))
    tracer.set_label(call.outputs[0], label)


def _linear(tracer: Tracer, call: Call) -> None:
    """``addmm``/``mm`` with a weight on the right: a linear layer."""
    bias, x, weight = call.args if call.name == "addmm" else (None, *call.args)
    view, label = tracer.parameter(weight), tracer.label(x)
    if (
        view is None
        or tracer.label(weight) is not None
        or sorted(d for d in view.dims if d is not None) != [0, 1]
    ):
        _product(tracer, call, x, weight)
        if bias is not None and (vector := tracer.label(bias)) is not None:
            tracer.freeze(vector, "is added to a product")
        return
    reads, makes = view.dims[0] or 0, view.dims[1] or 0
    inner = tracer.axis(view.name, reads, weight.shape[0], "in")
    made = tracer.axis(view.name, makes, weight.shape[1], "out")
    _read(tracer, label, inner, x)
    out = call.outputs[0]
    tracer.use("linear", view.name, float(x.numel() * weight.shape[1]), made, inner, _NONE)
    tracer.set_label(out, torch.arange(made.base, made.base + made.size).expand(out.shape))
    tracer.made_by[id(out)] = view.name
    if bias is not None:
        _tie_vector(tracer, bias, made)


def _matmul(tracer: Tracer, call: Call) -> None:
    """``bmm`` of two activations."""
    left, right = call.args[-2:]
    _product(tracer, call, left, right)
    if call.name == "baddbmm" and (label := tracer.label(call.args[0])) is not None:
        tracer.freeze(label, "is added to a product")


def _product(tracer: Tracer, call: Call, left: Tensor, right: Tensor) -> None:
    """Product over a contracted dimension: what is summed together is united; the free dimensions stay."""
    out = call.outputs[0]
    macs = float(out.numel() * left.shape[-1])
    a, b = tracer.label(left), tracer.label(right)
    zeros = [tensor.new_zeros(tensor.shape, dtype=torch.int64) for tensor in (left, right)]
    for tensor, label in ((left, a), (right, b)):
        if label is None and (view := tracer.parameter(tensor)) is not None:
            tracer.freeze_parameter(view, tensor, "is a weight used as an activation")
    a, b = (zeros[0] if a is None else a), (zeros[1] if b is None else b)
    inner = [a.dim() - 1 in varying_dims(a), b.dim() - 2 in varying_dims(b)]
    rows, columns = a.dim() - 2 in varying_dims(a), b.dim() - 1 in varying_dims(b)
    if (inner[0] and rows) or (inner[1] and columns) or (rows and columns):
        tracer.freeze_call(call, "is multiplied in two channel dimensions")
        return
    atoms = _NONE
    if any(inner):
        tracer.unite(a[..., 0, :], b[..., :, 0])
        tracer.found.contracted.append(np.unique(a[..., 0, :].numpy()))
        atoms = a[..., 0, :].reshape(-1).numpy()
    elif rows or columns:
        label = (a[..., :, :1] if rows else b[..., :1, :]).expand(out.shape)
        tracer.set_label(out, label)
        atoms = label.select(-1 if rows else -2, 0).reshape(-1).numpy()
    elif a.any() and b.any():
        tracer.freeze_call(call, "is multiplied with another channel")
    tracer.use("matmul", "", macs, None, None, atoms[atoms > 0])


def _ignore(tracer: Tracer, call: Call) -> None:
    """Operators that read only shapes or make fresh tensors."""


OPERATORS: dict[str, Operator] = {
    "pointwise": _pointwise,
    "copy": _copy,
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    "bmm": _matmul,
    "baddbmm": _matmul,
    "cat": _cat,
    "stack": _cat,
    "constant_pad_nd": _pad,
    "reflection_pad2d": _channelwise,
    "replication_pad2d": _channelwise,
    "split": _split,
    "split_with_sizes": _split,
    "unsafe_split": _split,
    "unbind": _slice,
    "slice": _slice,
    "select": _slice,
    "view": _view,
    "_unsafe_view": _view,
    "reshape": _view,
    "_reshape_alias": _view,
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "std", "prod", "argmax", "logsumexp"), _reduce),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), _along_dim),
    **dict.fromkeys(
        (
            "t",
            "transpose",
            "permute",
            "expand",
            "unsqueeze",
            "squeeze",
            "flip",
            "roll",
            "repeat",
            "detach",
            "alias",
        ),
        _move,
    ),
    **dict.fromkeys(("max", "min"), _maximum),
    **dict.fromkeys(("clone", "lift_fresh", "_to_copy", "contiguous"), _same),
    **dict.fromkeys(("native_dropout", "dropout"), _pointwise),
    **dict.fromkeys(
        (
            "max_pool2d_with_indices",
            "max_pool2d",
            "avg_pool2d",
            "_adaptive_avg_pool2d",
            "adaptive_max_pool2d",
            "avg_pool1d",
            "upsample_nearest1d",
            "upsample_nearest2d",
            "_upsample_nearest_exact2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
        ),
        _channelwise,
    ),
    **dict.fromkeys(
        (
            "new_zeros",
            "new_ones",
            "new_full",
            "new_empty",
            "zeros_like",
            "ones_like",
            "empty_like",
            "full_like",
        ),
        _ignore,
    ),
    **dict.fromkeys(("size", "sym_size", "stride", "is_same_size", "equal", "_local_scalar_dense"), _ignore),
}
