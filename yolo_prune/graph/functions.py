"""What only the Python call tells: a number of parts or their sizes, a width that code computed, a norm in disguise.

Operators arrive one by one at the tracer, long after that was lost: ``x.chunk(2)`` and ``x.split(8)`` are the same one.
Code that PyTorch has compiled (TorchScript) shows only its operators; there the answer is the safe one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from yolo_prune.graph.calls import Request
from yolo_prune.graph.labels import rows_along, varying_dims
from yolo_prune.graph.rules.movement import padded_label
from yolo_prune.graph.rules.products import SCALED
from yolo_prune.graph.sizes import Size, sized
from yolo_prune.graph.trace import Tracer

Rule = Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any]], Any]


class AskedFor(TorchFunctionMode):
    """Looks at every call of PyTorch's Python functions while the tracer runs."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = _FUNCTIONS.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(self.tracer, func, args, kwargs or {})


def _shape(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    out = func(*args, **kwargs)
    label = tracer.activation_label(args[0])
    if label is None:
        return out
    shape = sized(label, args[0].shape)
    return shape if isinstance(out, torch.Size) else shape[args[1] if len(args) > 1 else kwargs["dim"]]


def _parts(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``chunk`` and ``tensor_split``: a number of parts of any width."""
    number = args[1] if len(args) > 1 else next(iter(kwargs.values()), None)
    with tracer.asked(Request(parts=isinstance(number, int))):
        outs = func(*args, **kwargs)
    if func in _CHUNKS or not isinstance(number, int):
        return outs
    label = tracer.activation_label(
        args[0]
    )  # `tensor_split` consists of slices, which know nothing of each other
    labels = [tracer.activation_label(out) for out in outs]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    if label is None or dim not in varying_dims(label):
        return outs
    if len({out.shape[dim] for out in outs}) > 1:
        tracer.freeze(label, "is split by fixed sizes")
    else:
        tracer.add_pieces([[row for part in labels if part is not None for row in rows_along(part, dim)]])
    return outs


def _sizes(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``view``, ``reshape``, ``split``: the sizes as the code gave them."""
    given = [*args[1:], *kwargs.values()]
    if func in _SPLITS:
        given = given[:1]
    sizes = tuple(pytree.tree_leaves([list(v) if isinstance(v, torch.Size) else v for v in given]))
    with tracer.asked(Request(sizes=sizes)):
        return func(*args, **kwargs)


def _unflatten(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dim = args[1] if len(args) > 1 else kwargs["dim"]
    sizes = args[2] if len(args) > 2 else kwargs["sizes"]
    shape = list(args[0].shape)
    shape[dim % len(shape) : dim % len(shape) + 1] = sizes
    with tracer.asked(Request(sizes=tuple(shape))):
        return func(*args, **kwargs)


def _bounds(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``x[:, : c // 2]``: the bounds as the code gave them."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    bounds = [b for part in index if isinstance(part, slice) for b in (part.start, part.stop)]
    if not any(isinstance(bound, Size) for bound in bounds):
        return func(*args, **kwargs)
    with tracer.asked(Request(sizes=tuple(bound for bound in bounds if bound is not None))):
        return func(*args, **kwargs)


def _scaled_attention(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Queries and keys of attention that is scaled by their width, however PyTorch takes it apart."""
    if kwargs.get("scale") is None:
        for tensor in (*args, *kwargs.values())[:2]:
            label = tracer.label(tensor)
            if label is not None and not any(d < label.dim() - 2 for d in tracer.shorter_dims(label)):
                tracer.freeze(label, SCALED)
    return func(*args, **kwargs)


def _pad(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Circular padding, which PyTorch writes into an empty tensor part by part."""
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    label = tracer.activation_label(args[0]) if args else None
    if mode != "circular" or label is None:
        return func(*args, **kwargs)
    with tracer.muted():
        out = func(*args, **kwargs)
    amounts = args[1] if len(args) > 1 else kwargs["pad"]
    if (padded := padded_label(tracer, label, list(amounts), out.shape)) is not None:
        tracer.set_label(out, padded)
    return out


def _frozen(reason: str, operands: int = 1) -> Rule:
    """Freeze the first operands of a function whose operators would not say what it is."""

    def rule(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for tensor in (*args, *kwargs.values())[:operands]:
            if (label := tracer.activation_label(tensor)) is not None:
                tracer.freeze(label, reason)
        return func(*args, **kwargs)

    return rule


_CHUNKS = {Tensor.chunk, torch.chunk, Tensor.unsafe_chunk, torch.unsafe_chunk}
_SPLITS = {
    *(Tensor.split, torch.split, Tensor.split_with_sizes, torch.split_with_sizes),
    *(Tensor.unsafe_split, torch.unsafe_split),
}
_RECURRENT = (torch.gru, torch.lstm, torch.rnn_tanh, torch.rnn_relu)
_CELLS = (torch.gru_cell, torch.lstm_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
_FUNCTIONS: dict[Any, Rule] = {
    Tensor.shape.__get__: _shape,  # type: ignore[attr-defined]
    Tensor.size: _shape,
    **dict.fromkeys((*_CHUNKS, Tensor.tensor_split, torch.tensor_split), _parts),
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape, *_SPLITS), _sizes),
    **dict.fromkeys((Tensor.unflatten, torch.unflatten), _unflatten),
    Tensor.__getitem__: _bounds,
    functional.scaled_dot_product_attention: _scaled_attention,
    **dict.fromkeys((functional.pad, torch._C._nn.pad), _pad),
    functional.local_response_norm: _frozen("is normalised by its neighbours (LocalResponseNorm)"),
    functional.rms_norm: _frozen("takes part in a mean over all channels (RMSNorm)"),
    functional.multi_head_attention_forward: _frozen(
        "is read by nn.MultiheadAttention, which fixes its width", 3
    ),
    **dict.fromkeys((*_RECURRENT, *_CELLS), _frozen("is read by a recurrent layer, which fixes its width")),
}
