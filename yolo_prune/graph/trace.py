"""Trace the eager forward once and follow every channel through it.

Every tensor carries a label tensor of its own shape that holds, per element, the atom it came from (0: none). The
operators run as usual under a dispatch mode, so Python control flow does not matter and nothing is captured; what an
operator means for labels is in :mod:`yolo_prune.graph.rules`. An operator without a rule freezes what reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from yolo_prune.graph.atoms import Axis, Findings, IntArray, MacUse, Pieces
from yolo_prune.graph.calls import Request, is_pointwise
from yolo_prune.graph.decisions import reads_values
from yolo_prune.graph.dispatch import OperatorMode
from yolo_prune.graph.labels import compact, rows_along, varying_dims
from yolo_prune.graph.module_rules import ModuleRule, ModuleRules, rule_for

OutputSelector = Callable[[Any], Any]


@dataclass(frozen=True)
class ParameterView:
    """A matrix or kernel seen through transposes: ``dims[i]`` is the parameter's dimension behind dimension ``i``."""

    name: str
    dims: tuple[int | None, ...]


# Operators that are recorded even where no channel reaches them, because costs count them one by one.
# Where no box lies on a map, its channels still are those of the regions.
_OF_REGIONS = frozenset({"torchvision::roi_align", "torchvision::roi_pool", "index_put"})
_COUNTED = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm", "torchvision::deform_conv2d"})


class Tracer(OperatorMode):
    """Runs operators and keeps labels beside them.

    Args:
        model: The module that will run; its parameters and buffers get atoms when they are first used.
        rules: Module classes that may split channels, with what keeps their attributes right.
        handlers: Operator name -> rule; see :mod:`yolo_prune.graph.rules`.
    """

    def __init__(
        self, model: nn.Module, rules: ModuleRules, handlers: Mapping[str, Callable[[Tracer, Call], None]]
    ) -> None:
        super().__init__()
        self.found = Findings()
        self.rules = rules
        self.handlers = handlers
        self.modules: list[tuple[str, nn.Module]] = []
        self._labels: dict[int, tuple[Tensor, Tensor]] = {}
        self._views: dict[int, tuple[Tensor, ParameterView]] = {}
        self._axis_of: dict[tuple[str, int], int] = {}
        self._names: dict[int, tuple[str, Tensor]] = {}
        self._places: dict[tuple[int, int], str] = {}
        self.made_by: dict[int, str] = {}
        self.met: set[str] = set()
        self.request = Request()
        self._muted = False
        self._tied: set[bytes] = set()
        compiled = [n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        self._compiled = tuple(f"{name}." if name else "" for name in compiled)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._names.setdefault(id(tensor), (name, tensor))
            self._places.setdefault(_place(tensor), name)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._muted:
            return out
        call = Call(func, args, kwargs, out)
        for tensor in call.tensors:
            if id(tensor) in self._names:
                self.met.add(self._names[id(tensor)][0])
            elif isinstance(tensor, nn.Parameter):
                self._freeze_stranger(tensor)
        if self._has_nothing(call):
            self._stop_at_nothing(call)
        elif call.name in _COUNTED or any(self.known(tensor) for tensor in call.tensors):
            handler = self.handlers.get(call.name)
            if handler is None and is_pointwise(func.namespace, call.name):
                handler = self.handlers["pointwise"]
            if handler is None:
                self.freeze_call(call)
            else:
                handler(self, call)
        return out

    def _has_nothing(self, call: Call) -> bool:
        """Tell whether a result has no elements, or a part of it comes from what has none."""
        if not call.outputs or not reads_values(call.name) or call.name in _OF_REGIONS:
            return False
        nothing = any(not tensor.numel() and id(tensor) in self._labels for tensor in call.tensors)
        return nothing or not any(tensor.numel() for tensor in call.outputs)

    def _stop_at_nothing(self, call: Call) -> None:
        """A result without elements (no detection, no proposal) carries no labels: what led there stays."""
        self.freeze_call(call, "makes a tensor without elements from this example")
        if call.name in _COUNTED or call.name.startswith("_scaled_dot_product"):
            self.use("matmul", "", 0.0, None, None, np.zeros(0, dtype=np.int64))

    def _freeze_stranger(self, tensor: Tensor) -> None:
        """A parameter of the original, reached past the copy that runs here (by a function that holds its module)."""
        if (name := self._places.get(_place(tensor))) is not None:
            view = ParameterView(name, tuple(range(tensor.dim())))
            self.freeze_parameter(
                view, tensor, "is held by a function, which a copy of the model cannot change,"
            )

    @contextmanager
    def asked(self, request: Request) -> Iterator[None]:
        """Let the rules know what a Python call asked for while its operators run."""
        before, self.request = self.request, request
        try:
            yield
        finally:
            self.request = before

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Let operators run unseen: whoever asks for that sets the labels of the result."""
        before, self._muted = self._muted, True
        try:
            yield
        finally:
            self._muted = before

    def known(self, tensor: Tensor) -> bool:
        """Tell whether a tensor carries labels or comes straight from a parameter or buffer."""
        return id(tensor) in self._labels or id(tensor) in self._views or id(tensor) in self._names

    @property
    def where(self) -> str:
        """Dotted name of the module whose forward is running."""
        return self.modules[-1][0] if self.modules else ""

    @property
    def module(self) -> nn.Module | None:
        """The module whose forward is running."""
        return self.modules[-1][1] if self.modules else None

    @property
    def rule(self) -> ModuleRule | None:
        """The rule of the module whose forward is running."""
        return rule_for(self.rules, self.modules[-1][1]) if self.modules else None

    @property
    def may_split(self) -> bool:
        """Whether the running module keeps its own width attributes right after a cut."""
        return self.rule is not None and self.rule.may_split

    def axis(self, name: str, dim: int, size: int, role: str) -> Axis:
        """Return the axis of a parameter's dimension, making its atoms at first use."""
        key = (name, dim)
        if key not in self._axis_of:
            self._axis_of[key] = len(self.found.axes)
            axis = Axis(name, dim, size, self.found.atom_count, role)
            self.found.axes.append(axis)
            if self._compiled and name.startswith(self._compiled):
                self.freeze(axis.vector, "belongs to a TorchScript module, whose tensors cannot be replaced,")
        return self.found.axes[self._axis_of[key]]

    def axis_index(self, axis: Axis) -> int:
        """Return the position of an axis among the axes found."""
        return self._axis_of[axis.name, axis.dim]

    def parameter(self, tensor: Tensor | None) -> ParameterView | None:
        """Return which parameter (or buffer) a tensor is, and how its dimensions are turned."""
        if tensor is None:
            return None
        if id(tensor) in self._views:
            return self._views[id(tensor)][1]
        if id(tensor) in self._names:
            return ParameterView(self._names[id(tensor)][0], tuple(range(tensor.dim())))
        return None

    def set_parameter(self, tensor: Tensor, view: ParameterView) -> None:
        """Remember that ``tensor`` is a turned parameter."""
        self._views[id(tensor)] = (tensor, view)

    def label(self, tensor: Any) -> Tensor | None:
        """Return the label tensor of ``tensor``, making one for a vector parameter; None when it has none."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self._labels:
            return self._labels[id(tensor)][1]
        view = self.parameter(tensor)
        wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        if view is None or len(wide) != 1 or view.dims[wide[0]] is None:
            return None
        dim = view.dims[wide[0]]
        axis = self.axis(view.name, dim if dim is not None else 0, tensor.shape[wide[0]], "vector")
        shape = [-1 if index == wide[0] else 1 for index in range(tensor.dim())]
        return axis.vector.reshape(shape)

    def activation_label(self, tensor: Any) -> Tensor | None:
        """Return the label tensor of an activation, without making one for a parameter."""
        return self._labels[id(tensor)][1] if id(tensor) in self._labels else None

    def set_label(self, tensor: Tensor, label: Tensor) -> None:
        """Attach a label tensor of the same shape."""
        self._labels[id(tensor)] = (tensor, label)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Unite two label arrays element by element; an element without a channel freezes its partner."""
        left, right = compact(left), compact(right)
        if left.shape == right.shape and torch.equal(left, right):
            return
        a, b = np.broadcast_arrays(left.numpy(), right.numpy())
        count = self.found.atom_count
        keys = np.unique(a.astype(np.int64).reshape(-1) * count + b.reshape(-1))
        pairs = np.stack([keys // count, keys % count])
        both = (pairs != 0).all(axis=0)
        self.found.pairs.append(pairs[:, both & (pairs[0] != pairs[1])])
        self.freeze(pairs[:, ~both].max(axis=0, initial=0), "meets a constant of the same width")

    def freeze(self, atoms: IntArray | Tensor, reason: str) -> None:
        """Keep ``atoms`` whatever happens, and say why."""
        array = compact(atoms).numpy() if isinstance(atoms, Tensor) else atoms
        array = np.unique(array[array > 0])
        if array.size:
            self.found.frozen.append((array, f"{reason} in '{self.where or 'the model'}'"))

    def freeze_call(self, call: Call, reason: str | None = None) -> None:
        """Freeze everything that reaches an operator."""
        if reason is None:
            self.found.unknown[call.name] = self.found.unknown.get(call.name, 0) + 1
            reason = f"reaches operator '{call.name}', which has no rule,"
        for tensor in call.tensors:
            label = self.label(tensor)
            if label is not None:
                self.freeze(label, reason)
            elif (view := self.parameter(tensor)) is not None:
                self.freeze_parameter(view, tensor, reason)

    def freeze_parameter(self, view: ParameterView, tensor: Tensor, reason: str) -> None:
        """Freeze every dimension of a parameter that has several."""
        for index, dim in enumerate(view.dims):
            if dim is not None and tensor.shape[index] > 1:
                axis = self.axis(view.name, dim, tensor.shape[index], "vector")
                self.freeze(axis.vector, reason)

    def tie(self, label: Tensor, dim: int, axis: Axis) -> None:
        """Unite the channels along ``dim`` of a label tensor with the indices of an axis."""
        small = compact(label)
        rows = small.expand(*small.shape[:dim], label.shape[dim], *small.shape[dim + 1 :]).movedim(dim, 0)
        self.unite(self.one_per_row(rows.reshape(axis.size, -1)), axis.vector)

    def one_per_row(self, rows: Tensor) -> Tensor:
        """Unite all labels of each row (positions of one channel; 0 is ignored) and return one of each."""
        first = rows.amax(dim=1)
        if rows.shape[1] > 1 and not torch.equal(rows, first[:, None].expand_as(rows)):
            self.unite(torch.where(rows == 0, first[:, None], rows), first[:, None])
        return first

    def unite_rows(self, rows: Tensor) -> None:
        """Make the channels of each row live and die together; one without a channel freezes its row."""
        self.unite(rows, rows.amax(dim=1, keepdim=True).expand_as(rows))

    def use(
        self, kind: str, weight: str, macs: float, out: Axis | None, inner: Axis | None, atoms: IntArray
    ) -> None:
        """Record one multiply-accumulate operation."""
        made, read = (-1 if axis is None else self.axis_index(axis) for axis in (out, inner))
        self.found.uses.append(MacUse(kind, self.where, weight, macs, made, read, tuple(atoms.tolist())))

    def add_pieces(self, parts: Sequence[Sequence[Tensor]]) -> None:
        """Record parts that must keep equally many channels; each inner list is one such constraint."""
        arrays = tuple(tuple(np.asarray(part.reshape(-1).numpy()) for part in tied) for tied in parts)
        self.found.pieces.append(Pieces(arrays, self.where))
        self._tied.update(part.tobytes() for tied in arrays if len(tied) > 1 for part in tied)

    def shorter_dims(self, label: Tensor) -> list[int]:
        """Return the dimensions of a label that get shorter by a cut, where that is known of some: heads, say."""
        return [dim for dim in varying_dims(label) if any(map(self.is_tied, rows_along(label, dim)))]

    def cut_dims(self, label: Tensor) -> list[int]:
        """Return the dimensions that a cut may make shorter: along the others the numbers of the code stay right."""
        return self.shorter_dims(label) or varying_dims(label)

    def is_tied(self, vector: Tensor) -> bool:
        """Tell whether these channels are one of several parts that keep equally many, each its own choice."""
        return np.ascontiguousarray(vector.reshape(-1).numpy()).tobytes() in self._tied


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor begins: in which storage (no other tensor on meta has one either), and where in it."""
    return int(tensor.untyped_storage()._cdata), int(tensor.storage_offset())


@dataclass(frozen=True)
class Call:
    """One operator call: the operator, its arguments and its result."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """Operator name without overload and in-place underscore; with its library unless that is PyTorch's."""
        name = str(self.func.overloadpacket.__name__)
        return name.rstrip("_") if self.func.namespace == "aten" else f"{self.func.namespace}::{name}"

    @property
    def in_place(self) -> bool:
        """Whether the operator writes into its first argument."""
        return str(self.func.overloadpacket.__name__).endswith("_")

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        """All tensors among the results."""
        return [leaf for leaf in pytree.tree_leaves(self.out) if isinstance(leaf, Tensor)]
