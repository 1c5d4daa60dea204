"""Layers: operators with weights, which read channels and make new ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.graph.atoms import Axis, IntArray
from yolo_prune.graph.labels import compact, per_channel, varying_dims
from yolo_prune.graph.rules.products import product
from yolo_prune.graph.trace import Call, ParameterView, Tracer

_NONE: IntArray = np.zeros(0, dtype=np.int64)
_GROUPABLE = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def convolution(tracer: Tracer, call: Call) -> None:
    """Convolution: reads the channels of its input, makes the channels of its output."""
    x, weight, bias, *_, transposed, _, groups = call.args
    out = call.outputs[0]
    macs = float((x if transposed else out).numel() * weight[0].numel())
    view, label = tracer.parameter(weight), tracer.label(x)
    if view is None or view.dims != tuple(range(weight.dim())):
        tracer.freeze_call(call, "is convolved by a computed weight")
        tracer.use("conv", "", macs, None, None, _NONE)
        return
    layer = _dense if groups == 1 else _grouped
    made, inner, atoms = layer(tracer, call, label, view)
    tracer.use("conv", view.name, macs, made, inner, _NONE)
    tracer.set_label(out, per_channel(atoms, 1 if out.dim() > weight.dim() - 1 else 0, out.shape))
    tracer.made_by[id(out)] = view.name
    if bias is not None:
        _tie_vector(tracer, bias, atoms)


Layer = tuple[Axis | None, Axis | None, Tensor]  # makes, reads, and the atoms of the output's channels


def _dense(tracer: Tracer, call: Call, label: Tensor | None, view: ParameterView) -> Layer:
    x, weight, transposed = call.args[0], call.args[1], bool(call.args[6])
    reads = 0 if transposed else 1
    made = tracer.axis(view.name, 1 - reads, weight.shape[1 - reads], "out")
    inner = tracer.axis(view.name, reads, weight.shape[reads], "in")
    _read(tracer, label, inner, 1 if x.dim() == weight.dim() else 0)
    return made, inner, made.vector


def _read(tracer: Tracer, label: Tensor | None, axis: Axis, dim: int) -> None:
    """Unite the channels of an input with the reading axis of a weight."""
    varying = [] if label is None else varying_dims(label)
    if label is None:
        tracer.freeze(axis.vector, "reads a tensor of fixed width")
    elif varying and dim not in varying:
        tracer.freeze(label, "has its channels mixed like positions by a layer")
        tracer.freeze(axis.vector, "reads a tensor of fixed width")
    else:
        tracer.tie(label, dim, axis)


def _tie_vector(tracer: Tracer, vector: Tensor, atoms: Tensor) -> None:
    own = tracer.label(vector)
    if own is not None:
        tracer.unite(own.reshape(-1), atoms)


def _grouped(tracer: Tracer, call: Call, label: Tensor | None, view: ParameterView) -> Layer:
    """Grouped convolutions: depthwise ones pass channels through, others keep equally many in every group."""
    weight, transposed, groups = call.args[1], bool(call.args[6]), int(call.args[8])
    depthwise = weight.shape[0] == groups if transposed else weight.shape[1] == 1
    if label is not None and depthwise:
        axis = tracer.axis(view.name, 0, weight.shape[0], "vector")
        first = tracer.one_per_row(_channel_rows(label))
        tracer.unite(first.repeat_interleave(weight.shape[0] // groups), axis.vector)
        return axis, None, axis.vector.repeat_interleave(weight.shape[1]) if transposed else axis.vector
    owner = tracer.module
    own = isinstance(owner, _GROUPABLE) and view.name.endswith("weight")
    if label is not None and own:
        return (_shared_outputs if transposed else _equal_groups)(tracer, label, view, weight, groups)
    if label is not None:
        tracer.freeze(label, "is read by a grouped convolution")
    tracer.freeze_parameter(view, weight, "belongs to a grouped convolution")
    return (
        None,
        None,
        torch.zeros(weight.shape[1] * groups if transposed else weight.shape[0], dtype=torch.int64),
    )


def _shared_outputs(tracer: Tracer, label: Tensor, view: ParameterView, weight: Tensor, groups: int) -> Layer:
    """Transposed: every group keeps equally many inputs, and makes outputs at the same positions of its share."""
    inner = tracer.axis(view.name, 0, weight.shape[0], "in")
    made = tracer.axis(view.name, 1, weight.shape[1], "out")
    tracer.tie(label, 1, inner)
    tracer.add_pieces([list(inner.vector.reshape(groups, -1))])
    return made, inner, made.vector.repeat(groups)


def _equal_groups(tracer: Tracer, label: Tensor, view: ParameterView, weight: Tensor, groups: int) -> Layer:
    """Every group reads the same positions of its share, and keeps equally many outputs."""
    made = tracer.axis(view.name, 0, weight.shape[0], "out")
    inner = tracer.axis(view.name, 1, weight.shape[1], "grouped")
    first = tracer.one_per_row(_channel_rows(label)).reshape(groups, -1)
    tracer.unite(first, inner.vector.expand_as(first))
    tracer.add_pieces([list(made.vector.reshape(groups, -1))])
    return made, inner, made.vector


def _channel_rows(label: Tensor) -> Tensor:
    """Return the labels as (channels, everything else), one row a channel."""
    small = compact(label)
    width = label.shape[1]
    return small.expand(small.shape[0], width, *small.shape[2:]).movedim(1, 0).reshape(width, -1)


def batch_norm(tracer: Tracer, call: Call) -> None:
    """BatchNorm: its vectors follow the channels of its input."""
    x = call.args[0]
    label = tracer.label(x)
    vectors = [tensor for tensor in call.args[1:5] if isinstance(tensor, Tensor)]
    names = [view.name for view in map(tracer.parameter, vectors) if view is not None]
    if id(x) in tracer.made_by and names:
        tracer.found.norm_of[tracer.made_by[id(x)]] = names[0].rpartition(".")[0]
    if label is None:
        tracer.freeze_call(call, "normalises a tensor of fixed width")
        return
    for vector in vectors:
        if (view := tracer.parameter(vector)) is not None:
            tracer.tie(label, 1, tracer.axis(view.name, 0, x.shape[1], "vector"))
        elif (own := tracer.label(vector)) is not None:  # repeated for every image, by an InstanceNorm
            tracer.unite(own, tracer.one_per_row(_channel_rows(label)))
        else:
            tracer.freeze(label, "is normalised by computed vectors")
    tracer.set_label(call.outputs[0], label)


def group_norm(tracer: Tracer, call: Call) -> None:
    """GroupNorm: the channels of one group of the norm go together, so that what is averaged stays the same."""
    x, weight, groups = call.args[0], call.args[1], int(call.args[6])
    label = tracer.label(x)
    view = tracer.parameter(weight)
    if label is None or view is None or not isinstance(tracer.module, nn.GroupNorm):
        tracer.freeze_call(call, "is normalised in groups whose number is fixed in code")
        return
    if groups == 1:
        tracer.freeze_call(call, "takes part in a mean over all channels (GroupNorm of one group)")
        return
    first = tracer.one_per_row(_channel_rows(label))
    tracer.unite_rows(first.reshape(groups, -1))
    for vector in call.args[1:3]:
        if vector is not None:
            _tie_vector(tracer, vector, first)
    tracer.set_label(call.outputs[0], label)


def fixed_norm(tracer: Tracer, call: Call) -> None:
    """LayerNorm: every channel takes part in the mean of all others, unless the mean is over positions alone."""
    label = tracer.label(call.args[0])
    normalised = range(call.args[0].dim() - len(call.args[1]), call.args[0].dim())
    if label is None or set(varying_dims(label)) & set(normalised):
        tracer.freeze_call(call, "takes part in a mean over all channels (LayerNorm)")
    else:
        tracer.set_label(call.outputs[0], label)


def linear(tracer: Tracer, call: Call) -> None:
    """``addmm``/``mm`` with a weight on the right: a linear layer."""
    bias, x, weight = call.args if call.name == "addmm" else (None, *call.args)
    view, label = tracer.parameter(weight), tracer.label(x)
    if (
        view is None
        or tracer.label(weight) is not None
        or sorted(d for d in view.dims if d is not None) != [0, 1]
    ):
        product(tracer, call, x, weight)
        if bias is not None and (vector := tracer.label(bias)) is not None:
            tracer.freeze(vector, "is added to a product")
        return
    reads, makes = view.dims[0] or 0, view.dims[1] or 0
    out = call.outputs[0]
    macs = float(x.numel() * weight.shape[1])
    over_positions = label is not None and varying_dims(label) == [0]
    roles = ("vector", "vector") if over_positions else ("in", "out")
    inner = tracer.axis(view.name, reads, weight.shape[0], roles[0])
    made = tracer.axis(view.name, makes, weight.shape[1], roles[1])
    if label is not None and over_positions:
        tracer.freeze(inner.vector, "is a number of positions")
        tracer.freeze(made.vector, "is a number of positions")
        tracer.use("linear", view.name, macs, made, inner, np.asarray(label[:, 0].numpy()))
        tracer.set_label(out, label[:, :1].expand(out.shape))
        return
    _read(tracer, label, inner, 1)
    tracer.use("linear", view.name, macs, made, inner, _NONE)
    tracer.set_label(out, made.vector.expand(out.shape))
    tracer.made_by[id(out)] = view.name
    if bias is not None:
        _tie_vector(tracer, bias, made.vector)


def deformed(tracer: Tracer, call: Call) -> None:
    """Deformable convolution: as a convolution; the offsets keep their width, their groups share the inputs equally."""
    x, weight, offset, mask, bias = call.args[:5]
    offset_groups = int(call.args[12])
    out, view, label = call.outputs[0], tracer.parameter(weight), tracer.label(x)
    for tensor in (offset, mask):
        if (own := tracer.label(tensor)) is not None:
            tracer.freeze(own, "is a sampling position")
    macs = float(out.numel() * weight[0].numel())
    if view is None or weight.shape[1] != x.shape[1]:
        tracer.freeze_call(call, "is read by a grouped deformable convolution")
        tracer.use("conv", "", macs, None, None, _NONE)
        return
    made = tracer.axis(view.name, 0, weight.shape[0], "out")
    inner = tracer.axis(view.name, 1, weight.shape[1], "in")
    _read(tracer, label, inner, 1)
    if offset_groups > 1:
        tracer.add_pieces([list(inner.vector.reshape(offset_groups, -1))])
    tracer.use("conv", view.name, macs, made, inner, _NONE)
    tracer.set_label(out, per_channel(made.vector, 1, out.shape))
    tracer.made_by[id(out)] = view.name
    _tie_vector(tracer, bias, made.vector)


def random_positions(tracer: Tracer, call: Call) -> None:
    """Pooling at positions drawn for every channel: fewer channels would draw others."""
    tracer.freeze_call(call, "is pooled at random positions of its own")
