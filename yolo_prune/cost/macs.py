"""Count the multiply-accumulates of one forward pass, operation by operation, from shapes alone where possible."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from yolo_prune.graph.arguments import Arguments
from yolo_prune.graph.copies import check_has_weights, copies_to_run, copy_with
from yolo_prune.graph.decisions import Positions
from yolo_prune.graph.dispatch import OperatorMode
from yolo_prune.graph.modes import plain_attention
from yolo_prune.layers import LayerShape

_BATCH_NORMS = frozenset(
    {"native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"}
)

_ELEMENTWISE = frozenset(
    {
        *(
            "add",
            "sub",
            "mul",
            "div",
            "silu",
            "relu",
            "leaky_relu",
            "sigmoid",
            "hardswish",
            "hardsigmoid",
            "hardtanh",
        ),
        *("_softmax", "gelu", "mish", "elu", "softplus", "tanh", "exp", "log", "sqrt", "pow", "clamp", "neg"),
    }
)


@dataclass(frozen=True)
class Operation:
    """A convolution or a matrix product of one forward pass.

    Attributes:
        macs: Its multiply-accumulates.
        elements: Numbers that it makes.
        layer: Its shape as one layer of a runtime; None for what is not timed alone: other than two dimensions, or
            several images at once. A product of two activations has one too, if it is one of two matrices.
    """

    macs: float
    elements: int
    layer: LayerShape | None = None


class _MacCounter(OperatorMode):
    """Lists the convolutions and matrix products, in order.

    On the meta device it answers the commonest operators itself: PyTorch computes their shapes in Python, slowly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if (shape := _easy_shape(name, args)) is not None:
            return pytree.tree_leaves(args)[0].new_empty(shape)
        if name in _BATCH_NORMS and args[0].is_meta:
            return args[0].new_empty(args[0].shape), args[0].new_empty(0), args[0].new_empty(0)
        if name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            out = x.new_empty(_convolved(*args)) if x.is_meta else func(*args, **(kwargs or {}))
            positions = (x.numel() // x.shape[1]) if transposed else (out.numel() // out.shape[1])
            macs = float(positions * weight.numel())
            self.operations.append(Operation(macs, out.numel(), _layer_of(*args)))
            return out
        out = func(*args, **(kwargs or {}))
        if name in {"mm", "addmm", "bmm", "baddbmm"}:
            rows, reads = out.shape[-2], args[-2].shape[-1]
            layer = LayerShape(out.shape[-1], reads, height=rows) if "b" not in name[:2] else None
            self.operations.append(Operation(float(out.numel() * reads), out.numel(), layer))
        elif name == "deform_conv2d":
            self.operations.append(Operation(float(out.numel() * args[1][0].numel()), out.numel()))
        elif name.startswith("_scaled_dot_product"):
            self.operations.append(_attention(*args[:3]))
        return out


def _layer_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> LayerShape | None:
    """Return the shape of a convolution of one image in two dimensions."""
    if x.dim() != 4 or x.shape[0] != 1 or any(output_padding or ()):
        return None
    kernel, step, pad, spread = (
        (int(sides[0]), int(sides[-1])) for sides in (weight.shape[2:], stride, padding, dilation)
    )
    outputs, reads = weight.shape[:2]
    if transposed:
        outputs, reads = weight.shape[1] * groups, weight.shape[0] // groups
    size = int(x.shape[2]), int(x.shape[3])
    return LayerShape(outputs, reads, kernel, step, pad, spread, groups, *size, transposed)


def _easy_shape(name: str, args: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Return the shape of a result when that takes no more than looking at meta tensors of one floating type."""
    if name not in ("cat", "stack") and name not in _ELEMENTWISE:
        return None
    tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    first = tensors[0] if tensors else None
    if first is None or not first.is_floating_point():
        return None
    if any(not tensor.is_meta or tensor.dtype != first.dtype for tensor in tensors):
        return None
    if name in _ELEMENTWISE:
        same_shape = first is args[0]
        return np.broadcast_shapes(*(tensor.shape for tensor in tensors)) if same_shape else None
    shape, dim = list(first.shape), int(args[1]) if len(args) > 1 else 0
    if any(tensor.dim() != len(shape) for tensor in tensors):
        return None
    if name == "stack":
        shape.insert(dim % (len(shape) + 1), len(tensors))
    else:
        shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return tuple(shape)


def attention_macs(query: Tensor, key: Tensor, value: Tensor) -> float:
    """Return the multiply-accumulates of a fused attention: scores and weighted sum."""
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return float(pairs * (query.shape[-1] + value.shape[-1]))


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Operation:
    elements = math.prod(query.shape[:-1]) * value.shape[-1]
    return Operation(attention_macs(query, key, value), elements)


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> list[int]:
    """Return the shape of a convolution's result."""
    spatial = []
    for dim, size in enumerate(x.shape[2:]):
        step, pad, spread, more = (
            values[dim] if len(values) > 1 else values[0]
            for values in (stride, padding, dilation, output_padding or [0])
        )
        reach = spread * (weight.shape[2 + dim] - 1)
        spatial.append(
            (size - 1) * step - 2 * pad + reach + more + 1
            if transposed
            else (size + 2 * pad - reach - 1) // step + 1
        )
    return [x.shape[0], weight.shape[1] * groups if transposed else weight.shape[0], *spatial]


class _WholeAttention(TorchFunctionMode):
    """Keeps fused attention in one piece where only shapes are computed."""

    def __init__(self, operations: list[Operation]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and len(args) >= 3:
            query, key, value = args[:3]
            self.operations.append(_attention(query, key, value))
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def count_macs(module: nn.Module, example_input: Any) -> float:
    """Return the multiply-accumulates of one forward pass (not FLOPs: those are about twice as many)."""
    return sum(count_macs_per_operation(module, example_input))


def count_macs_per_operation(
    module: nn.Module, example_input: Any, positions: Positions | None = None
) -> list[float]:
    """Count the multiply-accumulates of each convolution and matrix product of one forward pass.

    Args:
        module: As for :func:`list_operations`, as the others.
        example_input: Batch size 1.
        positions: Where the decisions of an earlier run fell.

    Returns:
        One count per operation, in execution order.
    """
    return [operation.macs for operation in list_operations(module, example_input, positions)]


def list_operations(
    module: nn.Module, example_input: Any, positions: Positions | None = None
) -> list[Operation]:
    """List the convolutions and matrix products of one forward pass.

    The pass runs on shapes alone (the meta device) where the model allows it, else for real; the count is the same.

    Args:
        module: Any module; a copy of it runs, in evaluation mode.
        example_input: As for :meth:`yolo_prune.graph.arguments.Arguments.of`, batch size 1.
        positions: Where the decisions of an earlier run fell, for a model whose cost depends on values: the
            operations are counted there.

    Returns:
        One entry per operation, in execution order.
    """
    try:
        counter = _MacCounter()
        # Tensors that are plain attributes stay: one of no dimension may be a number that code asks for.
        copied = copy_with(module, _to_meta, attributes=False)
        with _WholeAttention(counter.operations):
            return _run(copied, Arguments.of(module, example_input).changed(_to_meta), counter)
    except (
        RuntimeError,
        NotImplementedError,
    ):  # values decide the control flow, or an operator has no shape rule
        return list_operations_for_real(module, example_input, positions)


def count_macs_for_real(
    module: nn.Module, example_input: Any, positions: Positions | None = None
) -> list[float]:
    """As :func:`count_macs_per_operation`, by running the model on the CPU."""
    return [operation.macs for operation in list_operations_for_real(module, example_input, positions)]


def list_operations_for_real(
    module: nn.Module, example_input: Any, positions: Positions | None = None
) -> list[Operation]:
    """As :func:`list_operations`, by running the model on the CPU.

    Raises:
        ConfigError: The model is on the meta device.
    """
    check_has_weights(module, "counting the MACs of a model that runs by values, not by shapes alone,")
    failed: list[RuntimeError] = []
    for copied, arguments in copies_to_run(module, example_input):
        try:
            with positions.of("cost") if positions else nullcontext():
                return _run(copied, arguments, _MacCounter())
        except RuntimeError as error:
            failed.append(error)
    raise failed[0]


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _run(module: nn.Module, arguments: Arguments, counter: _MacCounter) -> list[Operation]:
    with torch.no_grad(), plain_attention(), counter:
        arguments.run(module.eval())
    return counter.operations
