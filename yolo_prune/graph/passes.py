"""Run a copy of the model under the tracer: once as in evaluation, and once more for branches of training alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.graph.arguments import Arguments, call_text
from yolo_prune.graph.atoms import Findings, Pieces
from yolo_prune.graph.copies import copies_to_run, has_weights
from yolo_prune.graph.decisions import Positions
from yolo_prune.graph.functions import AskedFor
from yolo_prune.graph.labels import compact
from yolo_prune.graph.modes import plain_attention
from yolo_prune.graph.module_rules import ModuleRules, rule_for
from yolo_prune.graph.trace import Call, OutputSelector, Tracer
from yolo_prune.graph.untraced import Visit, freeze_what_may_be_read, untraced_parameters
from yolo_prune.graph.values import tensors_in
from yolo_prune.progress import LOGGER

_STOCHASTIC = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
# What a forward pass of foreign code raises when it meets a tensor of another width or kind than it expects: every
# family of Python's own errors. Only an interrupt of the user's is none of them.
FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, AssertionError, NameError, ImportError),
    *(LookupError, ArithmeticError, BufferError, EOFError, OSError, ReferenceError, StopIteration),
    *(StopAsyncIteration, SyntaxError, SystemError, MemoryError, Warning),
)


@contextmanager
def _watched(model: nn.Module, stack: list[tuple[str, nn.Module]], visits: list[Visit]) -> Iterator[None]:
    """Keep ``stack`` at the chain of modules whose forward is running, and note in ``visits`` what each was given."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue

        def enter(module: nn.Module, _: Any, name: str = name) -> None:
            stack.append((name, module))

        def leave(_: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name) -> None:
            stack.pop()
            visits.append(Visit(name, tensors_in((args, kwargs)), tensors_in(out)))

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace_channels(
    model: nn.Module,
    example_input: Any,
    handlers: Mapping[str, Callable[[Tracer, Call], None]],
    *,
    rules: ModuleRules,
    select_outputs: OutputSelector | None,
    positions: Positions | None = None,
) -> Findings:
    """Run the model once on a copy and collect what each channel meets.

    Args:
        model: Any module; it is copied and left untouched.
        example_input: As for :meth:`yolo_prune.graph.arguments.Arguments.of`.
        handlers: Operator rules.
        rules: Module classes with baked widths.
        select_outputs: Picks the tensors whose width is fixed out of what the model returns; default all of them.
        positions: Where the decisions of an earlier run fell, see :mod:`yolo_prune.graph.decisions`.

    Returns:
        The raw findings.

    Raises:
        ConfigError: The model does not run on the example.
    """
    failed: list[tuple[nn.Module, Arguments, BaseException]] = []
    for copied, arguments in copies_to_run(model, example_input):
        tracer = Tracer(copied, rules, handlers)
        try:
            return _trace(copied, arguments, tracer, select_outputs, positions)
        except FAILURES as error:
            failed.append((copied, arguments, error))
    copied, arguments, reason = failed[0]
    check_runs(copied, arguments)
    raise reason


def _trace(
    model: nn.Module,
    arguments: Arguments,
    tracer: Tracer,
    select_outputs: OutputSelector | None,
    positions: Positions | None,
) -> Findings:
    """Run the model under the tracer as in evaluation and, where parameters were not met, as in training."""
    visits: list[Visit] = []
    with positions.of("trace") if positions else nullcontext():
        _run(model, arguments, tracer, select_outputs, visits)
    _note_written_out_norms(model, tracer, visits)
    if untraced_parameters(model, tracer):
        _run_as_in_training(model, arguments, tracer, select_outputs, visits)
    tracer.found.untraced = untraced_parameters(model, tracer)
    freeze_what_may_be_read(model, tracer, visits)
    _add_equal_axes(model, tracer)
    return tracer.found


def _note_written_out_norms(model: nn.Module, tracer: Tracer, visits: list[Visit]) -> None:
    """Note BatchNorms that are written out in products and sums, as frozen ones are: they take constants as well."""
    for visit in visits:
        statistics = model.get_submodule(visit.module)._buffers.keys() & {"running_mean", "running_var"}
        if len(statistics) == 2 and len(visit.inputs) == 1 and id(visit.inputs[0]) in tracer.made_by:
            tracer.found.norm_of.setdefault(tracer.made_by[id(visit.inputs[0])], visit.module)


def check_runs(model: nn.Module, arguments: Arguments) -> None:
    """Refuse an example that a model does not run on.

    Raises:
        ConfigError: It does not; the text says what its forward takes.
    """
    try:
        with torch.no_grad():
            arguments.run(model)
    except FAILURES as error:
        raise ConfigError(
            f"the model does not run on the example input: {type(error).__name__}: {error}."
            f"{_precision_hint(model, arguments)} Its forward is "
            f"{call_text(model)}: pass a tensor with its batch dimension, a tuple of positional arguments, a dict of "
            "keyword arguments, or for a detector that takes a list of images [image] with image of shape (C, H, W)."
        ) from error


def _precision_hint(model: nn.Module, arguments: Arguments) -> str:
    """Say what may be wrong with the precision or place of a model that does not run; empty where nothing is."""
    if not has_weights(model):
        return " Its weights are on the meta device, where nothing has a value that code could decide by."
    tensors = tensors_in((arguments.positional, arguments.named))
    given = {_name(tensor) for tensor in tensors if tensor.is_floating_point()}
    weights = {_name(parameter) for parameter in model.parameters() if parameter.is_floating_point()}
    if not given or not weights or given <= weights:
        return ""
    return f" The example is {', '.join(sorted(given))} and the weights are {', '.join(sorted(weights))}."


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _run(
    model: nn.Module,
    arguments: Arguments,
    tracer: Tracer,
    select_outputs: OutputSelector | None,
    visits: list[Visit],
) -> None:
    """Run the model once under the tracer, and freeze what it returns."""
    tracer.modules.clear()
    watched = _watched(model, tracer.modules, visits)
    with torch.no_grad(), plain_attention(), watched, AskedFor(tracer), tracer:
        outputs = arguments.run(model)
    for tensor in tensors_in(outputs):
        if (label := tracer.label(tensor)) is not None:
            tracer.found.returned.append(np.unique(compact(label).numpy()))
    for tensor in tensors_in(select_outputs(outputs) if select_outputs else outputs):
        if (label := tracer.label(tensor)) is not None:
            tracer.freeze(label, "is an output")


def _run_as_in_training(
    model: nn.Module,
    arguments: Arguments,
    tracer: Tracer,
    select_outputs: OutputSelector | None,
    visits: list[Visit],
) -> None:
    """Run the branches that exist in training alone, so that they are cut along; what stays untraced is dealt with."""
    uses = list(tracer.found.uses)
    as_in_training_(model)
    try:
        _run(model, arguments, tracer, select_outputs, visits)
    except Exception as error:  # a model that needs targets may say so by a class of its own
        if isinstance(error, YoloPruneError):
            raise
        LOGGER.debug("the model does not run as in training: %s: %s", type(error).__name__, error)
    tracer.found.uses = uses
    model.eval()


def as_in_training_(model: nn.Module) -> nn.Module:
    """Set a model to training in place, but for the layers that would make its results random or change their state."""
    for module in model.modules():
        module.training = not isinstance(module, _STOCHASTIC)
    return model


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
