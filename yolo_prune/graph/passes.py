"""Run a copy of the model under the tracer: once as in evaluation, and once more for branches of training alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from yolo_prune.graph.atoms import Findings, Pieces
from yolo_prune.graph.copies import copy_with
from yolo_prune.graph.macs import plain_attention
from yolo_prune.graph.trace import Call, ModuleRules, OutputSelector, Tracer, rule_for

_STOCHASTIC = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
# What a forward pass raises when it meets a tensor of another width or kind than its code expects.
FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, AssertionError),
    *(LookupError, ArithmeticError),
)


@contextmanager
def _module_stack(model: nn.Module, stack: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Keep ``stack`` at the chain of modules whose forward is running."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, _, name=name: stack.append((name, m))))
        handles.append(module.register_forward_hook(lambda *_: (stack.pop(), None)[1], always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _ScaledAttention(TorchFunctionMode):
    """Freezes queries and keys of attention that is scaled by their width, however PyTorch takes it apart."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and kwargs.get("scale") is None:
            for tensor in (*args, *kwargs.values())[:2]:
                if (label := self.tracer.label(tensor)) is not None:
                    self.tracer.freeze(label, "is scaled by the width of an attention head")
        return func(*args, **kwargs)


def trace_channels(
    model: nn.Module,
    example_input: Any,
    handlers: Mapping[str, Callable[[Tracer, Call], None]],
    *,
    rules: ModuleRules,
    select_outputs: OutputSelector | None,
) -> Findings:
    """Run the model once on a copy and collect what each channel meets.

    Args:
        model: Any module; it is copied and left untouched.
        example_input: A tensor, or a tuple of positional arguments, on the CPU.
        handlers: Operator rules.
        rules: Module classes with baked widths.
        select_outputs: Picks the tensors whose width is fixed out of what the model returns; default all of them.

    Returns:
        The raw findings.
    """
    model = copy_with(model, lambda tensor: tensor.detach().cpu()).eval()
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    tracer = Tracer(model, rules, handlers)
    _run(model, args, tracer, select_outputs)
    met = {axis.name for axis in tracer.found.axes}
    if any(name not in met for name, _ in model.named_parameters()):
        _run_as_in_training(model, args, tracer, select_outputs)
    _add_equal_axes(model, tracer)
    return tracer.found


def _run(
    model: nn.Module, args: tuple[Any, ...], tracer: Tracer, select_outputs: OutputSelector | None
) -> None:
    """Run the model once under the tracer, and freeze what it returns."""
    tracer.modules.clear()
    stack = _module_stack(model, tracer.modules)
    with torch.no_grad(), plain_attention(), stack, _ScaledAttention(tracer), tracer:
        outputs = model(*args)
    chosen = select_outputs(outputs) if select_outputs else outputs
    for tensor in pytree.tree_leaves(chosen):
        if (label := tracer.label(tensor)) is not None:
            tracer.freeze(label, "is an output")


def _run_as_in_training(
    model: nn.Module, args: tuple[Any, ...], tracer: Tracer, select_outputs: OutputSelector | None
) -> None:
    """Run the branches that exist in training alone, so that they are cut along; a model that needs labels has none."""
    uses = list(tracer.found.uses)
    for module in model.modules():
        module.training = not isinstance(module, _STOCHASTIC)
    with suppress(*FAILURES):
        _run(model, args, tracer, select_outputs)
    tracer.found.uses = uses
    model.eval()


def _add_equal_axes(model: nn.Module, tracer: Tracer) -> None:
    """Turn the rules' equal widths into count constraints."""
    known = {(axis.name, axis.dim): axis for axis in tracer.found.axes}
    for name, module in model.named_modules():
        rule = rule_for(tracer.rules, module)
        for pair in rule.equal if rule else ():
            axes = [known.get((f"{name}.{path}" if name else path, dim)) for path, dim in pair]
            parts = tuple(np.arange(a.base, a.base + a.size) for a in axes if a is not None)
            if len(parts) == 2:
                tracer.found.pieces.append(Pieces((parts,), name))
