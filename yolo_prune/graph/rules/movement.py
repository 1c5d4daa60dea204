"""Operators that move data: they are replayed on the labels, and freeze what fixes channel numbers in code."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from yolo_prune.graph.labels import join, reshape_blocks, rows_along, varying_dims
from yolo_prune.graph.rules.elementwise import pointwise
from yolo_prune.graph.sizes import Size, is_share_of, share_of
from yolo_prune.graph.trace import Call, ParameterView, Tracer


def move(tracer: Tracer, call: Call) -> None:
    """Data movement: do the same to the labels."""
    label = tracer.label(call.args[0])
    if label is None:
        _move_parameter(tracer, call)
        return
    moved = call.func(label, *call.args[1:], **call.kwargs)
    for out, new in zip(call.outputs, [moved] if isinstance(moved, Tensor) else list(moved), strict=True):
        tracer.set_label(out, new)


def same(tracer: Tracer, call: Call) -> None:
    """Copies and casts: a weight stays the weight, an activation keeps its channels."""
    if tracer.label(call.args[0]) is None:
        _move_parameter(tracer, call)
    else:
        pointwise(tracer, call)


def _move_parameter(tracer: Tracer, call: Call) -> None:
    """Follow transposes of a weight; any other view of it makes it unknown, which freezes its readers later."""
    source = call.args[0]
    view = tracer.parameter(source) if isinstance(source, Tensor) else None
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


def _dim(call: Call, position: int) -> int:
    value: Any = call.args[position] if len(call.args) > position else call.kwargs.get("dim", 0)
    return int(value) % max(int(call.args[0].dim()), 1)


def cut_by_index(tracer: Tracer, call: Call) -> None:
    """Slices and selections along channels fix indices in code: freeze; elsewhere they are data movement."""
    label = tracer.label(call.args[0])
    narrower = label is not None and bool(call.outputs) and call.outputs[0].shape != label.shape
    if label is not None and narrower and (dim := _dim(call, 1)) in tracer.cut_dims(label):
        known = tracer.may_split or tracer.request.parts
        if not known and not (call.name == "slice" and _slice_by_share(tracer, call, label, dim)):
            tracer.freeze(label, f"is sliced by index ('{call.name}')")
    move(tracer, call)


def _slice_by_share(tracer: Tracer, call: Call, label: Tensor, dim: int) -> bool:
    """Tie the equal parts of which a slice takes some, where its bounds were computed from the width."""
    rows, width = rows_along(label, dim), label.shape[dim]
    start, stop, step = (*call.args[2:5], 1)[:3] if len(call.args) > 3 else (0, width, 2)
    bounds = [bound for bound in (start, stop) if 0 < bound < width]
    shares = [share_of(tracer.request.sizes, bound, rows[0]) for bound in bounds]
    if step != 1 or len(rows) != 1 or not shares or None in shares:
        return False
    parts = math.lcm(*(share.denominator for share in shares if share is not None))
    tracer.add_pieces([list(rows[0].reshape(parts, -1))])
    return True


def split(tracer: Tracer, call: Call) -> None:
    """``chunk``/``split``: the pieces are free in which channels they keep, tied in how many."""
    label = tracer.label(call.args[0])
    move(tracer, call)
    if label is None:
        return
    dim = _dim(call, 2)
    if dim not in tracer.cut_dims(label):
        return
    if not tracer.may_split and not _keeps_parts(tracer, call, label, dim):
        tracer.freeze(label, "is split by fixed sizes")
        return
    if tracer.rule is not None and tracer.rule.follow is not None:
        return
    by_size: dict[int, list[Tensor]] = {}
    for out in call.outputs:
        piece = tracer.label(out)
        if piece is not None:
            by_size.setdefault(piece.shape[dim], []).extend(rows_along(piece, dim))
    tracer.add_pieces(list(by_size.values()))


def _keeps_parts(tracer: Tracer, call: Call, label: Tensor, dim: int) -> bool:
    """Tell whether the code splits any width into these equal parts: it gives their number, or a share of the width."""
    if len({out.shape[dim] for out in call.outputs}) > 1:
        return False
    sizes, rows = tracer.request.sizes, rows_along(label, dim)
    by_share = bool(sizes) and len(rows) == 1 and all(is_share_of(size, rows[0]) for size in sizes)
    return tracer.request.parts or by_share


def shuffle(tracer: Tracer, call: Call) -> None:
    """``channel_shuffle``: channels change places with those at the same position of the other groups."""
    label = tracer.label(call.args[0])
    if label is None or set(varying_dims(label)) - {1}:
        tracer.freeze_call(call, "is shuffled")
        return
    rows = rows_along(label, 1)[0].reshape(int(call.args[1]), -1)
    tracer.unite_rows(rows.T)
    shape = [1, -1] + [1] * (label.dim() - 2)
    tracer.set_label(call.outputs[0], rows.T.reshape(shape).expand(label.shape))


def view(tracer: Tracer, call: Call) -> None:
    """Reshape: merging channels with other dimensions is data movement, splitting them needs a module rule."""
    source, out = call.args[0], call.outputs[0]
    label = tracer.label(source)
    if label is not None:
        try:
            new = label.view(out.shape)
        except RuntimeError:
            new = label.reshape(out.shape)
        tracer.set_label(out, new)
        _check_reshape(tracer, label, new)
        return
    parameter = tracer.parameter(source)
    if parameter is not None and out.shape == source.shape:
        tracer.set_parameter(out, parameter)
    else:
        _move_parameter(tracer, call)


def _check_reshape(tracer: Tracer, before: Tensor, after: Tensor) -> None:
    varying, later = set(varying_dims(before)), set(varying_dims(after))
    if any(isinstance(size, Size) and size == 1 for size in tracer.request.sizes):
        tracer.freeze(before, "has its channels split by a reshape")  # one in every group: none can go
        return
    for sources, targets in reshape_blocks(before.shape, after.shape):
        if not varying & set(sources):
            continue
        if len(later & set(targets)) <= 1:
            _merge(tracer, before, sorted(varying & set(sources)))
        elif len(sources) == 1 and tracer.may_split:
            _shorten(tracer, after, targets, _told_dim(tracer, after, targets))
        elif len(sources) == 1 and (free := _follows_width(tracer, before, after, sources[0], targets)):
            _shorten(tracer, after, targets, free)
        else:
            tracer.freeze(before, "has its channels split by a reshape")
            return


def _shorten(tracer: Tracer, after: Tensor, targets: list[int], free: int) -> None:
    """Let the dimension ``free`` of a reshaped label get shorter: the dimensions within it go as a whole."""
    for dim in targets[targets.index(free) + 1 :]:
        tracer.unite(after, after.narrow(dim, 0, 1))
    tracer.add_pieces([rows_along(after, free)])


def _told_dim(tracer: Tracer, after: Tensor, targets: list[int]) -> int:
    """Return which new dimension a module rule keeps right: the heads that it names, else the last one."""
    heads = tracer.rule.heads if tracer.rule is not None else None
    count = getattr(tracer.module, heads) if heads is not None else None
    return next((dim for dim in reversed(targets[:-1]) if after.shape[dim] == count), targets[-1])


def _merge(tracer: Tracer, label: Tensor, dims: list[int]) -> None:
    """Keep the order of merged channels: those of an outer dimension that gets shorter go with all inner ones."""
    for position, dim in enumerate(dims[:-1]):
        if any(tracer.is_tied(row) for row in rows_along(label, dim)):
            for inner in dims[position + 1 :]:
                tracer.unite(label, label.narrow(inner, 0, 1))


def _follows_width(
    tracer: Tracer, before: Tensor, after: Tensor, source: int, targets: list[int]
) -> int | None:
    """Return the one new dimension that follows the width of the old one; None if code fixes it, or several do."""
    rows, sizes = rows_along(before, source), tracer.request.sizes
    if len(rows) != 1 or len(sizes) != after.dim():
        return None
    free = [dim for dim in targets if sizes[dim] == -1 or is_share_of(sizes[dim], rows[0])]
    fixed = [dim for dim in targets if dim not in free and not isinstance(sizes[dim], Size)]
    return free[0] if len(free) == 1 and len(fixed) == len(targets) - 1 else None


def cat(tracer: Tracer, call: Call) -> None:
    """Concatenation: a part without channels contributes fixed ones."""
    tracer.set_label(call.outputs[0], join(_parts(tracer, call), _dim_of_list(call)))


def stack(tracer: Tracer, call: Call) -> None:
    """Stacking: as concatenation, along a new dimension; what lies side by side keeps equally many channels."""
    parts = _parts(tracer, call)
    tracer.set_label(call.outputs[0], call.func(parts, *call.args[1:], **call.kwargs))
    varying = {dim for part in parts for dim in varying_dims(part)}
    if len(varying) == 1:
        vectors = {tuple(row.tolist()): row for part in parts for row in rows_along(part, min(varying))}
        tracer.add_pieces([list(vectors.values())])


def _dim_of_list(call: Call) -> int:
    return int(call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0))


def _parts(tracer: Tracer, call: Call) -> list[Tensor]:
    parts = []
    for tensor in call.args[0]:
        label = tracer.label(tensor)
        if label is None:
            label = torch.zeros((), dtype=torch.int64).expand(tensor.shape)
            if (parameter := tracer.parameter(tensor)) is not None:
                tracer.freeze_parameter(parameter, tensor, f"goes through '{call.name}'")
        if label.dim() == call.outputs[0].dim() or call.name == "stack":  # `cat` skips legacy empty vectors
            parts.append(label)
    return parts


def pad(tracer: Tracer, call: Call) -> None:
    """Padding: spatial padding belongs to its channel; padding of channels adds fixed ones."""
    label = tracer.label(call.args[0])
    if label is None:
        tracer.freeze_call(call, "is used as an activation")
    elif (padded := padded_label(tracer, label, list(call.args[1]), call.outputs[0].shape)) is not None:
        tracer.set_label(call.outputs[0], padded)


def padded_label(tracer: Tracer, label: Tensor, amounts: list[int], shape: torch.Size) -> Tensor | None:
    """Return the label of a padded activation; freeze it and return None where channels are padded."""
    varying = tracer.cut_dims(label)
    for index in range(0, len(amounts), 2):
        dim = label.dim() - 1 - index // 2
        if not (amounts[index] or amounts[index + 1]):
            continue
        if dim in varying:
            tracer.freeze(label, "is padded along its channels")
            return None
        edge = label.narrow(dim, 0, 1)
        if dim in varying_dims(label):  # within a head, which goes as a whole
            tracer.unite(label, edge)
        label = edge.expand(*label.shape[:dim], shape[dim], *label.shape[dim + 1 :])
    return label


def pixel_shuffle(tracer: Tracer, call: Call) -> None:
    """Depth to space: the ``r * r`` channels that make one output channel go together."""
    label = tracer.label(call.args[0])
    if label is None:
        return
    blocks = label.shape[-3] // int(call.args[1]) ** 2
    vectors = rows_along(label, label.dim() - 3)
    if len(vectors) != 1:
        tracer.freeze(label, "is shuffled while its channels vary in two dimensions")
        return
    tracer.unite_rows(vectors[0].reshape(blocks, -1))
    move(tracer, call)
